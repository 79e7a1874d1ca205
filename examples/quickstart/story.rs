//! How a chapter is told: rounds of the work, what was seen of them, and what holds for any outage.

use crate::{
    servers::Servers,
    timeline::{AnyError, Timeline, check, latency},
    work::{Dependency, Seen, Work, count},
};
use mainstay::{BreakerState, report, sqlx};
use std::{
    error::Error,
    time::{Duration, Instant},
};

/// Nothing here takes as long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Between two chapters, for whoever watches.
const TO_READ: Duration = Duration::from_millis(200);

pub(crate) struct Story {
    pub(crate) timeline: Timeline,
    pub(crate) servers: Servers,
    pub(crate) work: Work,
    /// Rounds of this chapter in which the three others did their part.
    rounds: usize,
}

/// One step of the work, between two looks at what the server counted.
pub(crate) struct Step {
    pub(crate) seen: Seen,
    pub(crate) before: Option<usize>,
    pub(crate) after: Option<usize>,
}

impl Step {
    /// How much more the server counted; `None` if it could not be asked.
    pub(crate) fn counted(&self) -> Option<usize> {
        self.after?.checked_sub(self.before?)
    }
}

impl Story {
    pub(crate) async fn begin() -> Result<Self, AnyError> {
        let timeline = Timeline::start();
        let servers = Servers::start().await?;
        let (bucket, directory) = (servers.bucket.clone(), servers.directory().to_owned());
        let begun = Work::begin(servers.database, bucket, directory).await;
        let work = begun.map_err(|error| report(&error).to_string())?;
        println!(
            "A shop's orders go through all four clients of Mainstay while each server is broken \
             in turn.\nEach round of the work writes an order and reads all (database), caches \
             them (redis), posts\nthem (http), uploads them as a report and downloads it again \
             (s3).\n"
        );
        for of in Dependency::ALL {
            println!("  {of:<9} {}", servers.about(of));
        }
        println!(
            "\nBeside what the caller saw stands what the server itself counted. Lines that begin \
             with = are\nchecked: if one does not hold, this stops there and exits with an error.\n"
        );
        timeline.head();
        Ok(Self { timeline, servers, work, rounds: 0 })
    }

    pub(crate) async fn chapter(&mut self, title: &str) {
        tokio::time::sleep(TO_READ).await;
        self.rounds = 0;
        self.timeline.chapter(title);
    }

    pub(crate) fn remark(&self, text: &str) {
        self.timeline.remark(text);
    }

    /// Says what has to hold, if it does; if it does not, the program ends with it.
    pub(crate) fn expect(&mut self, held: bool, what: &str) -> Result<(), AnyError> {
        self.timeline.expect(held, what)
    }

    /// Rounds of this chapter so far.
    pub(crate) const fn rounds(&self) -> usize {
        self.rounds
    }

    /// One round of the work; gives what was seen of one dependency, the others do their part.
    pub(crate) async fn round(&mut self, watched: Dependency) -> Result<Step, AnyError> {
        let mut seen = None;
        for of in Dependency::ALL {
            let step = self.step(of).await;
            match &step.seen.result {
                _ if of == watched => seen = Some(step),
                Ok(_) => {}
                Err(error) => return Err(format!("{of} failed too: {}", report(error)).into()),
            }
        }
        self.rounds += 1;
        seen.ok_or_else(|| "a round asks all four".into())
    }

    pub(crate) async fn step(&mut self, of: Dependency) -> Step {
        let before = self.servers.counted(of).await;
        let seen = self.work.step(of).await;
        let after = self.servers.counted(of).await;
        Step { seen, before, after }
    }

    pub(crate) fn show(&self, of: Dependency, step: &Step) {
        let Seen { result, latency: took, retries } = &step.seen;
        let saw = match (result, retries) {
            (Ok(text), 0) => text.clone(),
            (Ok(text), &n) => format!("after {}: {text}", retried(n)),
            (Err(error), _) => match error.attempts() {
                0 => "refused".to_owned(),
                n => format!("failed after {}", count(n as usize, "attempt")),
            },
        };
        self.line(of, &saw, &latency(*took), step.before, step.after);
    }

    fn line(
        &self,
        of: Dependency,
        saw: &str,
        latency: &str,
        before: Option<usize>,
        after: Option<usize>,
    ) {
        let unit = match of {
            Dependency::Database => "row",
            Dependency::Redis => "command",
            Dependency::Http | Dependency::S3 => "request",
        };
        let counted = match (before, after) {
            (Some(before), Some(after)) => {
                format!("{} (+{})", count(after, unit), after.saturating_sub(before))
            }
            _ if self.servers.is_ours(of) => "cannot be read".to_owned(),
            _ => "your server".to_owned(),
        };
        self.timeline.line(&of.to_string(), saw, latency, &counted);
    }

