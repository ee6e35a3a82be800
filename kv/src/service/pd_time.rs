//! Which timestamps PD can have issued.
//!
//! A timestamp from the future would push `max_ts`, and with it commits, beyond what later snapshots see. So a
//! store remembers the last timestamp it got from PD, and when; what lies beyond that and the time passed since
//! is asked of PD itself.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use proto::{Timestamp, wire};
use raftstore::Instant;

use crate::{Clock, Pd, PdError};

/// By how much PD's clock may have run ahead of ours since we asked it, without asking again. It bounds how far a forged
/// timestamp can push a commit into the future.
const SLACK: Duration = Duration::from_millis(20);

/// PD's time as this store knows it.
pub(super) struct PdTime {
    pd: Arc<dyn Pd>,
    clock: Arc<dyn Clock>,
    /// The newest timestamp seen, and when it was asked for.
    seen: RwLock<(Timestamp, Instant)>,
}

impl PdTime {
    pub(super) fn new(pd: Arc<dyn Pd>, clock: Arc<dyn Clock>) -> Self {
        PdTime { pd, clock, seen: RwLock::default() }
    }

    /// A timestamp after every one handed out before.
    pub(super) async fn fresh(&self) -> Result<Timestamp, PdError> {
        let asked = self.clock.now();
        let ts = self.pd.timestamp().await?;
        let mut seen = self.seen.write();
        if ts > seen.0 {
            *seen = (ts, asked);
        }
        Ok(ts)
    }

    /// Refuses a timestamp that PD cannot have issued.
    pub(super) async fn check(&self, ts: Timestamp) -> Result<Result<(), wire::BadTimestamp>, PdError> {
        if self.is_plausible(ts) {
            return Ok(Ok(()));
        }
        let fresh = self.fresh().await?;
        Ok(if ts <= fresh {
            Ok(())
        } else {
            let reason = format!("{ts} is in the future: PD is at {fresh}");
            Err(wire::BadTimestamp { ts: ts.0, reason })
        })
    }

    fn is_plausible(&self, ts: Timestamp) -> bool {
        let (seen, at) = *self.seen.read();
        if ts <= seen {
            return true;
        }
        let passed = self.clock.now().since(at) + SLACK;
        seen != Timestamp::ZERO && ts.physical_ms() <= seen.physical_ms() + passed.as_millis() as u64
    }
}
