//! The table of targets: what a call through the policy costs, beside its peers.
//!
//! `cargo bench -p mainstay-policy-benches --bench speed` prints it; with `-- case NAME CALLS` it makes
//! so many calls of one case and nothing else, for a profiler (see `instructions` beside this file).
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs, unreachable_pub)]
#![allow(missing_debug_implementations)]

mod cases;

use cases::{ByHand, PendingOnce, Ready};
use mainstay_policy_benches::{Case, Rounds, Run, median, process_time, thread_time, wall_time};
use std::{
    future::Future,
    sync::{
        Barrier,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::Duration,
};
use tokio::{
    runtime::Runtime,
    task::{LocalSet, unconstrained},
};

const ROUNDS: usize = 1_000;
/// The length of one case in one round.
const SLICE: f64 = 50_000.0;
const TASKS: u64 = 64;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(),
        ["case", name, calls] => one(name.to_owned(), calls.parse().expect("a number of calls")),
        ["names"] => cases::all().iter().for_each(|case| println!("{}", case.name)),
        _ => eprintln!("nothing, `names`, or `case NAME CALLS`"),
    }
}

/// Runs `work` where timers work as they do in a service: in a task, of a runtime whose driver has
/// slept once; nothing limits how often the task may be ready.
fn in_a_runtime<R: 'static>(work: impl FnOnce() -> R + 'static) -> R {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let task = unconstrained(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        work()
    });
    let tasks = LocalSet::new();
    let task = tasks.spawn_local(task);
    runtime.expect("a runtime").block_on(tasks.run_until(task)).expect("no panic")
}

fn one(name: String, calls: u64) {
    in_a_runtime(move || {
        let cases = cases::all();
        let case = cases.iter().find(|case| case.name == name).expect("a name of a case");
        case.run()(calls);
    });
}

/// One line of the table: what was measured, and against what.
struct Row {
    what: &'static str,
    ours: f64,
    peer: f64,
    ratio: f64,
    /// At most, or at least where a larger figure is better.
    target: Option<Target>,
}

enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    fn print(&self) {
        let Self { what, ours, peer, ratio, target } = self;
        let (target, met) = match target {
            None => (String::new(), ""),
            Some(Target::AtMost(most)) => (format!("<= {most}"), met(ratio <= most)),
            Some(Target::AtLeast(least)) => (format!(">= {least}"), met(ratio >= least)),
        };
        println!("{what:<52} {ours:>8.2} {peer:>8.2} {ratio:>7.3} {target:>8} {met}");
    }
}

fn met(holds: bool) -> &'static str {
    if holds { "met" } else { "MISSED" }
}

fn table() {
    println!("{:<52} {:>8} {:>8} {:>7} {:>8}", "", "ours", "peer", "ratio", "target");
    for row in in_a_runtime(one_thread) {
        row.print();
    }
    for row in in_a_runtime(two_threads) {
        row.print();
    }
    for row in many_tasks() {
        row.print();
    }
    for row in bytes() {
        row.print();
    }
}

/// Nanoseconds of a call in thread CPU time.
fn one_thread() -> Vec<Row> {
    let cases = cases::all();
    let place = |name: &str| cases.iter().position(|case| case.name == name).expect("a case");
    let mut runs: Vec<(Run, u64)> = cases.iter().map(calibrated).collect();
    let rounds = Rounds::measure(ROUNDS, runs.len(), |case| {
        let (run, calls) = &mut runs[case];
        time_of(run, *calls)
    });
    for case in &cases {
        println!("  {:<50} {:>8.1} ns", case.name, rounds.median(place(case.name)));
    }
    let row = |what, ours: &[(&str, f64)], peer: &str, target: Option<f64>| {
        let ours: Vec<_> = ours.iter().map(|(name, factor)| (place(name), *factor)).collect();
        let sum =
            |of: &dyn Fn(usize) -> f64| ours.iter().map(|(case, f)| f * of(*case)).sum::<f64>();
        let peer = place(peer);
        Row {
            what,
            ours: rounds.median_of(|of| sum(of)),
            peer: rounds.median(peer),
            ratio: rounds.median_of(|of| sum(of) / of(peer)),
            target: target.map(Target::AtMost),
        }
    };
    let time_given = &[("closed: ours, the time given", 1.0)];
    let retry_alone = &[("retry: ours", 1.0), ("ours, all switched off", -1.0)];
    let ready = &[("ready: ours", 1.0)];
    let pending = &[("pending once: ours", 1.0)];
    vec![
        row(
            "noise: recloser, measured twice",
            &[("closed: recloser again", 1.0)],
            "closed: recloser",
            None,
        ),
        row(
            "closed, admit and record, time given / recloser",
            time_given,
            "closed: recloser",
            Some(1.0),
        ),
        row("closed, as called / recloser", &[("closed: ours", 1.0)], "closed: recloser", None),
        row("closed, as called / TR", &[("closed: ours", 1.0)], "closed: TR", None),
        row("refused / recloser", &[("refused: ours", 1.0)], "refused: recloser", Some(0.4)),
        row("retry added to a call / backon", retry_alone, "retry: backon", Some(1.0)),
        row("retry, as called / backon", &[("retry: ours", 1.0)], "retry: backon", None),
        row("whole pipeline, ready / by hand", ready, "ready: by hand", Some(0.25)),
        row("whole pipeline, ready / TR", ready, "ready: TR", Some(0.05)),
        row("whole pipeline, pending once / by hand", pending, "pending once: by hand", Some(0.55)),
        row("whole pipeline, pending once / TR", pending, "pending once: TR", Some(0.12)),
        row(
            "with a bulkhead, ready / by hand",
            &[("ready: ours with a bulkhead", 1.0)],
            "ready: by hand",
            None,
        ),
        row(
            "with a bulkhead, pending once / by hand",
            &[("pending once: ours with a bulkhead", 1.0)],
            "pending once: by hand",
            None,
        ),
    ]
}

