//! Replicas are compared over the nodes' doors, by hand and by the slow pass.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kv::{CommitOptions, PdError};
use proto::{
    Cf, KeyRange, keyspace,
    wire::{VerifyOutcome, VerifyRegionRequest, VerifyRegionResponse},
};

use crate::harness::{Host, Net, ready, three, wait_for};

fn key(row: u32) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, 100, 0).to_vec();
    key.extend(row.to_be_bytes());
    key.into()
}

async fn verify(host: &Host, region_id: u64) -> VerifyRegionResponse {
    let request = VerifyRegionRequest { region_id, mark: 0, wait_ms: 5_000 };
    host.node.verifier().verify(&request).await.expect("it is marked")
}

/// The sum of one of the nodes' counts: PD may be on any of them.
fn count(hosts: &[Host], of: fn(&node::verify::rounds::VerifyCounts) -> &AtomicU64) -> u64 {
    hosts.iter().map(|h| of(&h.node.verify_counts().expect("runs")).load(Ordering::Relaxed)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_record_is_named_and_who_does_not_answer_too() {
    let mut hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let txn = hosts[0].node.client().begin().await.expect("PD answers");
    for row in 0..500 {
        txn.put(key(row), "value").expect("room");
    }
    txn.commit(CommitOptions::default()).await.expect("commits");
    for (host, region) in [(&hosts[0], 2), (&hosts[1], 1), (&hosts[2], 3)] {
        let answer = verify(host, region).await;
        assert_eq!((answer.outcome(), answer.ended, answer.replicas.len()), (VerifyOutcome::Equal, true, 3));
        assert!(region != 2 || answer.replicas.iter().all(|r| r.records >= 500), "{answer:?}");
    }
    wait_for("the slow pass", async || count(&hosts, |c| &c.equal) >= 4).await;
    assert_eq!(count(&hosts, |c| &c.differs), 0);

    let rotten = key(321);
    hosts[1].rot(Cf::Lock, rotten.clone());
    let answer = verify(&hosts[2], 2).await;
    assert_eq!((answer.outcome(), answer.differences.len()), (VerifyOutcome::Differs, 1), "{answer:?}");
    let difference = &answer.differences[0];
    assert_eq!(difference.store_id, hosts[1].node.store().expect("runs").0);
    let range = KeyRange::from(difference.ranges[0].clone());
    assert!(difference.ranges.len() == 1 && range.contains(&rotten), "{difference:?}");
    assert!(!range.contains(&key(0)) || !range.contains(&key(499)), "{difference:?}");
    wait_for("the slow pass finds it too", async || count(&hosts, |c| &c.differs) > 0).await;

    hosts.remove(1).kill();
    ready(&hosts[0]).await;
    let answer = verify(&hosts[0], 2).await;
    let silent: Vec<_> = answer.replicas.iter().filter(|r| !r.answered).collect();
    assert_eq!((answer.outcome(), silent.len()), (VerifyOutcome::Incomplete, 1), "{answer:?}");
    assert!(silent[0].store_id == difference.store_id && !silent[0].trouble.is_empty(), "{silent:?}");
    let none = VerifyRegionRequest { region_id: 999, mark: 0, wait_ms: 0 };
    let refused = hosts[0].node.verifier().verify(&none).await;
    assert!(matches!(&refused, Err(PdError::Refused(why)) if why.contains("no region 999")), "{refused:?}");
}
