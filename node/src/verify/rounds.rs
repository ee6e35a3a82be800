//! The slow pass: where PD is, one region after another is compared, round and round.
//!
//! A region that sleeps is woken for it. At one a minute a thousand regions take most of a day, and a comparison reads the
//! region once on each of its stores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use kv::{Clock, Pd, PdError};
use proto::{
    KeyRange, Region, RegionId,
    wire::{VerifyOutcome, VerifyRegionRequest, VerifyRegionResponse},
};

use super::{Verifier, WAIT_MAX};
use crate::pd::role::PdRole;

/// How often a comparison that is not ended is asked after: a large region on a slow disk takes a minute or two.
const LOOKS_AT_MOST: u32 = 24;

/// How comparisons of the slow pass ended, since the node's start.
#[derive(Debug, Default)]
pub struct VerifyCounts {
    /// All replicas hold the same.
    pub equal: AtomicU64,
    /// Some do not.
    pub differs: AtomicU64,
    /// Some did not answer, or nobody could be asked.
    pub incomplete: AtomicU64,
}

/// The pass of one node.
pub struct Rounds {
    /// Asks.
    pub verifier: Arc<Verifier>,
    /// Only where PD is.
    pub role: Arc<PdRole>,
    /// Between two regions.
    pub every: Duration,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What came of it.
    pub counts: Arc<VerifyCounts>,
}

impl Rounds {
    /// Goes on until the node stops.
    pub async fn run(self) {
        // Where the next region begins.
        let mut at = Bytes::new();
        loop {
            self.clock.sleep(self.every).await;
            if !self.role.is_running() {
                continue;
            }
            // Without an answer it stays where it is.
            if let Some(region) = self.region_at(&at).await {
                self.one(region.id).await;
                at = region.range.end;
            }
        }
    }

    async fn region_at(&self, key: &Bytes) -> Option<Region> {
        let here = self.verifier.pd.regions(&KeyRange::new(key.clone(), Bytes::new()), 1).await.ok()?;
        here.into_iter().next().and_then(|status| Region::try_from(status.region?).ok())
    }

    async fn one(&self, region: RegionId) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let answer = match self.outcome(region).await {
            Ok(answer) => answer,
            // It may have ended since; otherwise its turn comes again.
            Err(error) => {
                count(&self.counts.incomplete);
                return tracing::info!(region = region.0, %error, "a region was not verified");
            }
        };
        let silent: Vec<_> = answer.replicas.iter().filter(|r| !r.answered).map(|r| (r.store_id, &r.trouble)).collect();
        match answer.outcome() {
            VerifyOutcome::Equal => {
                count(&self.counts.equal);
                tracing::debug!(region = region.0, index = answer.index, "the replicas of a region hold the same");
            }
            VerifyOutcome::Incomplete => {
                count(&self.counts.incomplete);
                tracing::info!(region = region.0, ?silent, "not all replicas of a region could be verified");
            }
            VerifyOutcome::Differs => {
                count(&self.counts.differs);
                let (index, differences) = (answer.index, &answer.differences);
                tracing::error!(region = region.0, index, ?differences, ?silent, "REPLICAS OF A REGION DIFFER");
            }
        }
    }

    async fn outcome(&self, region: RegionId) -> Result<VerifyRegionResponse, PdError> {
        let wait_ms = WAIT_MAX.as_millis() as u64;
        let mut request = VerifyRegionRequest { region_id: region.0, mark: 0, wait_ms };
        for _ in 1..LOOKS_AT_MOST {
            let answer = self.verifier.verify(&request).await?;
            if answer.ended {
                return Ok(answer);
            }
            request.mark = answer.mark;
        }
        self.verifier.verify(&request).await
    }
}