/// A caller, and how many calls fill a slice.
fn calibrated(case: &Case) -> (Run, u64) {
    let mut run = case.run();
    run(1_000);
    let of_one = time_of(&mut run, 1_000).max(0.5);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let calls = (SLICE / of_one) as u64;
    (run, calls.max(10))
}

#[allow(clippy::cast_precision_loss)]
fn time_of(run: &mut Run, calls: u64) -> f64 {
    let start = thread_time();
    run(calls);
    (thread_time() - start) / calls as f64
}

/// How much more two threads do than one, of each case in turn, so that all see the same neighbours:
/// what looks like two processors may be one core, which others use too. Controls share nothing: sums,
/// and the pipeline with a policy for each thread.
fn two_threads() -> Vec<Row> {
    let cases = cases::all();
    let place = |name: &str| cases.iter().position(|case| case.name == name).expect("a case");
    let names = [
        "nothing shared",
        "nothing shared, and a clock read",
        "closed: ours, the time given",
        "closed: recloser",
        "ready: ours",
        "ready: ours, a policy for each thread",
        "ready: by hand",
        "pending once: ours",
        "pending once: by hand",
    ];
    let rounds = side_by_side(&names.map(|name| &cases[place(name)]));
    let scaling = |name: &str| {
        let place = names.iter().position(|other| *other == name).expect("a name");
        move |round: &Vec<Option<f64>>| round[place]
    };
    // Of the rounds in which both count.
    let row = |what, name: &str, peer: &str, target: Option<f64>| {
        let (ours, peer) = (scaling(name), scaling(peer));
        let of = |of: &dyn Fn(&Vec<Option<f64>>) -> Option<f64>| -> Vec<f64> {
            rounds.iter().filter_map(of).collect()
        };
        let shares = of(&|round| Some(ours(round)? / peer(round)?));
        if shares.len() < rounds.len() / 20 {
            eprintln!("{what}: only {} of {} rounds count", shares.len(), rounds.len());
        }
        let target = target.map(Target::AtLeast);
        Row {
            what,
            ours: median(of(&ours)),
            peer: median(of(&peer)),
            ratio: median(shares),
            target,
        }
    };
    let more = |row: Row| Row { ratio: row.ours, ..row };
    let nothing =
        |what| more(row(what, "nothing shared", "nothing shared, and a clock read", None));
    vec![
        nothing("two threads, nothing shared (with a clock read)"),
        more(row(
            "two threads, admit and record (recloser)",
            "closed: ours, the time given",
            "closed: recloser",
            Some(1.9),
        )),
        row(
            "  the same / nothing shared",
            "closed: ours, the time given",
            "nothing shared",
            Some(0.95),
        ),
        more(row(
            "two threads, whole pipeline (by hand)",
            "ready: ours",
            "ready: by hand",
            Some(1.9),
        )),
        row(
            "  the same / nothing shared",
            "ready: ours",
            "nothing shared, and a clock read",
            Some(0.95),
        ),
        row(
            "  the same / a policy for each thread",
            "ready: ours",
            "ready: ours, a policy for each thread",
            Some(0.95),
        ),
        // Tokio's timer is one for all.
        more(row(
            "two threads, pending once (by hand)",
            "pending once: ours",
            "pending once: by hand",
            None,
        )),
    ]
}

