//! Timestamps: allocate under the window, extend it durably, confirm behind.

use proto::{Timestamp, wire::TimestampResponse};

use super::{Failure, Service};
use crate::{
    MetaError, Now, keys,
    tso::{MAX_COUNT, Shortage},
};

impl Service {
    /// `count` timestamps without waiting: only while the window lasts and the lease holds. `None`: use [`Service::call`].
    pub fn try_timestamps(&self, now: Now, count: u32) -> Option<Timestamp> {
        if !(1..=MAX_COUNT).contains(&count) || self.has_failed() {
            return None;
        }
        let last = {
            let mut state = self.state.lock();
            let witness = state.cluster.clock_witness(now);
            state.tso.allocate(now.wall_ms, witness, count).ok()?
        };
        // Behind the allocation: at this instant nobody else can have handed out a later one.
        self.meta.holds_lease().then_some(last)
    }

    pub(super) async fn timestamps(&self, now: Now, count: u32) -> Result<TimestampResponse, Failure> {
        if !(1..=MAX_COUNT).contains(&count) {
            return Err(Failure::Refused(format!("{count} timestamps were asked for, 1 to {MAX_COUNT} are given")));
        }
        let last = self.allocate(now, count).await?;
        Ok(TimestampResponse { last: last.0, count })
    }

    /// Allocates, extending the window when it must. Not confirmed yet.
    pub(super) async fn allocate(&self, now: Now, count: u32) -> Result<Timestamp, Failure> {
        loop {
            let shortage = {
                let mut state = self.state.lock();
                let witness = state.cluster.clock_witness(now);
                match state.tso.allocate(now.wall_ms, witness, count) {
                    Ok(last) => return Ok(last),
                    Err(shortage) => shortage,
                }
            };
            match shortage {
                Shortage::ClocksUnknown => {
                    let what = "the queue of timestamps (a majority of the stores has not reported its clock yet)";
                    return Err(Failure::Busy(what.into()));
                }
                Shortage::Extend(bound_ms) => self.extend(bound_ms).await?,
            }
        }
    }

    /// Extends the window in time for a PD that is in use. To be called a few times within
    /// [`crate::tso::REFRESH_BELOW_MS`].
    pub async fn tick(&self, now: Now) -> Result<(), MetaError> {
        let wanted = {
            let mut state = self.state.lock();
            let witness = state.cluster.clock_witness(now);
            state.tso.refresh(now.wall_ms, witness)
        };
        match wanted {
            Some(bound_ms) => self.extend(bound_ms).await,
            None => Ok(()),
        }
    }

    async fn extend(&self, bound_ms: u64) -> Result<(), MetaError> {
        let _writer = self.writer.lock().await;
        if self.state.lock().tso.bound_ms() >= bound_ms {
            return Ok(());
        }
        if self.persists_window() {
            self.write(vec![(keys::window(), Some(keys::encode_u64(bound_ms)))]).await?;
        }
        self.state.lock().tso.extended(bound_ms);
        Ok(())
    }

    #[cfg(not(feature = "planted-bugs"))]
    fn persists_window(&self) -> bool {
        true
    }
    #[cfg(feature = "planted-bugs")]
    fn persists_window(&self) -> bool {
        self.settings.planted != Some(crate::Planted::TsoWindowNotPersisted)
    }
}
