//! Getting into a cluster, or not.

use std::time::Duration;

use node::StartError;

use crate::harness::{Disk, Host, Net, PATIENCE, ready, three};

fn reason(result: Result<Host, StartError>) -> String {
    result.err().expect("refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_founds_alone() {
    let host = Host::start(&Net::default(), "a", "a", Disk::default()).await.expect("starts");
    ready(&host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unequal_lists_are_refused_with_the_reason() {
    let net = Net::default();
    let _right = Host::open(&net, "a", "a,b,c", Disk::default(), 0);
    let said = reason(Host::start(&net, "b", "a,b", Disk::default()).await);
    assert!(said.contains("[a,b,c]") && said.contains("[a,b]"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_unequal_lists_stop() {
    let net = Net::default();
    let (a, b) =
        tokio::join!(Host::start(&net, "a", "a,b,c", Disk::default()), Host::start(&net, "b", "a,b", Disk::default()));
    for said in [reason(a), reason(b)] {
        assert!(said.contains("[a,b,c]") && said.contains("[a,b]"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_founder_and_a_newcomer_join_as_new_stores() {
    let net = Net::default();
    let mut hosts = three(&net).await;
    ready(&hosts[0]).await;
    drop(hosts.remove(2));
    let wiped = Host::start(&net, "c", "a,b,c", Disk::default()).await.expect("joins");
    let newcomer = Host::start(&net, "d", "a,b,c", Disk::default()).await.expect("joins");
    let ids = [&wiped, &newcomer].map(|h| h.node.store().expect("runs").0);
    assert!(ids.iter().all(|id| *id > 3) && ids[0] != ids[1], "{ids:?}");
    assert!(wiped.node.replicas().is_empty(), "a new store holds no regions yet");
    let timestamp = kv::Pd::timestamp(&newcomer.node.pd_client()).await;
    assert!(timestamp.is_ok(), "its gateway works: {timestamp:?}");
    let txn = newcomer.node.client().begin().await.expect("PD answers");
    assert_eq!(txn.get(b"\0\0\0\x01\0\0\0\x64\0\0\0\0x").await, Ok(None));

    // It keeps its id over a restart.
    let again = Host::start(&net, "d", "a,b,c", newcomer.kill()).await.expect("starts");
    assert_eq!(again.node.store().expect("runs").0, ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_is_found_out() {
    let net = Net::default();
    let disk = Host::start(&net, "x", "x", Disk::default()).await.expect("starts").kill();
    let hosts = three(&net).await;
    ready(&hosts[0]).await;
    let stray = Host::open(&net, "x", "a,x", disk, 0);
    stray.node.start().await.expect("it has a cluster of its own");
    let said = tokio::time::timeout(PATIENCE, stray.node.must_end()).await.expect("it finds out");
    assert!(said.contains("belongs to cluster"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founding_that_stopped_half_way_goes_on() {
    let net = Net::default();
    let (a, b) = (Disk::default(), Disk::default());
    let half = async {
        let first = Host::open(&net, "a", "a,b,c", a.clone(), 0);
        let second = Host::open(&net, "b", "a,b,c", b.clone(), 0);
        let _third = Host::open(&net, "c", "a,b,c", Disk::default(), 0);
        let _ = tokio::time::timeout(Duration::from_millis(5), first.node.start()).await;
        assert!(second.node.store().is_none());
    };
    half.await;
    let start = |address, disk| Host::start(&net, address, "a,b,c", disk);
    let (a, b, c) = tokio::join!(start("a", a), start("b", b), start("c", Disk::default()));
    let hosts = [a, b, c].map(|h| h.expect("starts"));
    let clusters = hosts.iter().map(|h| h.node.cluster()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(clusters.len(), 1);
    assert!(kv::Pd::timestamp(&hosts[0].node.pd_client()).await.is_ok());
}
