//! Which crate may know which.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;
use tests::source;

use super::none;

/// Crate → workspace crates it may depend on, tests included. `sim` may see all but `server`.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("raftstore", &["proto"]),
    ("kv", &["proto", "raftstore"]),
    ("pd", &["proto"]),
    ("node", &["proto", "raftstore", "kv", "pd"]),
    ("sql", &["proto", "kv"]),
    ("history", &[]),
    ("server", &["proto", "raftstore", "kv", "pd", "node", "sql", "history"]),
    ("sim", &["proto", "raftstore", "kv", "pd", "node", "sql", "history"]),
    ("tests", &["proto", "raftstore", "kv", "pd", "node", "sql", "history", "server", "sim"]),
];

/// Outside crates that only the named crates may link, and why.
const WALLS: &[(&str, &[&str], &str)] = &[
    (
        "datafusion",
        &["sql", "server"],
        "the store, its simulator and everything under them build in seconds without it",
    ),
    ("arrow", &["sql", "server"], "rows are bytes below sql"),
    ("pgwire", &["server"], "only server knows the PostgreSQL wire"),
    ("tonic", &["server", "tests"], "only server has sockets, and tests are clients"),
    ("axum", &["server"], "only server has sockets"),
    ("rocksdb", &["raftstore"], "one door to the disk"),
    ("raft-engine", &["raftstore"], "one door to the disk"),
    ("raft", &["raftstore"], "nobody else knows how regions agree"),
];

fn metadata() -> Vec<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(source::root())
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo prints JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn name(v: &Value) -> String {
    v["name"].as_str().expect("a name").to_string()
}

fn dependencies(package: &Value) -> &Vec<Value> {
    package["dependencies"].as_array().expect("dependencies")
}

fn packages() -> BTreeMap<String, Vec<String>> {
    metadata().iter().map(|p| (name(p), dependencies(p).iter().map(name).collect())).collect()
}

#[test]
fn crates_point_down() {
    let packages = packages();
    let mut findings = Vec::new();
    for (package, dependencies) in &packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == package) else {
            findings.push(format!("{package} is not in the drawing: add it to ARROWS and to ARCHITECTURE.md"));
            continue;
        };
        let inside = dependencies.iter().filter(|d| packages.contains_key(*d));
        findings
            .extend(inside.filter(|d| !allowed.contains(&d.as_str())).map(|d| format!("{package} must not know {d}")));
    }
    none("arrows between crates", findings);
}

#[test]
fn walls_hold() {
    let mut findings = Vec::new();
    for (package, dependencies) in packages() {
        for (wall, allowed, why) in WALLS {
            if dependencies.iter().any(|d| d == wall) && !allowed.contains(&package.as_str()) {
                findings.push(format!("{package} must not link {wall}: {why}"));
            }
        }
    }
    none("walls", findings);
}

/// `-p sim` builds in seconds; the tests of the workspace have SQL in the simulator all the same.
#[test]
fn the_simulator_has_sql_on_demand() {
    let all = metadata();
    let dependency = |from: &str, to: &str| {
        let package = all.iter().find(|p| name(p) == from).unwrap_or_else(|| panic!("no crate {from}"));
        dependencies(package).iter().find(|d| name(d) == to).unwrap_or_else(|| panic!("{from} needs {to}")).clone()
    };
    assert_eq!(dependency("sim", "sql")["optional"], true, "sim links sql only with its feature `sql`");
    let features = dependency("tests", "sim")["features"].clone();
    assert!(
        features.as_array().is_some_and(|features| features.iter().any(|f| f == "sql")),
        "tests turns sim's feature `sql` on: without it the suites in SQL are left out without a word"
    );
}
