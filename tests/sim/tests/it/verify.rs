//! A record that rots in one replica's engine is found, and named.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proto::Cf;
use raftstore::engine::{Engine, WriteBatch, WriteOp};
use sim::{
    changes::Changes,
    cluster::{Settings, stores::Stores},
    faults::Victim,
    runtime::{Owner, World},
};

/// The regions that the stores begin with: their replicas are empty, and region n holds what begins with byte n.
const NODES: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_rotten_key_in_one_replica_is_named() {
    let world = World::new(3, NODES);
    let cluster = Stores::cluster(world.clone(), NODES, Settings::default());
    (0..NODES).for_each(|node| cluster.boot(node));
    let (changes, done) = (Changes::new(world.clone(), Arc::new(cluster.clone())), Arc::new(AtomicBool::new(false)));
    let (noted, outer, rotting) = (done.clone(), world.clone(), cluster.clone());
    world.spawn(Owner::Harness, async move {
        while changes.verify_all().await.compared < 3 {
            outer.sleep(Owner::Harness, Duration::from_millis(100)).await;
        }
        let before = changes.verify_all().await;
        assert_eq!(before.found, Vec::<String>::new());
        let put = |n: u16, value: &'static str| {
            WriteOp::Put(Cf::Data, [&[3], &n.to_be_bytes()[..]].concat().into(), value.into())
        };
        for node in 0..NODES {
            let ops = (0..1000).map(|n| put(n, if (node, n) == (1, 700) { "rotten" } else { "" })).collect();
            rotting.engine(node).write(WriteBatch { ops }).expect("memory does not fail");
        }
        let found = changes.verify_all().await.found;
        let named = found.len() == 1 && found[0].contains("r3 differs between s1 and s2 at");
        // Some records around it, and not the whole region.
        assert!(
            named && found[0].contains(r#"start: b"\x03\x02"#) && found[0].contains(r#"end: b"\x03\x02"#),
            "{found:?}"
        );
        noted.store(true, Ordering::Relaxed);
    });
    let verdict = world.run(LIMIT, || done.load(Ordering::Relaxed));
    cluster.shut_down();
    world.shut_down();
    verdict.expect("it is found");
}
