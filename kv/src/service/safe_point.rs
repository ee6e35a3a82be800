//! How old the timestamps may be that this store serves.
//!
//! PD says from when on old versions are kept. Until it knows that a store refuses what is older, nothing goes that the
//! store might still serve; a store trusts what it was told for as long as PD promised, and then asks again.
//!
//! ```text
//!   read   snapshot of the engine ─► is its timestamp at or above what PD said, and does that still hold? ─► answer
//!   write  announced ─► the same question ─► proposed ─► applied
//!          └──────── whoever looks for the last locks below a safe point waits for those announced below it
//! ```
//!
//! The question comes after the snapshot: what was still there when it was asked was there before.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use proto::{Timestamp, wire};
use raftstore::Instant;
use tokio::sync::Notify;

use crate::{Clock, Pd, PdError};

/// A lease is taken to be shorter by this part, for clocks that drift.
const DRIFT_DIVISOR: u32 = 20;

/// What a store knows of the safe point.
pub(super) struct SafePoint {
    pd: Arc<dyn Pd>,
    clock: Arc<dyn Clock>,
    refuse_below: AtomicU64,
    collect_below: AtomicU64,
    /// Until then nothing goes that is seen at `refuse_below`; of the monotonic clock, nanoseconds.
    good_until: AtomicU64,
    /// One asks for all.
    asking: tokio::sync::Mutex<()>,
    writing: Arc<Writing>,
}

/// Prewrites under way, by their start_ts.
#[derive(Default)]
struct Writing {
    begun: Mutex<BTreeMap<Timestamp, usize>>,
    ended: Notify,
}

impl SafePoint {
    pub(super) fn new(pd: Arc<dyn Pd>, clock: Arc<dyn Clock>) -> Self {
        SafePoint {
            pd,
            clock,
            refuse_below: AtomicU64::default(),
            collect_below: AtomicU64::default(),
            good_until: AtomicU64::default(),
            asking: tokio::sync::Mutex::default(),
            writing: Arc::default(),
        }
    }

    /// Reads, and writes by start_ts, are refused below it.
    pub(super) fn refuse_below(&self) -> Timestamp {
        Timestamp(self.refuse_below.load(Ordering::SeqCst))
    }

    /// Versions that nobody at or above it sees may go.
    pub(super) fn collect_below(&self) -> Timestamp {
        Timestamp(self.collect_below.load(Ordering::SeqCst))
    }

    /// PD said so, when it was asked at `asked` or later.
    pub(super) fn granted(&self, asked: Instant, grant: &wire::SafePointGrant) {
        // In this order: whoever sees the lease sees what it is on.
        self.refuse_below.fetch_max(grant.refuse_below, Ordering::SeqCst);
        self.collect_below.fetch_max(grant.collect_below, Ordering::SeqCst);
        let length = Duration::from_millis(grant.lease_ms);
        let until = asked + (length - length / DRIFT_DIVISOR);
        self.good_until.fetch_max(until.0.as_nanos() as u64, Ordering::SeqCst);
    }

    /// PD has made this safe point durable.
    pub(super) fn raise(&self, to: Timestamp) {
        self.refuse_below.fetch_max(to.0, Ordering::SeqCst);
    }

    /// Whether what is seen at `ts` is still there, as far as an engine snapshot taken before shows it.
    pub(super) async fn check(&self, ts: Timestamp) -> Result<Result<(), wire::SnapshotTooOld>, PdError> {
        if !self.holds() {
            self.ask().await?;
        }
        let safe_point = self.refuse_below();
        Ok(if ts >= safe_point { Ok(()) } else { Err(wire::SnapshotTooOld { ts: ts.0, safe_point: safe_point.0 }) })
    }

    fn holds(&self) -> bool {
        (self.clock.now().0.as_nanos() as u64) < self.good_until.load(Ordering::SeqCst)
    }

    async fn ask(&self) -> Result<(), PdError> {
        let _asking = self.asking.lock().await;
        if self.holds() {
            return Ok(());
        }
        let asked = self.clock.now();
        let grant = self.pd.safe_point().await?;
        self.granted(asked, &grant);
        if self.holds() {
            Ok(())
        } else {
            Err(PdError::Unavailable("its answer about the safe point came too late".into()))
        }
    }

    /// A prewrite begins, and has not been checked yet.
    pub(super) fn begin_write(&self, start_ts: Timestamp) -> Begun {
        *self.writing.begun.lock().entry(start_ts).or_default() += 1;
        Begun { writing: self.writing.clone(), start_ts }
    }

    /// Completes when no prewrite below `safe_point` is under way. Later ones are refused, once it is known here.
    pub(super) async fn writes_ended(&self, safe_point: Timestamp) {
        loop {
            let ended = self.writing.ended.notified();
            let mut ended = std::pin::pin!(ended);
            // Registered before the look, so that an end in between is not missed.
            ended.as_mut().enable();
            if self.writing.begun.lock().first_key_value().is_none_or(|(oldest, _)| *oldest >= safe_point) {
                return;
            }
            ended.await;
        }
    }
}

/// A prewrite under way.
pub(super) struct Begun {
    writing: Arc<Writing>,
    start_ts: Timestamp,
}

impl Drop for Begun {
    fn drop(&mut self) {
        {
            let mut begun = self.writing.begun.lock();
            if let Some(count) = begun.get_mut(&self.start_ts) {
                *count -= 1;
                if *count == 0 {
                    begun.remove(&self.start_ts);
                }
            }
        }
        self.writing.ended.notify_waiters();
    }
}
