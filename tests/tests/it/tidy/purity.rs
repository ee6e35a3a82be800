//! Decisions live in cores without clock, randomness, disk, socket, `async` or lock.

use tests::source;

use super::none;

/// Folders and files that hold only decisions (design: pure cores, thin drivers).
const PURE: &[&str] = &[
    "proto/src/",
    "history/src/",
    "raftstore/src/region/",
    "raftstore/src/store/",
    "raftstore/src/keys.rs",
    "raftstore/src/verify/tree.rs",
    "kv/src/codec",
    "kv/src/mvcc",
    "kv/src/txn/",
    "kv/src/latch",
    "kv/src/row_locks",
    "kv/src/deadlock",
    "kv/src/gc.rs",
    "kv/src/client/held",
    "kv/src/client/reads.rs",
    "kv/src/space/keys.rs",
    "kv/src/space/lww.rs",
    "kv/src/client/region_map",
    "kv/src/client/committer",
    "pd/src/cluster",
    "pd/src/tso",
    "pd/src/ids.rs",
    "pd/src/catalog_lease.rs",
    "pd/src/gateways.rs",
    "pd/src/safe_point.rs",
    "pd/src/after_loss.rs",
    "pd/src/checker/",
    "pd/src/operator/",
    "pd/src/placement.rs",
    "pd/src/planner.rs",
    "pd/src/rules.rs",
    "pd/src/scheduler/",
    "pd/src/survey.rs",
    "node/src/founding/mod.rs",
    "node/src/eventual/queue.rs",
    "node/src/recovery/plan.rs",
    "sql/src/types/",
    "sql/src/catalog/sequence.rs",
    "sql/src/codec",
    "sql/src/statement/",
    "sql/src/ddl/borders.rs",
    "sql/src/ddl/check.rs",
    "sql/src/ddl/locks.rs",
    "sql/src/table_locks/mode.rs",
    "sql/src/table_locks/record.rs",
    "server/src/pgwire/frontend.rs",
    "server/src/pgwire/backend.rs",
];

/// What a core has no use for.
const IMPURE: &[&str] = &[
    "async fn",
    "async move",
    "async {",
    ".await",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "tokio::",
    "rand::",
    "Mutex",
    "RwLock",
    "std::env",
];

/// Calls that only drivers make: what, where it is allowed, what to do instead.
const DRIVER_CALLS: &[(&str, &[&str], &str)] = &[
    (
        "Instant::now",
        &["server/src/", "kv/src/local/", "tests/src/", "tests/tests/", "bench/"],
        "take the time from kv::Clock or the event",
    ),
    ("SystemTime::now", &["server/src/", "tests/tests/", "bench/"], "take the time from kv::Clock"),
    ("thread::sleep", &[], "wait for a condition with a deadline"),
    ("rand::rng", &[], "take a seed"),
    ("from_os_rng", &["server/src/"], "take a seed"),
    ("thread_rng", &[], "take a seed"),
    (
        "tokio::time::sleep",
        &["server/src/", "kv/src/local/", "tests/sim/src/runtime/", "bench/"],
        "sleep through kv::Clock",
    ),
    (
        "tokio::spawn",
        &["server/src/", "tests/sim/src/runtime/", "tests/src/", "tests/tests/", "bench/"],
        "spawn through kv::Spawn",
    ),
    ("spawn_blocking", &["server/src/"], "give the work to a driver thread: it stops time in the simulator"),
    ("std::thread", &["server/src/", "raftstore/src/driver", "tests/", "bench/"], "threads belong to drivers"),
    ("std::net", &["server/src/", "tests/", "bench/"], "sockets belong to server"),
    (
        "std::fs",
        &[
            "server/src/",
            "raftstore/src/engine/",
            "raftstore/src/log/",
            "tests/",
            "bench/",
            "proto/build.rs",
            "server/build.rs",
        ],
        "files belong to engines and server",
    ),
];

#[test]
fn cores_are_pure() {
    let mut findings = Vec::new();
    let files = source::rust_files();
    for pure in PURE {
        let mut any = false;
        for file in files.iter().filter(|f| f.path.starts_with(pure)) {
            any = true;
            let code = file.code();
            findings.extend(
                IMPURE
                    .iter()
                    .flat_map(|word| lines_with(&code, word).map(move |n| (n, word)))
                    .map(|(n, word)| format!("{}:{n}: `{word}` in a core", file.path)),
            );
        }
        if !any {
            findings.push(format!("{pure} is listed as a core and does not exist"));
        }
    }
    none("pure cores", findings);
}

#[test]
fn only_drivers_touch_the_world() {
    let mut findings = Vec::new();
    for file in source::rust_files() {
        let code = file.code();
        // A file of tests beside the core may use temporary folders.
        if file.path.contains("/tests/") && !file.path.starts_with("tests/") {
            continue;
        }
        for (call, allowed, instead) in DRIVER_CALLS {
            if allowed.iter().any(|place| file.path.starts_with(place)) {
                continue;
            }
            findings.extend(lines_with(&code, call).map(|n| format!("{}:{n}: `{call}`: {instead}", file.path)));
        }
    }
    none("calls outside drivers", findings);
}

/// Line numbers, from 1, where `word` stands as a whole path.
fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.lines()
        .enumerate()
        .filter(move |(_, line)| {
            line.match_indices(word).any(|(at, _)| {
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    || !word.starts_with(char::is_alphabetic)
            })
        })
        .map(|(n, _)| n + 1)
}
