//! Where the server is: one address or several, and which of them will do.
//!
//! A URL may name several hosts, as libpq's may: `postgres://user@one:5432,two:5432/db`. They are
//! tried in turn, the one that did last first, so that a promoted replica is found without a restart.
//! Where a server says whether it is the one that is meant, none waits for one before it that is
//! silent. Elsewhere a slow primary is waited for: its replica would answer first, and be taken.

use crate::{
    backend::{Backend, Greeting, Options, Sealed, Tuning},
    classify::DatabaseFailure,
    config::url,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use mainstay_policy::Error;
use sqlx::Connection;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// After so long all hosts are being asked, and one that is second best will do: what is left of a
/// probe's second is for the last one.
const ALL_ASKED: Duration = Duration::from_millis(500);

/// Which servers will do; libpq's `target_session_attrs` in the URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any that answers: the default of a URL with one host.
    #[default]
    Any,
    /// One that takes writes: the default of a URL with several hosts.
    ReadWrite,
    /// One that takes no writes.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One that is in recovery.
    Standby,
    /// A standby, else any.
    PreferStandby,
}

impl Target {
    pub(crate) const NAMES: [(&'static str, Self); 6] = [
        ("any", Self::Any),
        ("read-write", Self::ReadWrite),
        ("read-only", Self::ReadOnly),
        ("primary", Self::Primary),
        ("standby", Self::Standby),
        ("prefer-standby", Self::PreferStandby),
    ];

    const fn accepts<K>(self, greeting: &Greeting<K>) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => !greeting.read_only,
            Self::ReadOnly => greeting.read_only,
            Self::Primary => !greeting.standby,
            Self::Standby | Self::PreferStandby => greeting.standby,
        }
    }
}

/// Why there is no connection; shared by all who wait for one.
#[derive(Clone, Debug)]
pub(crate) enum ConnectError {
    Driver(Arc<sqlx::Error>),
    Silent(Duration),
    /// Servers answered, none of the kind that is asked for.
    NoneFits,
}

impl ConnectError {
    pub(crate) fn into_failure<DB: Sealed>(self) -> DatabaseFailure {
        match self {
            Self::Driver(error) => DatabaseFailure::connect::<DB>(error),
            Self::Silent(waited) => DatabaseFailure::silent(waited),
            Self::NoneFits => DatabaseFailure::none_fits(),
        }
    }
}

/// A connection, who it is to the server, and which host that is.
pub(crate) struct Connected<DB: Backend> {
    pub(crate) connection: DB::Connection,
    pub(crate) key: Option<DB::Key>,
    pub(crate) host: usize,
}

pub(crate) struct Hosts<DB: Backend> {
    options: Vec<Options<DB>>,
    tuning: Tuning,
    connect_timeout: Duration,
    /// The one that did last.
    best: AtomicUsize,
    /// Data in memory live as long as a connection does: this one is never lent.
    anchor: Option<Mutex<Option<DB::Connection>>>,
}

impl<DB: Backend> Hosts<DB> {
    /// # Errors
    /// In words that hold nothing of the URL.
    pub(crate) fn read(
        url: &str,
        mut tuning: Tuning,
        connect_timeout: Duration,
    ) -> Result<Self, Error> {
        let (urls, target) =
            if DB::HAS_HOSTS { url::split::<DB>(url)? } else { (vec![url.to_owned()], None) };
        let several = urls.len() > 1;
        tuning.target =
            target.unwrap_or(if several { Target::ReadWrite } else { Target::default() });
        let options: Result<Vec<_>, _> = urls.iter().map(|url| DB::options(url, &tuning)).collect();
        let options = options.map_err(|error| url::unreadable::<DB>(url, &tuning, &error))?;
        let in_memory = options.first().is_some_and(DB::in_memory);
        let anchor = in_memory.then(|| Mutex::new(None));
        Ok(Self { options, tuning, connect_timeout, best: AtomicUsize::new(0), anchor })
    }

    /// Those of a pool that exists.
    pub(crate) fn of(options: Options<DB>, tuning: Tuning, connect_timeout: Duration) -> Self {
        let options = vec![options];
        Self { options, tuning, connect_timeout, best: AtomicUsize::new(0), anchor: None }
    }

