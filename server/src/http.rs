//! The HTTP port: is the node well (`/healthz`), numbers for Prometheus (`/metrics`), a page for people (`/`).

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
use proto::wire::{ClusterStatusResponse, RegionStatus, StoreStatus};

use crate::process::Server;

/// The routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/", get(page))
        .with_state(server)
}

async fn health(State(server): State<Arc<Server>>) -> impl IntoResponse {
    match server.serves_sql() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting: this node has not found its cluster yet\n"),
    }
}

async fn metrics(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], exposition(&server))
}

/// Prometheus' text format.
fn exposition(server: &Server) -> String {
    let regions = server.node.replicas();
    let leads =
        regions.iter().filter(|r| Some(r.leader.unwrap_or_default().store_id) == server.node.store().map(|s| s.0));
    let (counters, mut out) = (server.door.counters(), String::new());
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut number = |name: &str, kind: &str, help: &str, value: u64| {
        // A String takes everything.
        let _ = write!(out, "# HELP flaredb_{name} {help}\n# TYPE flaredb_{name} {kind}\nflaredb_{name} {value}\n");
    };
    number("up", "gauge", "1 when the node serves SQL.", server.serves_sql().into());
    number("sql_sessions", "gauge", "Open sessions.", server.door.open_sessions() as u64);
    number("sql_connections_total", "counter", "Connections accepted since the start.", load(&counters.connections));
    number(
        "sql_statements_total",
        "counter",
        "Query and Execute messages since the start.",
        load(&counters.statements),
    );
    number("sql_errors_total", "counter", "Statements that failed since the start.", load(&counters.errors));
    number("regions", "gauge", "Replicas on this store.", regions.len() as u64);
    number("region_leaders", "gauge", "Regions this store leads.", leads.count() as u64);
    number(
        "raft_messages_dropped_total",
        "counter",
        "Raft messages that found their queue full.",
        server.streams.dropped(),
    );
    number("background_tasks", "gauge", "Background tasks that run.", server.tasks.len() as u64);
    out
}

async fn page(State(server): State<Arc<Server>>) -> Html<String> {
    let cluster = server.cluster_status().await;
    Html(render(cluster.as_ref().map_err(String::clone), &server.node.replicas()))
}

fn render(cluster: Result<&ClusterStatusResponse, String>, regions: &[RegionStatus]) -> String {
    let mut out = String::from(
        "<!doctype html><meta charset=utf-8><title>FlareDB</title>\
         <style>body{font:14px sans-serif;margin:2em}td,th{padding:2px 12px 2px 0;text-align:left}</style><h1>FlareDB</h1>",
    );
    match cluster {
        Err(reason) => out += &format!("<p>The cluster cannot be asked right now: {}</p>", escape(&reason)),
        Ok(status) => {
            out += &format!(
                "<p>Cluster {:016x}: {} regions, {} without a leader. PD: store {}, term {}.</p>",
                status.cluster_id,
                status.regions,
                status.regions_without_leader,
                status.pd_leader.unwrap_or_default().store_id,
                status.pd_term
            );
            out += &stores_table(&status.stores);
        }
    }
    out += "<h2>Replicas on this node</h2><table><tr><th>region<th>leader's store<th>term<th>applied<th>committed";
    for r in regions {
        let (id, leader) = (r.region.as_ref().map_or(0, |r| r.id), r.leader.unwrap_or_default().store_id);
        out += &format!("<tr><td>{id}<td>{leader}<td>{}<td>{}<td>{}", r.term, r.applied_index, r.committed_index);
    }
    out + "</table>"
}

fn stores_table(stores: &[StoreStatus]) -> String {
    let rows = stores.iter().map(|status| {
        let store = status.store.clone().unwrap_or_default();
        let (address, sql) = (escape(&store.address), escape(&store.sql_address));
        let silent = status.silent_ms;
        format!("<tr><td>{}<td>{address}<td>{sql}<td>{}<td>{}<td>{silent} ms", store.id, status.regions, status.leaders)
    });
    let head = "<h2>Stores</h2><table><tr><th>id<th>address<th>SQL<th>replicas<th>leaders<th>silent for";
    format!("{head}{}</table>", rows.collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::wire::Store;

    #[test]
    fn the_page_shows_what_there_is_and_escapes_it() {
        let store = Store { id: 1, address: "<b>".into(), ..Default::default() };
        let stores = vec![StoreStatus { store: Some(store), silent_ms: 5, ..Default::default() }];
        let status = ClusterStatusResponse { stores, regions: 4, ..Default::default() };
        let page = render(Ok(&status), &[RegionStatus { term: 3, ..Default::default() }]);
        assert!(page.contains("&lt;b&gt;") && page.contains("4 regions") && page.contains("<td>3<td>"), "{page}");
        assert!(render(Err("no PD".into()), &[]).contains("no PD"));
    }
}
