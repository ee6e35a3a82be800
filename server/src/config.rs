//! What a node is told: flags of `flaredb start`, over a TOML file, over defaults.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;

/// Sessions a node accepts. A session is a task and some buffers, so the bound is about the memory of their
/// queries; PostgreSQL's default is 100 because it forks.
pub const MAX_CONNECTIONS: usize = 1000;

/// Regions for user tables that a new cluster starts with: one a node in the usual cluster of three.
pub const USER_REGIONS: u32 = 3;

/// Seconds between two regions whose replicas are compared: a thousand regions in most of a day, and little to read.
pub const VERIFY_EVERY_S: u64 = 60;

/// Longest `--gc-retention`, seconds: every version of a hot row is read past until then.
pub const GC_RETENTION_MAX_S: u64 = 30 * 24 * 60 * 60;

/// Flags of `start`; the same names are the keys of `--config`. A flag wins over the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StartOptions {
    /// Where everything is kept; one directory a node. Made when missing.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// gRPC: other nodes and tools [default: 127.0.0.1:26257]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// PostgreSQL clients [default: 127.0.0.1:5433]
    #[arg(long, value_name = "HOST:PORT")]
    pub sql_listen: Option<String>,
    /// /healthz, /metrics and a status page [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub http_listen: Option<String>,
    /// The founders' addresses, the same list on every founder; a node that is not in it joins their cluster.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub join: Option<Vec<String>>,
    /// The address other nodes reach this one at, when it is not --listen.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Allow listening beyond loopback without TLS: whoever reaches the ports can do anything.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Certificates of the node (comes with the security issue).
    #[arg(long, value_name = "DIR")]
    pub certs_dir: Option<PathBuf>,
    /// Sessions at most; more are refused with 53300 [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Regions for user tables that a new cluster starts with [default: 3]
    #[arg(long, value_name = "N")]
    pub user_regions: Option<u32>,
    /// Where this node is, for replicas to be spread: of region, zone, rack and host those there are.
    #[arg(long, value_name = "KEY=VALUE,…", value_delimiter = ',')]
    pub labels: Option<Vec<String>>,
    /// Seconds of silence after which a node's replicas are made anew elsewhere; the same on every node [default: 1800]
    #[arg(long, value_name = "SECONDS")]
    pub down_after: Option<u64>,
    /// MiB above which a region is split; the same on every node [default: 96]
    #[arg(long, value_name = "MIB")]
    pub split_size: Option<u64>,
    /// Seconds that old versions of rows can be read for at least; the same on every node [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub gc_retention: Option<u64>,
    /// While this node is PD it compares the replicas of one region every so many seconds; 0: never [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub verify_every: Option<u64>,
}

/// What a node runs with, checked.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// gRPC.
    pub listen: SocketAddr,
    /// PostgreSQL clients.
    pub sql_listen: SocketAddr,
    /// HTTP.
    pub http_listen: SocketAddr,
    /// What other nodes call.
    pub advertise: String,
    /// The founders.
    pub join: Vec<String>,
    /// Sessions at most.
    pub max_connections: usize,
    /// For founding.
    pub user_regions: u32,
    /// Where replicas go.
    pub placement: Placement,
    /// Between two regions whose replicas are compared; zero: never.
    pub verify_every: Duration,
}

/// What a node knows of where replicas go: where it stands itself, and the rules it would have as PD.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Of this node.
    pub labels: BTreeMap<String, String>,
    /// Seconds.
    pub down_after: u64,
    /// MiB.
    pub split_size: u64,
    /// Seconds.
    pub gc_retention: u64,
}

