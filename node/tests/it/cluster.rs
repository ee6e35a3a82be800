//! A founded cluster: PD, timestamps, transactions, and what the loss of a node does to them.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use kv::{CommitOptions, Pd};
use proto::{KeyRange, Timestamp, keyspace};

use crate::harness::{Host, Net, ready, three, wait_for};

/// A row of a user table: tables 100, 101, 102 lie in regions 2, 3, 4.
fn key(table: u32, row: u32) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table, 0).to_vec();
    key.extend(row.to_be_bytes());
    key.into()
}

/// Writes one row into each of three regions, in one transaction.
async fn write(host: &Host, row: u32, value: &str) -> Result<Timestamp, kv::Error> {
    let txn = host.node.client().begin().await?;
    for table in 100..103 {
        txn.put(key(table, row), Bytes::copy_from_slice(value.as_bytes()))?;
    }
    txn.commit(CommitOptions::default()).await
}

async fn read(host: &Host, row: u32) -> Vec<Option<Bytes>> {
    let txn = host.node.client().begin().await.expect("PD answers");
    let mut values = Vec::new();
    for table in 100..103 {
        values.push(txn.get(&key(table, row)).await.expect("the region answers"));
    }
    values
}

fn pd_of(hosts: &[Host]) -> Option<usize> {
    hosts.iter().position(|h| h.node.is_pd())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_found_a_cluster_and_serve_transactions_over_its_regions() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let stores: BTreeSet<_> = hosts.iter().map(|h| h.node.store().expect("runs").0).collect();
    assert_eq!(stores, BTreeSet::from([1, 2, 3]));
    assert_eq!(hosts.iter().map(|h| h.node.cluster()).collect::<BTreeSet<_>>().len(), 1);

    let committed = write(&hosts[0], 1, "one").await.expect("commits");
    for host in &hosts {
        assert_eq!(read(host, 1).await, vec![Some(Bytes::from_static(b"one")); 3]);
        assert!(host.node.pd_client().timestamp().await.expect("PD answers") > committed);
    }
    let regions = hosts[1].node.pd_client().regions(&KeyRange::default(), 0).await.expect("PD answers");
    assert_eq!(regions.len(), 4);
    assert!(regions.iter().all(|r| r.leader.is_some() && r.applied_index > 0));
    let status = hosts[2].node.pd_client().cluster_status().await.expect("PD answers");
    assert_eq!((status.stores.len(), status.regions, status.regions_without_leader), (3, 4, 0));
    let first = hosts[0].node.pd_client().alloc_ids(10).await.expect("PD answers");
    assert_eq!(hosts[1].node.pd_client().alloc_ids(1).await.expect("PD answers"), first + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn timestamps_grow_over_every_node_and_over_the_loss_of_pd() {
    let net = Net::default();
    let mut hosts = three(&net).await;
    ready(&hosts[0]).await;
    let mut newest = Timestamp::ZERO;
    for round in 0..3 {
        // Many callers at once share requests, and all get their own.
        let mut waiting = Vec::new();
        for n in 0..300 {
            let pd = hosts[n % hosts.len()].node.pd_client();
            waiting.push(tokio::spawn(async move { pd.timestamp().await.expect("PD answers") }));
        }
        let mut seen = BTreeSet::new();
        for task in waiting {
            assert!(seen.insert(task.await.expect("no panic")), "handed out twice");
        }
        assert!(*seen.first().expect("300") > newest, "round {round} went backward");
        newest = *seen.last().expect("300");

        let lost = pd_of(&hosts).expect("somebody is PD");
        let host = hosts.remove(lost);
        let address = host.address.clone();
        let disk = host.kill();
        let after = hosts[0].node.pd_client().timestamp().await.expect("another one is PD soon");
        assert!(after > newest);
        newest = after;
        write(&hosts[1], round, "again").await.expect("two of three are enough");
        // It comes back as who it was, with a wall clock that is an hour behind.
        let back = Host::open(&net, &address, "a,b,c", disk, -3_600_000);
        back.node.start().await.expect("starts on its disk");
        assert_eq!(read(&back, round).await, vec![Some(Bytes::from_static(b"again")); 3]);
        hosts.push(back);
        ready(&hosts[0]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pd_that_is_cut_off_serves_nobody() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let old = pd_of(&hosts).expect("somebody is PD");
    hosts[old].cut(true);
    let others: Vec<_> = (0..3).filter(|&i| i != old).collect();
    let new_pd = async || others.iter().any(|&i| hosts[i].node.is_pd());
    wait_for("another PD", new_pd).await;
    let newest = hosts[others[0]].node.pd_client().timestamp().await.expect("PD answers");
    // Whatever the old one hands out, if anything, must be later than what it was asked after.
    let asked = tokio::time::timeout(Duration::from_secs(1), hosts[old].node.pd_client().timestamp()).await;
    assert!(!matches!(asked, Ok(Ok(stale)) if stale <= newest), "a timestamp of the past");
    hosts[old].cut(false);
    wait_for("the old one to find the new PD", async || {
        hosts[old].node.pd_client().timestamp().await.is_ok_and(|ts| ts > newest)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pd_that_hangs_is_left_as_soon_as_another_is_elected() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let old = pd_of(&hosts).expect("somebody is PD");
    let other = &hosts[(old + 1) % 3];
    other.node.pd_client().timestamp().await.expect("PD answers");
    hosts[old].hang();
    // Ten ticks of 20 ms make an election; a call that waited for its own time-out would need two seconds.
    let answer = tokio::time::timeout(Duration::from_millis(1_500), other.node.pd_client().timestamp()).await;
    assert!(matches!(answer, Ok(Ok(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_all_moved_find_each_other_by_their_directories() {
    let net = Net::default();
    let hosts = three(&net).await;
    ready(&hosts[0]).await;
    let before: Vec<_> = hosts.iter().map(|h| h.node.store()).collect();
    let disks: Vec<_> = hosts.into_iter().map(Host::kill).collect();
    let moved: Vec<_> =
        ["x", "y", "z"].into_iter().zip(disks).map(|(at, disk)| Host::open(&net, at, "x,y,z", disk, 0)).collect();
    for host in &moved {
        host.node.start().await.expect("it knows its cluster");
    }
    ready(&moved[1]).await;
    assert_eq!(moved.iter().map(|h| h.node.store()).collect::<Vec<_>>(), before);
    write(&moved[2], 3, "moved").await.expect("commits");
    let stores = moved[0].node.pd_client().stores().await.expect("PD answers");
    let addresses: Vec<_> = stores.into_iter().map(|s| s.store.expect("has one").address).collect();
    assert_eq!(addresses, ["x", "y", "z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_version_is_published_when_live_gateways_follow() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let pd = hosts[0].node.pd_client();
    pd.publish_catalog(1).await.expect("nobody to wait for");
    let (published, end) = pd.catalog_lease(77, 1, Duration::ZERO).await.expect("PD answers");
    assert!(published == 1 && end > pd.timestamp().await.expect("PD answers"));
    let gateway = hosts[1].node.pd_client();
    let follow = tokio::spawn(async move {
        let (published, _) = gateway.catalog_lease(77, 1, Duration::from_secs(5)).await.expect("PD answers");
        assert_eq!(published, 2);
        gateway.catalog_lease(77, 2, Duration::ZERO).await.expect("PD answers")
    });
    pd.publish_catalog(2).await.expect("the gateway follows");
    assert_eq!(follow.await.expect("no panic").0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_hands_its_leaderships_over() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    hosts[0].node.drain(Duration::from_secs(5)).await;
    let leads = |host: &Host| {
        let own = host.node.store().expect("runs").0;
        host.node.replicas().iter().filter(|r| r.leader.is_some_and(|l| l.store_id == own)).count()
    };
    assert_eq!(leads(&hosts[0]), 0);
    write(&hosts[0], 9, "drained").await.expect("others lead");
}
