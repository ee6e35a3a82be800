//! A real PostgreSQL on a loopback port: the oracle of what a statement should answer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Result;
use tokio_postgres::Client;

use crate::{cluster::connect, ports::Port};

/// The version whose behaviour FlareDB has; another one may answer otherwise.
pub const VERSION: &str = "15";

/// So many transactions end while one runs, at most, times ten: PostgreSQL remembers ten serializable transactions for each
/// connection that it could have. The reads of those that it has to summarise it forgets: it looks for them with
/// `finishedBefore` of the summary, which is no transaction's (`CheckTargetForConflictsIn` in predicate.c), and lets write skew
/// pass. Seen with 15.18: after 1,500 commits beside a transaction, not after 1,000, with the usual 100 connections. Whether it
/// came to that `pg_stat_slru` tells: blocks of `Serial`.
const CONNECTIONS_MAX: u32 = 2000;

/// A server with an empty database; it ends with this value.
pub struct Postgres {
    dir: tempfile::TempDir,
    port: Port,
}

impl Postgres {
    /// Starts a server with FlareDB's settings: UTF-8, collation C, time zone UTC.
    pub fn start() -> Postgres {
        let dir = tempfile::Builder::new().prefix("postgres-test-").tempdir().expect("temporary folder");
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(dir.path()).status().expect("chown runs");
            assert!(owned.success(), "there is a user postgres (apt-get install postgresql)");
        }
        let server = Postgres { dir, port: Port::reserve() };
        server.run("initdb", &["-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "-E", "UTF8"]);
        let log = server.dir.path().join("log").display().to_string();
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c timezone=UTC \
             -c max_connections={CONNECTIONS_MAX}",
            server.port.number()
        );
        server.run("pg_ctl", &["-l", &log, "-o", &options, "-w", "start"]);
        server
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.port.address()
    }

    /// For sessions whose deadlocks are found at once, so that no transaction waits a second beside thousands of others: the server
    /// would have to summarise those, and forgets what they have read.
    pub fn impatient(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres options='-c deadlock_timeout=10ms'", self.port.number())
    }

    /// Connects as postgres.
    pub async fn connect(&self) -> Result<Client> {
        connect(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port.number())).await
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = self.command(program, arguments).status();
        assert!(done.is_ok_and(|status| status.success()), "{program} of PostgreSQL {VERSION}");
    }

    /// The server refuses to run as root.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let program = programs().join(program);
        let mut command = match is_root() {
            true => {
                let mut command = Command::new("runuser");
                command.args(["-u", "postgres", "--"]).arg(program);
                command
            }
            false => Command::new(program),
        };
        command.arg("-D").arg(self.dir.path().join("data")).args(arguments);
        // What the server inherits it keeps open: it must not be a pipe that somebody reads to its end.
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl", &["-m", "immediate", "stop"]).status();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder of the server's programs: Debian's, or the one of the `pg_config` in PATH.
fn programs() -> PathBuf {
    let debian = Path::new("/usr/lib/postgresql").join(VERSION).join("bin");
    if fs::exists(debian.join("postgres")).is_ok_and(|exists| exists) {
        return debian;
    }
    let config = Command::new("pg_config").arg("--bindir").output();
    let found = config.ok().filter(|output| output.status.success());
    let output = found.expect("PostgreSQL's server is installed (apt-get install postgresql)");
    String::from_utf8_lossy(&output.stdout).trim().into()
}
