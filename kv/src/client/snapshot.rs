//! The timestamp a transaction reads at: one for all of it, or a fresh one for each statement, taken when it is first
//! needed.

use std::sync::Arc;

use proto::Timestamp;
use tokio::sync::OnceCell;

use crate::Error;

use super::Client;

/// A timestamp to read at. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(Arc<OnceCell<Timestamp>>);

impl Snapshot {
    /// At a known timestamp.
    pub(crate) fn at(ts: Timestamp) -> Self {
        Snapshot(Arc::new(OnceCell::new_with(Some(ts))))
    }

    /// At a timestamp that PD gives when it is asked for.
    pub(crate) fn fresh() -> Self {
        Snapshot(Arc::new(OnceCell::new()))
    }

    /// The timestamp, if it was needed before.
    pub(crate) fn taken(&self) -> Option<Timestamp> {
        self.0.get().copied()
    }

    /// The timestamp.
    pub(crate) async fn get(&self, client: &Client) -> Result<Timestamp, Error> {
        self.0.get_or_try_init(|| client.timestamp()).await.copied()
    }
}