impl Placement {
    fn settle(
        labels: Vec<String>,
        down_after: Option<u64>,
        split_size: Option<u64>,
        gc_retention: Option<u64>,
    ) -> anyhow::Result<Placement> {
        let defaults = node::Rules::default();
        let known = &defaults.spread_over;
        let mut by_name = BTreeMap::new();
        for text in &labels {
            let (key, value) = text.split_once('=').with_context(|| format!("--labels {text:?} is not KEY=VALUE"))?;
            ensure!(known.iter().any(|k| k == key), "--labels {key:?}: the labels are {}", known.join(", "));
            ensure!(!value.is_empty(), "--labels {text:?} has no value");
            by_name.insert(key.to_string(), value.to_string());
        }
        let down_after = down_after.unwrap_or(defaults.down_after_ms / 1_000);
        // A restart, an election and a few lost heartbeats must fit in.
        ensure!(down_after >= 10, "--down-after must be 10 seconds or more");
        let split_size = split_size.unwrap_or(defaults.split_bytes >> 20);
        ensure!((1..=16_384).contains(&split_size), "--split-size must be between 1 and 16384 MiB");
        let gc_retention = gc_retention.unwrap_or(defaults.gc.retention_ms / 1_000);
        ensure!((1..=GC_RETENTION_MAX_S).contains(&gc_retention), "--gc-retention must be between 1 s and 30 days");
        Ok(Placement { labels: by_name, down_after, split_size, gc_retention })
    }

    /// As PD takes them.
    pub fn rules(&self) -> node::Rules {
        let split_bytes = self.split_size << 20;
        let down_after_ms = self.down_after * 1_000;
        let merge_bytes = split_bytes / node::MERGE_PART;
        let gc = node::GcRules::with_retention(self.gc_retention * 1_000);
        node::Rules { down_after_ms, split_bytes, merge_bytes, gc, ..node::Rules::default() }
    }
}

impl StartOptions {
    /// Reads `--config` and lays the flags over it.
    pub fn over_file(self, file: Option<&Path>) -> anyhow::Result<StartOptions> {
        let Some(path) = file else { return Ok(self) };
        let text = fs::read_to_string(path).with_context(|| format!("config file {}", path.display()))?;
        let base: StartOptions = toml::from_str(&text).with_context(|| format!("config file {}", path.display()))?;
        Ok(StartOptions {
            data_dir: self.data_dir.or(base.data_dir),
            listen: self.listen.or(base.listen),
            sql_listen: self.sql_listen.or(base.sql_listen),
            http_listen: self.http_listen.or(base.http_listen),
            join: self.join.or(base.join),
            advertise: self.advertise.or(base.advertise),
            insecure: self.insecure.or(base.insecure),
            certs_dir: self.certs_dir.or(base.certs_dir),
            max_connections: self.max_connections.or(base.max_connections),
            user_regions: self.user_regions.or(base.user_regions),
            labels: self.labels.or(base.labels),
            down_after: self.down_after.or(base.down_after),
            split_size: self.split_size.or(base.split_size),
            gc_retention: self.gc_retention.or(base.gc_retention),
            verify_every: self.verify_every.or(base.verify_every),
        })
    }

    /// Fills in defaults and checks that what is asked for is possible.
    pub fn settle(self) -> anyhow::Result<NodeSettings> {
        ensure!(
            self.certs_dir.is_none(),
            "--certs-dir: TLS is not there yet; without it a node listens on loopback, or anywhere with --insecure"
        );
        let data_dir = self.data_dir.context("--data-dir is missing: where should the data be kept?")?;
        let listen_text = self.listen.unwrap_or_else(|| "127.0.0.1:26257".into());
        let listen = resolve("--listen", &listen_text)?;
        let sql_listen = resolve("--sql-listen", self.sql_listen.as_deref().unwrap_or("127.0.0.1:5433"))?;
        let http_listen = resolve("--http-listen", self.http_listen.as_deref().unwrap_or("127.0.0.1:8080"))?;
        if !self.insecure.unwrap_or(false) {
            for (flag, address) in [("--listen", listen), ("--sql-listen", sql_listen), ("--http-listen", http_listen)]
            {
                ensure!(
                    address.ip().is_loopback(),
                    "{flag} {address} is reachable from other machines and TLS is not there yet: say --insecure if that is fine"
                );
            }
        }
        let advertise = match self.advertise {
            Some(address) => address,
            None if listen.ip() == IpAddr::from([0, 0, 0, 0]) || listen.ip() == IpAddr::from([0u16; 8]) => {
                bail!("--listen {listen} is every address of this machine: --advertise must say which one others use")
            }
            None => listen_text,
        };
        check_address("--advertise", &advertise)?;
        let join = self.join.context("--join is missing: the founders' addresses (a lone node names its own)")?;
        join.iter().try_for_each(|address| check_address("--join", address))?;
        let (max_connections, user_regions) =
            (self.max_connections.unwrap_or(MAX_CONNECTIONS), self.user_regions.unwrap_or(USER_REGIONS));
        ensure!(max_connections > 0, "--max-connections must be 1 or more");
        ensure!((1..=1000).contains(&user_regions), "--user-regions must be between 1 and 1000");
        let placement =
            Placement::settle(self.labels.unwrap_or_default(), self.down_after, self.split_size, self.gc_retention)?;
        Ok(NodeSettings {
            data_dir,
            listen,
            sql_listen,
            http_listen,
            advertise,
            join,
            max_connections,
            user_regions,
            placement,
            verify_every: Duration::from_secs(self.verify_every.unwrap_or(VERIFY_EVERY_S)),
        })
    }
}

