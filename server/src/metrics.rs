//! `/metrics`: what the process, its store and, while it is here, PD have counted, in Prometheus' text format.
//!
//! Counters live where they are counted; what belongs to nobody's registry is put into a fresh one for the look.
//! raft-engine counts into a registry of the process, which the nodes of a `demo` share.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector};

use crate::process::Server;

/// All numbers of a node.
pub fn exposition(server: &Server) -> String {
    let look = Look::default();
    process(&look, server);
    if let Some(counts) = server.node.pd_counts() {
        pd(&look, &counts);
    }
    if let Some(counts) = server.node.verify_counts() {
        verified(&look, &counts);
    }
    if let Some(counts) = server.node.gc_counts() {
        collected(&look, &counts);
    }
    if let Some(counts) = server.node.past_reads() {
        past(&look, counts);
    }
    let mut families = look.0.gather();
    if server.node.store().is_some() {
        families.extend(server.node.store_handle().metrics().gather());
    }
    families.extend(prometheus::gather());
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        tracing::error!(%error, "the metrics cannot be written");
        String::new()
    })
}

fn process(look: &Look, server: &Server) {
    let counters = server.door.counters();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    look.gauge("up", "1 when the node serves SQL.", server.serves_sql().into());
    look.gauge("sql_sessions", "Open sessions.", server.door.open_sessions() as u64);
    look.counter("sql_connections_total", "Connections accepted.", load(&counters.connections));
    look.counter("sql_statements_total", "Query and Execute messages.", load(&counters.statements));
    look.counter("sql_errors_total", "Statements that failed.", load(&counters.errors));
    look.counter("raft_messages_dropped_total", "Raft messages that found no room.", server.streams.dropped());
    look.gauge("background_tasks", "Background tasks that run.", server.tasks.len() as u64);
}

fn pd(look: &Look, counts: &pd::Counts) {
    let running: Vec<_> = counts.operators_running.iter().map(|(rule, n)| (vec![*rule], *n)).collect();
    look.gauges("pd_operators_running", "Operators under way.", &["rule"], &running);
    let ended: Vec<_> = counts.operators_ended.iter().map(|((rule, how), n)| (vec![*rule, *how], *n)).collect();
    look.counters("pd_operators_total", "Operators that ended.", &["rule", "outcome"], &ended);
    look.counter("pd_timestamp_requests_total", "Requests for timestamps.", counts.timestamp_requests);
    look.counter("pd_timestamps_total", "Timestamps handed out.", counts.timestamps);
}

fn verified(look: &Look, counts: &node::verify::rounds::VerifyCounts) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let values = [
        (vec!["equal"], load(&counts.equal)),
        (vec!["differs"], load(&counts.differs)),
        (vec!["incomplete"], load(&counts.incomplete)),
    ];
    look.counters("verify_regions_total", "Regions compared by the slow pass.", &["outcome"], &values);
}

fn collected(look: &Look, counts: &node::gc::GcCounts) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let what = "Old versions and rollback records that this node has had deleted.";
    look.counter("gc_records_total", what, load(&counts.records));
    look.counter("gc_sweeps_total", "Walks over a region for old versions.", load(&counts.sweeps));
}

fn past(look: &Look, counts: &kv::PastReads) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let values = [
        (vec!["served"], load(&counts.served)),
        (vec!["behind"], load(&counts.behind)),
        (vec!["locked"], load(&counts.locked)),
    ];
    let what = "Requests to read the past from this store, which need not lead; served here, or left to the leader.";
    look.counters("past_reads_total", what, &["outcome"], &values);
}

/// One scrape. Names are this file's own and each is used once, so that nothing can fail.
#[derive(Default)]
struct Look(Registry);

type Values<'a> = [(Vec<&'a str>, u64)];

impl Look {
    fn enter<C: Collector + 'static>(&self, made: prometheus::Result<C>, fill: impl FnOnce(&C)) {
        let made = made.expect("a name that is valid");
        fill(&made);
        self.0.register(Box::new(made)).expect("a name that is there once");
    }

    fn gauge(&self, name: &str, help: &str, value: u64) {
        self.gauges(name, help, &[], &[(vec![], value)]);
    }

    fn counter(&self, name: &str, help: &str, value: u64) {
        self.counters(name, help, &[], &[(vec![], value)]);
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str], values: &Values<'_>) {
        self.enter(IntGaugeVec::new(opts(name, help), labels), |gauges| {
            values.iter().for_each(|(of, n)| gauges.with_label_values(of).set(*n as i64));
        });
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str], values: &Values<'_>) {
        self.enter(IntCounterVec::new(opts(name, help), labels), |counters| {
            values.iter().for_each(|(of, n)| counters.with_label_values(of).inc_by(*n));
        });
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("flaredb_{name}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pds_counts_are_written_by_rule_and_outcome() {
        let counts = pd::Counts {
            operators_running: [("balance-region", 2)].into(),
            operators_ended: [(("admin", "done"), 3)].into(),
            timestamp_requests: 4,
            timestamps: 90,
        };
        let look = Look::default();
        pd(&look, &counts);
        let text = TextEncoder::new().encode_to_string(&look.0.gather()).expect("text");
        for line in [
            "flaredb_pd_operators_running{rule=\"balance-region\"} 2",
            "flaredb_pd_operators_total{outcome=\"done\",rule=\"admin\"} 3",
            "flaredb_pd_timestamps_total 90",
            "# TYPE flaredb_pd_timestamp_requests_total counter",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