    pub(crate) const fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    pub(crate) fn first(&self) -> Option<&Options<DB>> {
        self.options.get(self.best.load(Relaxed)).or_else(|| self.options.first())
    }

    /// The first host that answers and fits, or why there is none.
    pub(crate) async fn connect(&self) -> Result<Connected<DB>, ConnectError> {
        let told_apart = DB::SAYS_ROLE && self.tuning.target != Target::Any;
        let all_asked = if told_apart { ALL_ASKED } else { Duration::MAX };
        let (connected, fits) = self.find(all_asked).await?;
        if fits {
            self.best.store(connected.host, Relaxed);
        }
        Ok(connected)
    }

    /// Whether there is one, for a probe: callers do not follow it.
    pub(crate) async fn reach(&self) -> Result<(), ConnectError> {
        let (mut connected, _) = self.find(ALL_ASKED).await?;
        // A pooler lets everybody in by what it remembers, and a file is opened without being read.
        if self.tuning.pooler || !DB::HAS_HOSTS {
            let proved = DB::prove(&mut connected.connection, &self.tuning).await;
            proved.map_err(|error| ConnectError::Driver(Arc::new(error)))?;
        }
        Ok(())
    }

    /// A connection, and whether its host fits. The next host is asked when one before it has failed,
    /// or beside it so that all are asked after this long.
    async fn find(&self, all_asked: Duration) -> Result<(Connected<DB>, bool), ConnectError> {
        self.drop_anchor().await?;
        let (best, hosts) = (self.best.load(Relaxed), self.options.len());
        let mut turn = (0..hosts).map(|n| (best + n) % hosts);
        let patience = all_asked / u32::try_from(hosts).unwrap_or(u32::MAX).max(1);
        let started = Instant::now();
        let prefers = self.tuning.target == Target::PreferStandby;
        let (mut error, mut second_best) = (None, None);
        let mut asked = FuturesUnordered::new();
        loop {
            let next = turn.next();
            asked.extend(next.map(|host| self.connect_to(host)));
            let will_do = prefers && next.is_none() && second_best.is_some();
            let wait = if will_do { ALL_ASKED.saturating_sub(started.elapsed()) } else { patience };
            match tokio::time::timeout(wait, asked.next()).await {
                Ok(None) => break,
                Err(_) if will_do => break,
                Ok(Some(Ok((connected, true)))) => return Ok((connected, true)),
                Ok(Some(Ok((connected, false)))) => {
                    second_best = Some(connected);
                    error.get_or_insert(ConnectError::NoneFits);
                }
                // It comes last where hosts are asked side by side, and says nothing.
                Ok(Some(Err(ConnectError::Silent(_))))
                    if matches!(error, Some(ConnectError::Driver(_))) => {}
                // A host that says something tells more than one that does not fit.
                Ok(Some(Err(said))) => error = Some(said),
                // It may yet answer, beside the next one.
                Err(_) => {}
            }
        }
        match second_best {
            Some(connected) if prefers => Ok((connected, false)),
            _ => Err(error.unwrap_or(ConnectError::NoneFits)),
        }
    }

    /// A connection to one host, and whether that one fits.
    pub(crate) async fn connect_to(
        &self,
        host: usize,
    ) -> Result<(Connected<DB>, bool), ConnectError> {
        let Some(options) = self.options.get(host) else { return Err(ConnectError::NoneFits) };
        let connect = async {
            let mut connection = DB::Connection::connect_with(options).await?;
            let greeting = DB::greet(&mut connection, &self.tuning).await?;
            Ok((connection, greeting))
        };
        match tokio::time::timeout(self.connect_timeout, connect).await {
            Ok(Ok((connection, greeting))) => {
                let fits = self.tuning.target.accepts(&greeting);
                Ok((Connected { connection, key: greeting.key, host }, fits))
            }
            Ok(Err(error)) => Err(ConnectError::Driver(Arc::new(error))),
            Err(_) => Err(ConnectError::Silent(self.connect_timeout)),
        }
    }

    async fn drop_anchor(&self) -> Result<(), ConnectError> {
        let Some(anchor) = &self.anchor else { return Ok(()) };
        if anchor.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let (connected, _) = self.connect_to(0).await?;
        let mut anchor = anchor.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.get_or_insert(connected.connection);
        Ok(())
    }
}
