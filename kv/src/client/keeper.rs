//! Keeps the row locks of this client's transactions alive while they are open: one task for all of them.

use std::{
    collections::BTreeMap,
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::FutureExt;
use parking_lot::Mutex;
use proto::{
    StoreId, Timestamp,
    wire::{RowLocksAction, RowLocksRequest},
};

use super::{Client, txn};

/// Transactions of one message at most.
const MAX_OWNERS: usize = 10_000;

/// The transactions that have row locks.
#[derive(Default)]
pub(crate) struct Keeper {
    owners: Mutex<BTreeMap<Timestamp, Weak<txn::Inner>>>,
    running: AtomicBool,
}

impl Client {
    /// From now on the row locks of a transaction are kept alive.
    pub(crate) fn keep_rows(&self, start_ts: Timestamp, txn: Weak<txn::Inner>) {
        let keeper = &self.inner.keeper;
        keeper.owners.lock().insert(start_ts, txn);
        if keeper.running.swap(true, Ordering::SeqCst) {
            return;
        }
        let inner = std::sync::Arc::downgrade(&self.inner);
        let (clock, pause) = (self.inner.clock.clone(), self.inner.config.lock_ttl / 3);
        let keep = async move {
            loop {
                clock.sleep(pause).await;
                let Some(inner) = inner.upgrade() else { return };
                let client = Client { inner };
                if !client.keep_all() {
                    return;
                }
            }
        };
        self.inner.spawn.spawn(keep.boxed());
    }

    /// The transaction has no row locks any more.
    pub(crate) fn stop_keeping(&self, start_ts: Timestamp) {
        self.inner.keeper.owners.lock().remove(&start_ts);
    }

    /// Tells all stores concerned. `false`: there is nobody to speak for.
    fn keep_all(&self) -> bool {
        let mut stores: BTreeMap<StoreId, Vec<u64>> = BTreeMap::new();
        {
            let mut owners = self.inner.keeper.owners.lock();
            owners.retain(|start_ts, txn| {
                let Some(txn) = txn.upgrade() else { return false };
                txn.lock_stores().into_iter().for_each(|store| stores.entry(store).or_default().push(start_ts.0));
                true
            });
            if owners.is_empty() {
                self.inner.keeper.running.store(false, Ordering::SeqCst);
                return false;
            }
        }
        for (store, owners) in stores {
            for owners in owners.chunks(MAX_OWNERS) {
                let request = RowLocksRequest {
                    action: RowLocksAction::Keep as i32,
                    ttl_ms: self.inner.config.lock_ttl.as_millis() as u64,
                    transactions: owners.to_vec(),
                    ..RowLocksRequest::default()
                };
                self.tell(store, request);
            }
        }
        true
    }
}