    /// The error of a step in its own words, and the cause below it.
    pub(crate) fn quote(&self, step: &Step) {
        let Err(error) = &step.seen.result else { return };
        match error.source() {
            // A driver's words may hold values, so they are not in `report`; these are our own.
            Some(cause) if cause.is::<sqlx::Error>() => {
                self.timeline.quote(&format!("{error}: {cause}"));
            }
            _ => self.timeline.quote(&report(error).to_string()),
        }
    }

    /// Rounds of the work go on: three calls fail after their attempts, the next are refused.
    pub(crate) async fn fails_until_the_breaker_opens(
        &mut self,
        of: Dependency,
    ) -> Result<(), AnyError> {
        let policy = self.work.policy(of)?;
        // After a slow round its break may be over already.
        while matches!(policy.breaker().state(), BreakerState::Closed | BreakerState::Ramping) {
            let step = self.round(of).await?;
            self.show(of, &step);
            if self.rounds == 1 {
                self.quote(&step);
            }
            check(step.seen.result.is_err(), "a call on a broken server fails")?;
            check(self.rounds < 10, "the breaker opens")?;
        }
        let failed = self.rounds;
        self.expect(failed == 3, "three calls failed in a row, so its breaker is open")?;
        self.is_refused(of).await
    }

    async fn is_refused(&mut self, of: Dependency) -> Result<(), AnyError> {
        const CALLS: usize = 5;
        let began = Instant::now();
        let mut refused: Vec<Seen> = Vec::new();
        let mut before = self.servers.counted(of).await;
        while refused.len() < CALLS {
            let seen = self.work.ask(of).await;
            let rejected = matches!(&seen.result, Err(e) if e.is_rejected() && e.attempts() == 0);
            if rejected {
                refused.push(seen);
            } else {
                // On a machine this slow the break was over, and this was a probe.
                refused.clear();
                before = self.servers.counted(of).await;
            }
            check(began.elapsed() < PATIENCE, "an open breaker refuses")?;
        }
        let after = self.servers.counted(of).await;
        let took = refused.iter().map(|seen| seen.latency.as_micros());
        let (fastest, slowest) = (took.clone().min().unwrap_or(0), took.max().unwrap_or(0));
        let saw = format!("refused {CALLS} times, without an attempt");
        self.line(of, &saw, &format!("{fastest}-{slowest} us"), before, after);
        if let Some(Err(error)) = refused.first().map(|seen| &seen.result) {
            self.timeline.quote(&error.to_string());
        }
        let quick = fastest < PATIENCE.as_micros() / 1000;
        let claim = match after {
            Some(_) => "refused at once, and the server counted nothing",
            None => "refused at once, with no attempt made",
        };
        self.expect(before == after && quick, claim)
    }

    /// Rounds go on until the breaker's probe gets through.
    pub(crate) async fn recovers(&mut self, of: Dependency) -> Result<(), AnyError> {
        let policy = self.work.policy(of)?;
        let (back, mut refused) = (Instant::now(), 0);
        let step = loop {
            let step = self.round(of).await?;
            match &step.seen.result {
                Ok(_) => break step,
                Err(error) if error.is_rejected() => refused += 1,
                Err(_) => self.quote(&step),
            }
            check(back.elapsed() < PATIENCE, "it recovers within 5 s")?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let took = latency(back.elapsed());
        self.show(of, &step);
        let closed = policy.breaker().state() == BreakerState::Closed;
        let refused = count(refused, "more call");
        self.expect(
            closed,
            &format!("{refused} refused in {took}; then a probe succeeded and closed the breaker"),
        )?;
        let rounds = self.rounds;
        let claim = format!("the three others answered in all {rounds} rounds of this");
        self.expect(rounds > 3, &claim)
    }

    /// Leaves the user's servers as they were; our own go with this process.
    pub(crate) async fn clean_up(&mut self) -> Result<(), AnyError> {
        let mut left = Ok(());
        for of in Dependency::ALL {
            if self.servers.is_ours(of) {
                continue;
            }
            match self.work.clean_up(of).await {
                Ok(done) => println!("\nYour {of} server: {done}"),
                Err(error) => {
                    let error = report(&error);
                    left = Err(format!("your {of} server could not be cleaned up: {error}").into());
                }
            }
        }
        left
    }
}

fn retried(n: u64) -> String {
    if n == 1 { "1 retry".to_owned() } else { format!("{n} retries") }
}
