//! PD's memory, kept in region 1: keys as they are in the `data` column family, without versions.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pd::{MetaError, MetaStore, MetaWrite};
use proto::{
    Batch, Cf, Epoch, KeyRange, PD_REGION, Region, Term,
    wire::{RegionError, region_error::Kind},
};
use raftstore::{ProposeError, RegionSnapshot, StoreHandle, Target};

/// Region 1 in one term of this store's leadership.
pub struct RegionOne {
    store: StoreHandle,
    term: Term,
    /// Its epoch changes with its peers, also within a term.
    epoch: Mutex<Epoch>,
}

impl RegionOne {
    /// Region 1 as its leader sees it in `term`.
    pub fn new(store: StoreHandle, region: &Region, term: Term) -> Self {
        RegionOne { store, term, epoch: Mutex::new(region.epoch) }
    }

    fn target(&self) -> Target {
        Target { region: PD_REGION, epoch: *self.epoch.lock(), term: Some(self.term) }
    }

    /// Whether the error only told a newer epoch, with which to try again.
    fn learn(&self, error: &RegionError) -> bool {
        let Some(Kind::EpochMismatch(now)) = &error.kind else { return false };
        let told = now.regions.iter().find(|r| r.id == PD_REGION.0).and_then(|r| r.epoch);
        let mut epoch = self.epoch.lock();
        match told.map(Epoch::from) {
            Some(told) if told != *epoch => {
                *epoch = told;
                true
            }
            _ => false,
        }
    }

    async fn snapshot(&self) -> Result<RegionSnapshot, MetaError> {
        loop {
            let target = self.target();
            match self.store.snapshot(&target).await {
                Err(e) if self.learn(&e) => {}
                other => return other.map_err(not_leading),
            }
        }
    }
}

fn not_leading(error: RegionError) -> MetaError {
    MetaError::NotLeading(Box::new(error))
}

#[async_trait]
impl MetaStore for RegionOne {
    async fn scan(&self, range: &KeyRange) -> Result<Vec<(Bytes, Bytes)>, MetaError> {
        let snapshot = self.snapshot().await?;
        let broken = |e: raftstore::engine::EngineError| MetaError::Unknown(e.to_string());
        let mut cursor = snapshot.engine.cursor(Cf::Data, &range.start, &range.end);
        let (mut pairs, mut more) = (Vec::new(), cursor.seek_to_first().map_err(broken)?);
        while more {
            pairs.push((Bytes::copy_from_slice(cursor.key()), Bytes::copy_from_slice(cursor.value())));
            more = cursor.next().map_err(broken)?;
        }
        Ok(pairs)
    }

    async fn write(&self, writes: Vec<MetaWrite>) -> Result<(), MetaError> {
        let mut batch = Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.put(Cf::Data, key, value),
                None => batch.delete(Cf::Data, key),
            }
        }
        loop {
            match self.store.propose(&self.target(), batch.clone()).await {
                Err(ProposeError::Region(e)) if self.learn(&e) => {}
                Err(ProposeError::Region(e)) => return Err(not_leading(e)),
                Err(ProposeError::Unknown(reason)) => return Err(MetaError::Unknown(reason)),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn holds_lease(&self) -> bool {
        self.store.holds_lease(&self.target())
    }

    async fn confirm(&self) -> Result<(), MetaError> {
        if self.holds_lease() {
            return Ok(());
        }
        self.snapshot().await.map(drop)
    }
}
