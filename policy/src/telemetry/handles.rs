//! The handles of a dependency's metrics, renewed from time to time. A thread keeps those that it used
//! last: to read what may be replaced meanwhile locks memory twice.

use super::numbers::Numbers;
use crate::sync::Swap;
use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

#[derive(Debug)]
pub(crate) struct Handles {
    numbers: Swap<Numbers>,
    /// No two handles ever have the same.
    version: AtomicU64,
}

const KEPT: usize = 8;

/// One at a place.
type Kept = [Option<(u64, Arc<Numbers>)>; KEPT];

thread_local! {
    static HERE: RefCell<Kept> = const { RefCell::new([const { None }; KEPT]) };
}

fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Handles {
    pub(crate) fn of(name: &Arc<str>) -> Self {
        let numbers = Swap::new(Numbers::of(name));
        Self { numbers, version: AtomicU64::new(next_version()) }
    }

    /// A recorder may have been installed meanwhile.
    pub(crate) fn renew(&self, name: &Arc<str>) {
        self.numbers.store(Numbers::of(name));
        self.version.store(next_version(), Release);
    }

    pub(crate) fn read(&self, record: impl Fn(&Numbers)) {
        // Read first: numbers that are newer than it do no harm.
        let version = self.version.load(Acquire);
        let seen = HERE.try_with(|here| {
            let here = here.try_borrow().ok()?;
            let (kept, numbers) = here.get(place(version))?.as_ref()?;
            (*kept == version).then(|| record(numbers))
        });
        if !matches!(seen, Ok(Some(()))) {
            self.read_anew(version, &record);
        }
    }

    #[cold]
    #[inline(never)]
    fn read_anew(&self, version: u64, record: &dyn Fn(&Numbers)) {
        let numbers = self.numbers.get();
        record(&numbers);
        // Not while a recorder of this thread calls us. What was kept is dropped by then, too.
        let _ = HERE.try_with(|here| {
            let mut here = here.try_borrow_mut().ok()?;
            here.get_mut(place(version))?.replace((version, numbers))
        });
    }
}

const fn place(version: u64) -> usize {
    version as usize % KEPT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Decider;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    #[test]
    fn each_dependency_counts_its_own_and_who_is_renewed_counts_where_it_is_told() {
        let recorders = [DebuggingRecorder::new(), DebuggingRecorder::new()];
        let names: Vec<Arc<str>> = (0..3 * KEPT).map(|n| n.to_string().into()).collect();
        let handles: Vec<Handles> =
            metrics::with_local_recorder(&recorders[0], || names.iter().map(Handles::of).collect());
        let count = || {
            for (n, one) in handles.iter().enumerate() {
                (0..=n).for_each(|_| one.read(|numbers| numbers.refused(Decider::Breaker)));
            }
        };
        count();
        metrics::with_local_recorder(&recorders[1], || {
            handles.iter().zip(&names).for_each(|(one, name)| one.renew(name));
        });
        count();
        for recorder in recorders {
            let mut told = 0;
            for (key, _, _, value) in recorder.snapshotter().snapshot().into_vec() {
                let (_, key) = key.into_parts();
                let labels: Vec<&str> = key.labels().map(metrics::Label::value).collect();
                if let (DebugValue::Counter(n), [name, "reject", "breaker"]) = (value, &labels[..])
                {
                    assert_eq!(name.parse(), Ok(n - 1), "{labels:?}");
                    told += 1;
                }
            }
            assert_eq!(told, handles.len());
        }
    }
}
