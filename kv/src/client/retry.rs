//! A transaction that is run again until it succeeds.

use std::time::Duration;

use crate::Error;

use super::{Client, backoff::Backoff, route::Deadline};

/// Pauses between the runs, within one operation's deadline.
pub(crate) struct Retry {
    client: Client,
    backoff: Backoff,
    deadline: Deadline,
}

impl Client {
    /// For a transaction that begins now.
    pub(crate) fn retry(&self) -> Retry {
        Retry { client: self.clone(), backoff: Backoff::LOCK, deadline: self.deadline() }
    }
}

impl Retry {
    /// Before the next run; `error` itself when no time is left for one.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let paused = self.client.pause(&mut self.backoff, Duration::ZERO, self.deadline, "").await;
        paused.map_err(|_| error)
    }
}
