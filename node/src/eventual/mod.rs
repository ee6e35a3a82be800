//! Eventual namespaces on this node: writes are accepted here and carried into the regions in the background.
//!
//! ```text
//!   write ──▶ stamp ──▶ queue, synced here ──▶ answer            get ──▶ the later of: queue, this store's replica
//!                          │ in the background, again until done                        (no replica here: the leader)
//!                          ▼
//!              a transaction that sets what is older (`kv::space::Spaces::merge`)
//! ```
//!
//! No quorum, leader or PD is needed to write, nor to read what this store has a replica of. What was accepted survives a
//! restart of this node, and is lost with its disk as long as it waits. Of two writes of a key the one with the later stamp
//! wins on all nodes; stamps are wall clocks, so a node whose clock is ahead wins over others.

pub mod queue;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kv::{
    Clock, Error, SpaceError, Spaces,
    mvcc::Reader,
    space::{self, Change, Namespace, keys, lww::Stamped},
};
use parking_lot::Mutex;
use proto::{Cf, Timestamp};
use raftstore::{
    StoreHandle,
    engine::{Engine, EngineError, Snapshot, WriteBatch, WriteOp},
};
use tokio::sync::watch;

use queue::{Full, Queue};

/// Between attempts to carry writes into regions that can't be reached.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The queue, its disk and its carrier.
pub struct Eventual {
    engine: Arc<dyn Engine>,
    store: StoreHandle,
    spaces: Spaces,
    clock: Arc<dyn Clock>,
    queue: Mutex<Queue>,
    /// Counts accepted writes, for the carrier.
    accepted: watch::Sender<u64>,
}

fn broken(e: EngineError) -> SpaceError {
    SpaceError::Kv(Error::Corrupt(e.to_string()))
}

impl Eventual {
    /// With what a former process left in the queue.
    pub fn open(
        engine: Arc<dyn Engine>,
        store: StoreHandle,
        spaces: Spaces,
        clock: Arc<dyn Clock>,
    ) -> Result<Eventual, EngineError> {
        let (mut queue, snapshot) = (Queue::default(), engine.snapshot());
        let (first, end) = queue::record_keys();
        let mut cursor = snapshot.cursor(Cf::Meta, &first, &end);
        let mut on = cursor.seek_to_first()?;
        while on {
            let record = Bytes::copy_from_slice(cursor.value());
            queue.found(cursor.key(), record).map_err(EngineError::Corrupt)?;
            on = cursor.next()?;
        }
        if let Some(stamp) = snapshot.get(Cf::Meta, &queue::stamp_key())? {
            queue.found_stamp(stamp).map_err(EngineError::Corrupt)?;
        }
        drop(cursor);
        Ok(Eventual { engine, store, spaces, clock, queue: Mutex::new(queue), accepted: watch::Sender::new(0) })
    }

    /// Accepts changes: they are durable on this node when it returns.
    pub fn write(&self, namespace: &Namespace, changes: &[Change]) -> Result<(), SpaceError> {
        space::check_changes(changes)?;
        // The disk is waited for under the lock: what is seen here is durable, and records are in the order of stamps.
        let mut queue = self.queue.lock();
        let stamped = queue.stamp(namespace.keyspace, changes, self.clock.wall_ms(), self.store.store());
        let full =
            |Full| Error::Unavailable("the queue of eventual writes is full: its regions can't be reached".into());
        let stamped = stamped.map_err(full)?;
        let put = |(key, value): (Bytes, Bytes)| WriteOp::Put(Cf::Meta, key, value);
        let replaced = queue.replaced().into_iter().map(|key| WriteOp::Delete(Cf::Meta, key));
        let ops = replaced.chain(stamped.iter().map(|a| put(a.record.clone()))).collect();
        self.engine.write(WriteBatch { ops }).and_then(|()| self.engine.sync()).map_err(broken)?;
        queue.accept(stamped);
        drop(queue);
        self.accepted.send_modify(|n| *n += 1);
        Ok(())
    }

