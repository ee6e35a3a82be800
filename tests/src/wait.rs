//! Waiting for a condition, with a deadline, never for a time.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// How often a condition is asked again. Short beside an election, long beside a look-up.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Measures real time.
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// From now.
    pub fn start() -> Stopwatch {
        Stopwatch(now())
    }
    /// Until now.
    pub fn elapsed(&self) -> Duration {
        now().duration_since(self.0)
    }
}

#[allow(clippy::disallowed_methods, reason = "real processes run on real time")]
fn now() -> Instant {
    Instant::now()
}

/// Paces attempts that would otherwise spin: one each `POLL_INTERVAL`.
pub struct Pace(tokio::time::Interval);

impl Pace {
    /// The first attempt comes at once.
    pub fn start() -> Pace {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Pace(ticks)
    }
    /// Until the next attempt.
    pub async fn next(&mut self) {
        self.0.tick().await;
    }
}

/// Asks `probe` until it answers `Ok`, at most `limit` long; then fails with `what` and the last answer.
pub async fn until<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = now() + limit;
    let mut pace = Pace::start();
    let mut last = "the first probe did not answer".to_string();
    loop {
        let attempt = async {
            pace.next().await;
            probe().await
        };
        match timeout_at(deadline, attempt).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => panic!("{what}: not within {limit:?}; last: {last}"),
        }
    }
}
