//! What a store counts: written by handles and drivers, read by whoever is asked for numbers. Cores count nothing.
//!
//! Counters and histograms are atomics, so that counting waits for nobody. What has a value only at an instant (leaders,
//! queues) is taken from the replicas' views when somebody looks ([`crate::StoreHandle::metrics`]). Regions are counted
//! by class and not one by one: a store may hold 10,000.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector, proto::MetricFamily,
};
use proto::{PD_REGION, RegionId, StoreId};

/// From a wake-up to a disk that is in trouble, seconds.
const SECONDS: &[f64] = &[1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// From one to as many as a store's regions.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0];
/// From an empty entry to a frame.
const BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// Region 1, and all others.
const CLASSES: [&str; 2] = ["meta", "user"];

fn class(region: RegionId) -> usize {
    usize::from(region != PD_REGION)
}

/// Of regions of one class.
pub(crate) struct Proposals {
    pub(crate) applied: IntCounter,
    pub(crate) refused: IntCounter,
    pub(crate) unknown: IntCounter,
    /// From the proposal to its effect on the leader.
    pub(crate) seconds: Histogram,
}

/// Of snapshots in one direction.
pub(crate) struct Transfers {
    pub(crate) running: IntGauge,
    pub(crate) done: IntCounter,
    pub(crate) failed: IntCounter,
    pub(crate) bytes: IntCounter,
}

/// What a store has done with snapshots since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Being sent.
    pub sending: u64,
    /// Being received.
    pub receiving: u64,
    /// Arrived whole at other stores.
    pub sent: u64,
    /// Arrived whole here.
    pub received: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// What is read off the replicas when somebody looks.
struct Instants {
    replicas: IntGaugeVec,
    leaders: IntGaugeVec,
    hibernating: IntGaugeVec,
    unapplied: IntGaugeVec,
    queues: IntGaugeVec,
}

/// The counters of one store.
pub struct Metrics {
    registry: Registry,
    proposals: [Proposals; 2],
    pub(crate) log_seconds: Histogram,
    pub(crate) log_regions: Histogram,
    pub(crate) log_bytes: Histogram,
    pub(crate) slow_score: IntGauge,
    pub(crate) apply_seconds: Histogram,
    pub(crate) applied_entries: [IntCounter; 2],
    pub(crate) sent: Transfers,
    pub(crate) received: Transfers,
    instants: Instants,
}

/// One replica, as it is counted.
pub(crate) struct Counted {
    pub(crate) region: RegionId,
    pub(crate) leads: bool,
    pub(crate) asleep: bool,
    /// Entries that are known to be committed and not applied.
    pub(crate) unapplied: u64,
}

impl Metrics {
    pub(crate) fn new(store: StoreId) -> Metrics {
        let labels = [("store".to_string(), store.0.to_string())].into();
        let registry = Registry::new_custom(None, Some(labels)).expect("a label that is valid");
        let made = Maker(&registry);
        let proposals = made.counters("proposals_total", "Proposals by outcome.", &["class", "outcome"]);
        let seconds = made.histograms(
            "propose_seconds",
            "From a proposal to its effect on the leader: log, quorum, apply.",
            SECONDS,
        );
        let of_class = |class| Proposals {
            applied: proposals.with_label_values(&[class, "applied"]),
            refused: proposals.with_label_values(&[class, "refused"]),
            unknown: proposals.with_label_values(&[class, "unknown"]),
            seconds: seconds.with_label_values(&[class]),
        };
        let entries = made.counters("applied_entries_total", "Entries applied by this store.", &["class"]);
        let running = made.gauges("snapshots_running", "Transfers under way.", &["direction"]);
        let ended = made.counters("snapshots_total", "Transfers that have ended.", &["direction", "outcome"]);
        let bytes = made.counters("snapshot_bytes_total", "Bytes of whole transfers.", &["direction"]);
        let transfers = |direction| Transfers {
            running: running.with_label_values(&[direction]),
            done: ended.with_label_values(&[direction, "done"]),
            failed: ended.with_label_values(&[direction, "failed"]),
            bytes: bytes.with_label_values(&[direction]),
        };
        Metrics {
            proposals: CLASSES.map(of_class),
            log_seconds: made.histogram("log_write_seconds", "One write of the Raft log, with its sync.", SECONDS),
            log_regions: made.histogram("log_write_regions", "Regions in one write of the Raft log.", COUNTS),
            log_bytes: made.histogram("log_write_bytes", "Bytes of entries in one write of the Raft log.", BYTES),
            slow_score: made.gauge("slow_score", "How slow the log's disk is, 0 to 100; from 50 on others lead."),
            apply_seconds: made.histogram("apply_seconds", "One round of applying, of all regions with work.", SECONDS),
            applied_entries: CLASSES.map(|class| entries.with_label_values(&[class])),
            sent: transfers("sent"),
            received: transfers("received"),
            instants: Instants {
                replicas: made.gauges("regions", "Replicas on this store.", &["class"]),
                leaders: made.gauges("region_leaders", "Regions this store leads.", &["class"]),
                hibernating: made.gauges("regions_hibernating", "Replicas that sleep.", &["class"]),
                unapplied: made.gauges("unapplied_entries", "Committed and not yet applied.", &["class"]),
                queues: made.gauges("queue_length", "What waits in the store.", &["queue"]),
            },
            registry,
        }
    }

    /// Of the class a region belongs to.
    pub(crate) fn proposals(&self, region: RegionId) -> &Proposals {
        &self.proposals[class(region)]
    }

    pub(crate) fn applied(&self, region: RegionId, entries: usize) {
        self.applied_entries[class(region)].inc_by(entries as u64);
    }

    /// What is so right now; `queues` by name.
    pub(crate) fn observe(&self, replicas: &[Counted], queues: &[(&str, usize)]) {
        let Instants { replicas: all, leaders, hibernating, unapplied, queues: lengths } = &self.instants;
        for (of, name) in CLASSES.iter().enumerate() {
            let mine = || replicas.iter().filter(|r| class(r.region) == of);
            let set = |gauge: &IntGaugeVec, n: u64| gauge.with_label_values(&[name]).set(n as i64);
            set(all, mine().count() as u64);
            set(leaders, mine().filter(|r| r.leads).count() as u64);
            set(hibernating, mine().filter(|r| r.asleep).count() as u64);
            set(unapplied, mine().map(|r| r.unapplied).sum());
        }
        queues.iter().for_each(|(name, length)| lengths.with_label_values(&[name]).set(*length as i64));
    }

    /// Everything, in the order of names.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }

    /// What was done with snapshots.
    pub fn snapshots(&self) -> SnapshotCounts {
        let Metrics { sent, received, .. } = self;
        let running = |t: &Transfers| t.running.get().max(0) as u64;
        SnapshotCounts {
            sending: running(sent),
            receiving: running(received),
            sent: sent.done.get(),
            received: received.done.get(),
            bytes: sent.bytes.get() + received.bytes.get(),
        }
    }
}

impl Transfers {
    /// A transfer begins.
    pub(crate) fn begin(&self) {
        self.running.inc();
    }

    /// It has ended; `bytes` when all of it arrived.
    pub(crate) fn end(&self, bytes: Option<u64>) {
        self.running.dec();
        match bytes {
            Some(bytes) => {
                self.done.inc();
                self.bytes.inc_by(bytes);
            }
            None => self.failed.inc(),
        }
    }
}

/// Makes metrics and enters them; names and labels are this file's own, so that nothing can fail.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn enter<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("a name that is valid");
        self.0.register(Box::new(made.clone())).expect("a name that is there once");
        made
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.enter(IntCounterVec::new(opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.enter(IntGauge::with_opts(opts(name, help)))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.enter(IntGaugeVec::new(opts(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.enter(HistogramVec::new(opts, &["class"]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.enter(Histogram::with_opts(opts))
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("flaredb_store_{name}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_counted_by_class_and_transfers_by_outcome() {
        let metrics = Metrics::new(StoreId(3));
        let counted = |region, leads| Counted { region: RegionId(region), leads, asleep: !leads, unapplied: 2 };
        metrics.observe(&[counted(1, true), counted(5, true), counted(6, false)], &[("requests", 7)]);
        metrics.proposals(RegionId(9)).applied.inc();
        metrics.sent.begin();
        metrics.sent.end(Some(100));
        metrics.sent.begin();
        metrics.sent.end(None);
        metrics.received.begin();
        let counts = SnapshotCounts { receiving: 1, sent: 1, bytes: 100, ..SnapshotCounts::default() };
        assert_eq!(metrics.snapshots(), counts);
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.gather()).expect("text");
        for line in [
            "flaredb_store_regions{class=\"user\",store=\"3\"} 2",
            "flaredb_store_region_leaders{class=\"meta\",store=\"3\"} 1",
            "flaredb_store_regions_hibernating{class=\"user\",store=\"3\"} 1",
            "flaredb_store_unapplied_entries{class=\"user\",store=\"3\"} 4",
            "flaredb_store_queue_length{queue=\"requests\",store=\"3\"} 7",
            "flaredb_store_proposals_total{class=\"user\",outcome=\"applied\",store=\"3\"} 1",
            "flaredb_store_snapshots_total{direction=\"sent\",outcome=\"failed\",store=\"3\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
