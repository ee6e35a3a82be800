//! The HTTP port: is the node well (`/healthz`), numbers for Prometheus (`/metrics`), a page for people (`/`).

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
use proto::wire::{ClusterStatusResponse, RegionStatus, StoreStatus};

use crate::{metrics, process::Server};

/// The routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(numbers))
        .route("/", get(page))
        .with_state(server)
}

async fn health(State(server): State<Arc<Server>>) -> impl IntoResponse {
    match server.serves_sql() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting: this node has not found its cluster yet\n"),
    }
}

async fn numbers(State(server): State<Arc<Server>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::exposition(&server))
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