    /// The values of keys as far as this node knows, in the order asked.
    pub async fn get(&self, namespace: &Namespace, asked: &[Bytes]) -> Result<Vec<Option<Bytes>>, SpaceError> {
        space::check_keys(asked)?;
        let mut values = Vec::with_capacity(asked.len());
        for key in asked {
            // The queue first: what leaves it meanwhile is in the regions by then.
            let waiting = self.queue.lock().get(&(namespace.keyspace, key.clone())).cloned();
            let stored = match self.here(&keys::encode(namespace.keyspace, key))? {
                Some(stored) => stored,
                None => self.spaces.stored(namespace, std::slice::from_ref(key)).await?.pop().flatten(),
            };
            let stored = stored.map(decode).transpose()?;
            let newest = match waiting {
                Some(waiting) if waiting.beats(stored.as_ref()) => Some(waiting),
                _ => stored,
            };
            values.push(newest.and_then(|w| w.value));
        }
        Ok(values)
    }

    /// What this store's replica holds under a key; `None`: it has no replica of it.
    fn here(&self, key: &Bytes) -> Result<Option<Option<Bytes>>, SpaceError> {
        let replica = self.store.statuses().into_iter().find(|s| s.view.region.range.contains(key));
        let Some(replica) = replica else { return Ok(None) };
        let snapshot = self.engine.snapshot();
        match holds(&*snapshot, replica.view.region.id, key).map_err(broken)? {
            true => Reader::new(&*snapshot)
                .get(key, Timestamp::MAX)
                .map(Some)
                .map_err(|fault| SpaceError::Kv(Error::Corrupt(fault.to_string()))),
            false => Ok(None),
        }
    }

    /// A page of a scan: what has arrived in the regions.
    pub async fn scan(&self, namespace: &Namespace, query: &space::ScanQuery) -> Result<space::SpacePage, SpaceError> {
        // Whether a key is deleted stands in its record.
        let records = space::ScanQuery { keys_only: false, ..query.clone() };
        let page = self.spaces.scan_stored(namespace, &records).await?;
        let mut rows = Vec::with_capacity(page.rows.len());
        for (key, record) in page.rows {
            if let Some(value) = decode(record)?.value {
                rows.push((key, if query.keys_only { Bytes::new() } else { value }));
            }
        }
        Ok(space::SpacePage { rows, ..page })
    }

    /// Carries what waits into the regions, as long as the node runs.
    pub async fn carry(self: Arc<Self>) {
        let (mut accepted, mut failing) = (self.accepted.subscribe(), false);
        loop {
            accepted.borrow_and_update();
            let Some(carried) = self.queue.lock().some() else {
                // The sender lives as long as this.
                let _ = accepted.changed().await;
                continue;
            };
            match self.spaces.merge(carried.keyspace, &carried.writes).await {
                Ok(()) => {
                    failing = false;
                    if let Err(error) = self.forget(carried) {
                        tracing::error!(%error, "carried writes stay in the queue of eventual writes");
                        self.clock.sleep(AGAIN_AFTER).await;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "eventual writes wait");
                    }
                    self.clock.sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    fn forget(&self, carried: queue::Carried) -> Result<(), EngineError> {
        let (gone, stamp) = self.queue.lock().arrived(carried);
        let mut ops = vec![WriteOp::Put(Cf::Meta, queue::stamp_key(), stamp)];
        ops.extend(gone.into_iter().map(|key| WriteOp::Delete(Cf::Meta, key)));
        // Not synced: what comes back after a crash is merged again, without effect.
        self.engine.write(WriteBatch { ops })
    }

    /// Whether nothing waits to be carried.
    pub fn is_idle(&self) -> bool {
        self.queue.lock().is_empty()
    }
}

fn decode(record: Bytes) -> Result<Stamped, SpaceError> {
    let decoded = Stamped::decode(record);
    decoded.ok_or_else(|| SpaceError::Kv(Error::Corrupt("a value of an eventual namespace does not decode".into())))
}

/// Whether a view of the engine holds the region's whole state, and the region the key.
fn holds(snapshot: &dyn Snapshot, region: proto::RegionId, key: &[u8]) -> Result<bool, EngineError> {
    let half_taken = snapshot.get(Cf::Meta, &raftstore::keys::snapshot_key(region))?.is_some();
    let Some(record) = snapshot.get(Cf::Meta, &raftstore::keys::region_key(region))? else { return Ok(false) };
    let region = raftstore::keys::decode_region(&record).map_err(|e| EngineError::Corrupt(e.to_string()))?;
    Ok(!half_taken && region.range.contains(key))
}
