//! Deletes rows and index entries that nobody reads any more: dropped tables and indexes, what TRUNCATE left, what was filled
//! and not published.
//!
//! ```text
//!   the gateway that made the note    published everywhere ─► wait ─► keys deleted, note deleted; again until it succeeds
//!   any other, now and then           its gateway is gone ─► the catalog is published everywhere ─► wait ─► the same
//! ```
//!
//! The wait: nobody looks any more for the outcome of a commit among those keys. A gateway is gone when PD says so; what it
//! commits after that is refused, so the catalog that is loaded then has all that it has changed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::FutureExt;

use crate::{
    catalog::{
        garbage::{self, Garbage},
        store,
    },
    error::SqlResult,
    gateway::{Gateway, GatewayConfig},
};

/// How old garbage is when it is deleted: [`kv::COMMIT_MEMORY`], and time for clocks that run at different speeds and for
/// requests on their way.
const AGE: Duration = kv::COMMIT_MEMORY.saturating_add(Duration::from_secs(3));
/// Between two attempts to delete.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks for garbage of others.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);

impl Gateway {
    /// Takes back, in the background, the notes that published storage ids might be garbage.
    pub(crate) fn forget_garbage(self: &Arc<Self>, storage_ids: Vec<u32>) {
        let client = self.client().clone();
        let forget = async move {
            if let Err(error) = garbage::forget(&client, &storage_ids).await {
                // The note stays; it is checked against the catalog before anything is deleted.
                tracing::warn!(?storage_ids, %error, "a note about published rows was not taken back");
            }
        };
        self.config().spawn.spawn(forget.boxed());
    }

    /// Deletes, in the background, all under storage ids that nobody reads or writes any more.
    pub(crate) fn collect(self: &Arc<Self>, storage_ids: Vec<u32>) {
        self.collect_all(storage_ids.into_iter().map(Garbage::Storage).collect());
    }

    /// The same for entries of dropped indexes, by storage and index id.
    pub(crate) fn collect_indexes(self: &Arc<Self>, indexes: Vec<(u32, u32)>) {
        self.collect_all(indexes.into_iter().map(|(storage_id, index)| Garbage::Index(storage_id, index)).collect());
    }

    fn collect_all(self: &Arc<Self>, all: Vec<Garbage>) {
        if all.is_empty() {
            return;
        }
        let GatewayConfig { client, clock, .. } = self.config().clone();
        let collect = async move {
            clock.sleep(AGE).await;
            for garbage in all {
                while let Err(error) = garbage::delete(&client, garbage).await {
                    tracing::warn!(?garbage, %error, "garbage was not deleted yet");
                    clock.sleep(RETRY_PAUSE).await;
                }
            }
        };
        self.config().spawn.spawn(collect.boxed());
    }

    /// Deletes what gateways that are gone have left.
    async fn sweep_garbage(&self) -> SqlResult<()> {
        let GatewayConfig { client, pd, clock, .. } = self.config();
        let owners: BTreeSet<u64> =
            garbage::notes(&client.begin().await?).await?.iter().map(|note| note.owner).collect();
        let mut gone = BTreeSet::new();
        for owner in owners {
            if owner != self.id() && !pd.gateway_alive(owner).await? {
                gone.insert(owner);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        // What one of them has changed last it may not have published.
        self.publish(store::version(&client.begin().await?).await?).await?;
        clock.sleep(AGE).await;
        garbage::take_over(client, &gone).await
    }
}

/// Looks for garbage of gateways that are gone, as long as this one is there.
pub(crate) async fn sweep(gateway: Weak<Gateway>) {
    while let Some(this) = gateway.upgrade() {
        let clock = Arc::clone(&this.config().clock);
        drop(this);
        clock.sleep(SWEEP_PAUSE).await;
        let Some(this) = gateway.upgrade() else { return };
        if let Err(error) = this.sweep_garbage().await {
            tracing::warn!(%error, "garbage of gateways that are gone was not deleted yet");
        }
    }
}
