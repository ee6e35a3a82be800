//! `flaredb demo`: a whole cluster in one process.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, ensure};
use clap::Args;
use futures::future::{join_all, try_join_all};

use super::start::{Ending, runtime};
use crate::{
    config::{NodeSettings, StartOptions, resolve},
    logging::{self, LogOptions},
    process::Server,
};

/// More nodes in one process prove nothing more.
const NODES_MAX: u16 = 9;

/// The nodes' ports stand at fixed distances, so that a kept data directory finds its addresses again.
const GRPC_PORTS_AFTER_SQL: u16 = 100;
/// See [`GRPC_PORTS_AFTER_SQL`].
const HTTP_PORTS_AFTER_SQL: u16 = 200;

/// Flags of `flaredb demo`.
#[derive(Args, Debug)]
pub struct DemoOptions {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Keeps the data there; without it the data goes when the demo ends.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The first node's SQL port; the others' follow it, their gRPC ports are 100 and HTTP ports 200 above.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5433")]
    sql_listen: String,
    #[command(flatten)]
    log: LogOptions,
}

/// Runs the cluster until it is told to end.
pub fn run(options: DemoOptions) -> anyhow::Result<()> {
    logging::start(&options.log)?;
    let first = resolve("--sql-listen", &options.sql_listen)?;
    let (data_dir, _temporary) = match options.data_dir {
        Some(dir) => (dir, None),
        None => {
            let temporary = TemporaryDir::make()?;
            (temporary.0.clone(), Some(temporary))
        }
    };
    let nodes = settle(first, options.nodes, &data_dir)?;
    runtime()?.block_on(cluster(nodes, first))
}

fn settle(first: SocketAddr, nodes: u16, data_dir: &std::path::Path) -> anyhow::Result<Vec<NodeSettings>> {
    let last = first.port().checked_add(HTTP_PORTS_AFTER_SQL + nodes);
    ensure!(first.port() > 0 && last.is_some(), "--sql-listen {first}: a port between 1 and 65000 is needed");
    let at = |offset: u16| SocketAddr::new(first.ip(), first.port() + offset).to_string();
    let join: Vec<_> = (0..nodes).map(|n| at(GRPC_PORTS_AFTER_SQL + n)).collect();
    let node = |n: u16| {
        let options = StartOptions {
            data_dir: Some(data_dir.join(format!("node{}", n + 1))),
            listen: Some(at(GRPC_PORTS_AFTER_SQL + n)),
            sql_listen: Some(at(n)),
            http_listen: Some(at(HTTP_PORTS_AFTER_SQL + n)),
            join: Some(join.clone()),
            ..Default::default()
        };
        options.settle()
    };
    (0..nodes).map(node).collect()
}

async fn cluster(nodes: Vec<NodeSettings>, first: SocketAddr) -> anyhow::Result<()> {
    let mut ending = Ending::listen()?;
    let mut servers: Vec<Arc<Server>> = Vec::new();
    for settings in nodes {
        servers.push(Server::open(settings).await?);
    }
    tokio::select! {
        started = try_join_all(servers.iter().map(|server| server.start())) => drop(started?),
        () = ending.asked() => return Ok(()),
    }
    let port = first.port();
    println!(
        "FlareDB runs with {} nodes. Connect with:\n\n    psql -h {} -p {port} -U postgres\n",
        servers.len(),
        first.ip()
    );
    println!("The cluster as the nodes see it:  http://{}:{}/", first.ip(), port + HTTP_PORTS_AFTER_SQL);
    println!("Ctrl-C ends it.");
    ending.asked().await;
    join_all(servers.iter().map(|server| server.door.drain(std::time::Duration::ZERO))).await;
    Ok(())
}

/// Removed when dropped.
struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn make() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("flaredb-demo-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(TemporaryDir(path))
    }
}
impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("flaredb: {} could not be removed: {error}", self.0.display());
        }
    }
}