/// `host:port` → the first address it has.
pub fn resolve(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = text.to_socket_addrs().with_context(|| format!("{flag} {text:?} is not HOST:PORT"))?;
    addresses.next().with_context(|| format!("{flag} {text:?} has no address"))
}

fn check_address(flag: &str, text: &str) -> anyhow::Result<()> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, p)| p.parse::<u16>().ok());
    ensure!(port.is_some_and(|p| p > 0), "{flag} {text:?} is not HOST:PORT");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(toml: &str) -> Result<StartOptions, String> {
        toml::from_str(toml).map_err(|e| e.to_string())
    }
    fn settle(toml: &str) -> Result<NodeSettings, String> {
        options(&format!("data-dir = 'd'\njoin = ['127.0.0.1:1']\n{toml}"))?.settle().map_err(|e| e.to_string())
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flaredb.toml");
        fs::write(&file, "data-dir = 'from-file'\nsql-listen = '127.0.0.1:1'\njoin = ['127.0.0.1:2']\n").unwrap();
        let flags = StartOptions { sql_listen: Some("127.0.0.1:7".into()), ..Default::default() };
        let settings = flags.over_file(Some(&file)).unwrap().settle().unwrap();
        assert_eq!((settings.data_dir, settings.sql_listen.port()), ("from-file".into(), 7));
        assert_eq!((settings.advertise.as_str(), settings.user_regions), ("127.0.0.1:26257", USER_REGIONS));
    }

    #[test]
    fn unknown_keys_and_types_are_refused_by_name() {
        assert!(options("data-dri = 'x'").unwrap_err().contains("data-dri"));
        assert!(options("max-connections = 'many'").unwrap_err().contains("max-connections"));
    }

    #[test]
    fn what_cannot_be_is_said_with_the_flag() {
        for (toml, said) in [
            ("listen = '0.0.0.0:1'", "--insecure"),
            ("listen = '0.0.0.0:1'\ninsecure = true", "--advertise"),
            ("sql-listen = 'nowhere'", "--sql-listen"),
            ("advertise = ':1'", "--advertise"),
            ("certs-dir = 'c'", "TLS"),
            ("max-connections = 0", "--max-connections"),
            ("user-regions = 0", "--user-regions"),
            ("labels = ['zone']", "KEY=VALUE"),
            ("labels = ['colour=red']", "zone"),
            ("down-after = 1", "--down-after"),
            ("split-size = 0", "--split-size"),
            ("gc-retention = 0", "--gc-retention"),
        ] {
            assert!(settle(toml).unwrap_err().contains(said), "{toml}");
        }
        assert!(settle("listen = '0.0.0.0:1'\ninsecure = true\nadvertise = 'db1:1'").is_ok());
        assert!(StartOptions::default().settle().unwrap_err().to_string().contains("--data-dir"));
    }
}