/// For each round and case what two threads did, where one does 1; `None` when one was interrupted or
/// they did not run side by side.
fn side_by_side(cases: &[&Case]) -> Vec<Vec<Option<f64>>> {
    const ROUNDS: usize = 1_500;
    let handle = tokio::runtime::Handle::current();
    let (asleep, arrived) = (Barrier::new(2), AtomicUsize::new(0));
    let timed = |run: &mut Run, calls: u64| {
        let (start, cpu) = (wall_time(), thread_time());
        run(calls);
        let (cpu, wall) = (thread_time() - cpu, wall_time() - start);
        (start, cpu, wall < cpu * 1.03)
    };
    let meet = |times: usize| {
        arrived.fetch_add(1, AcqRel);
        while arrived.load(Acquire) < 2 * times {
            std::hint::spin_loop();
        }
    };
    let thread = |first: bool, mut runs: Vec<(Run, u64)>| {
        let (handle, asleep) = (&handle, &asleep);
        move || {
            let _inside = handle.enter();
            let mut times = 0;
            let mut turn = |run: &mut Run, calls: u64| {
                // The second sleeps meanwhile.
                let alone = first.then(|| timed(run, calls));
                asleep.wait();
                meet(times + 1);
                let beside = timed(run, calls);
                meet(times + 2);
                times += 2;
                (alone, beside)
            };
            let mut round = || runs.iter_mut().map(|(run, calls)| turn(run, *calls)).collect();
            (0..ROUNDS).map(|_| round()).collect::<Vec<Vec<_>>>()
        }
    };
    // Each thread with callers of its own, and as many calls of each.
    let (ours, others): (Vec<_>, Vec<_>) = cases.iter().map(|case| pair(case)).unzip();
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(thread(true, ours));
        let second = scope.spawn(thread(false, others));
        (first.join().expect("no panic"), second.join().expect("no panic"))
    });
    let more = |((alone, one), (_, other)): (_, _)| {
        let (Some((_, alone, calm)), (start, cpu, whole)) = (alone, one) else { return None };
        let (other_start, other_cpu, other_whole): (f64, f64, bool) = other;
        let (start, mean): (f64, f64) = (start, (cpu + other_cpu) / 2.0);
        let beside = (start - other_start).abs() < mean / 20.0;
        (calm && whole && other_whole && beside).then_some(2.0 * alone / mean)
    };
    let of_round = |(first, second): (Vec<_>, Vec<_>)| first.into_iter().zip(second).map(more);
    first.into_iter().zip(second).map(|round| of_round(round).collect()).collect()
}

/// Two callers of a case, and how many calls of one fill a slice.
fn pair(case: &Case) -> ((Run, u64), (Run, u64)) {
    let (run, calls) = calibrated(case);
    ((run, calls), (case.run(), calls))
}

/// What a call adds when 64 tasks on 2 workers each wait once, in CPU time of the process.
fn many_tasks() -> Vec<Row> {
    const CALLS: u64 = 500;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_time().build().expect("a runtime");
    let (hand, policy) = (ByHand::new(), cases::whole());
    let rounds = Rounds::measure(300, 3, |case| match case {
        0 => spawned(&runtime, CALLS, PendingOnce::new),
        1 => spawned(&runtime, CALLS, || hand.call(PendingOnce::new)),
        _ => spawned(&runtime, CALLS, || cases::call(policy, PendingOnce::new)),
    });
    vec![Row {
        what: "64 tasks on 2 workers, added to a call / by hand",
        ours: rounds.median_of(|of| of(2) - of(0)),
        peer: rounds.median_of(|of| of(1) - of(0)),
        ratio: rounds.median_of(|of| of(2) - of(0)) / rounds.median_of(|of| of(1) - of(0)),
        target: Some(Target::AtMost(0.5)),
    }]
}

/// CPU nanoseconds of a call.
fn spawned<F, E>(runtime: &Runtime, calls: u64, call: impl Fn() -> F + Copy + Send + 'static) -> f64
where
    F: Future<Output = Result<u64, E>> + Send,
    E: Send,
{
    let start = process_time();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                tokio::spawn(async move {
                    for _ in 0..calls {
                        let _ = std::hint::black_box(call().await.is_ok());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
    #[allow(clippy::cast_precision_loss)]
    let all = (TASKS * calls) as f64;
    (process_time() - start) / all
}

/// What the call's future adds to the bytes of the future inside.
fn bytes() -> Vec<Row> {
    let (hand, policy) = (ByHand::new(), cases::whole());
    let row = |what, ours: usize, peer: usize| {
        #[allow(clippy::cast_precision_loss)]
        let (ours, peer) = (ours as f64, peer as f64);
        Row { what, ours, peer, ratio: ours, target: Some(Target::AtMost(256.0)) }
    };
    let small = size_of::<Ready>();
    let large = || async {
        let held = [1_u8; 1_024];
        let end = Ready::new().await;
        end.map(|n| n + u64::from(std::hint::black_box(held)[0]))
    };
    let inner = size_of_val(&large());
    vec![
        row(
            "bytes added to a future of 4 (by hand)",
            size_of_val(&cases::call(policy, Ready::new)) - small,
            size_of_val(&hand.call(Ready::new)) - small,
        ),
        row(
            "bytes added to a future of 1 KiB (by hand)",
            size_of_val(&cases::call(policy, large)) - inner,
            size_of_val(&hand.call(large)) - inner,
        ),
    ]
}
