//! PD and the stores together: what is planned is carried out, and what makes no sense is refused with the reason.

use bytes::Bytes;
use kv::{CommitOptions, Pd, PdError};
use proto::{
    KeyRange, keyspace,
    wire::{
        FindRegionRequest, MergeRegionRequest, MoveLeaderRequest, MovePeerRequest, OperatorState, OperatorsRequest,
        PlanRequest, RegionEpoch, RegionStatus, SchedulersRequest, SplitRegionRequest, StoreChange, StoreChangeRequest,
        plan_request::Kind,
    },
};

use crate::harness::{Host, Net, ready, three, wait_for};

fn key(table: u32, row: u32) -> Bytes {
    let mut key = keyspace::index_prefix(keyspace::SQL_KEYSPACE, table, 0).to_vec();
    key.extend(row.to_be_bytes());
    key.into()
}

async fn plan(host: &Host, kind: Kind) -> Result<Vec<u64>, PdError> {
    let request = PlanRequest { kind: Some(kind), epoch: None };
    host.node.pd_client().plan(request).await.map(|p| p.operator_ids)
}

/// The reason why PD refuses.
async fn refused(host: &Host, kind: Kind) -> String {
    match plan(host, kind).await {
        Err(PdError::Refused(reason)) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Waits for the ends of operators, all of which must succeed.
async fn done(host: &Host, ids: Vec<u64>) {
    for id in ids {
        wait_for("the end of an operator", async || {
            let request = OperatorsRequest { id, ..OperatorsRequest::default() };
            let found = host.node.pd_client().operators(request).await.expect("PD answers").operators;
            let op = found.into_iter().next().expect("PD knows it");
            let state = OperatorState::try_from(op.state).expect("a state");
            assert!(matches!(state, OperatorState::Running | OperatorState::Done), "{op:?}");
            state == OperatorState::Done
        })
        .await;
    }
}

async fn region(host: &Host, region_id: u64) -> RegionStatus {
    let request = FindRegionRequest { region_id, key: Bytes::new() };
    host.node.pd_client().find_region(request).await.expect("PD answers").region.expect("is there")
}

async fn switch(host: &Host, name: &str, enabled: bool) -> bool {
    let request = SchedulersRequest { name: name.into(), enabled };
    let list = host.node.pd_client().schedulers(request).await.expect("PD answers").schedulers;
    list.into_iter().find(|s| s.name == name).expect("is there").enabled
}

async fn write(host: &Host, rows: std::ops::Range<u32>) {
    let txn = host.node.client().begin().await.expect("PD answers");
    for row in rows {
        txn.put(key(100, row), Bytes::from(vec![7; 100])).expect("fits");
    }
    txn.commit(CommitOptions::default()).await.expect("commits");
}

async fn count(host: &Host, table: u32) -> usize {
    let txn = host.node.client().begin().await.expect("PD answers");
    let mut count = 0;
    for row in 0..100 {
        count += usize::from(txn.get(&key(table, row)).await.expect("the region answers").is_some());
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_split_at_keys_and_in_half_while_transactions_run() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    write(&hosts[0], 0..100).await;
    let before = hosts[0].node.pd_client().regions(&KeyRange::default(), 0).await.expect("PD answers").len();

    let keys = vec![key(100, 70), key(100, 30)];
    let at_keys = SplitRegionRequest { region_id: 0, keys: keys.clone() };
    done(&hosts[0], plan(&hosts[0], Kind::Split(at_keys.clone())).await.expect("planned")).await;
    let regions = async || hosts[1].node.pd_client().regions(&KeyRange::default(), 0).await.expect("PD answers");
    wait_for("the new regions' leaders", async || regions().await.len() == before + 2).await;
    assert_eq!(plan(&hosts[1], Kind::Split(at_keys)).await, Ok(vec![]), "they are there already");
    assert_eq!(count(&hosts[2], 100).await, 100);

    // In half: the region of rows 30 to 69.
    let middle = hosts[0].node.pd_client().region_of(&key(100, 50)).await.expect("PD answers");
    let region_id = middle.region.expect("is there").id;
    let half = Kind::Split(SplitRegionRequest { region_id, keys: vec![] });
    done(&hosts[0], plan(&hosts[0], half).await.expect("planned")).await;
    wait_for("one more", async || regions().await.len() == before + 3).await;
    let right = hosts[0].node.pd_client().region_of(&key(100, 60)).await.expect("PD answers");
    assert_eq!(right.region.and_then(|r| r.range).map(|r| r.start_key), Some(key(100, 50)));
    write(&hosts[1], 20..80).await;
    assert_eq!(count(&hosts[0], 100).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaderships_move_by_hand_and_are_evened_out_by_pd() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    assert!(!switch(&hosts[0], "balance-leader", false).await);
    for region_id in 2..5 {
        let to = Kind::TransferLeader(MoveLeaderRequest { region_id, to_store: 3 });
        wait_for("PD takes it", async || {
            match plan(&hosts[0], to.clone()).await {
                Ok(ids) => {
                    done(&hosts[1], ids).await;
                    true
                }
                // The peer has not answered its leader yet, or the region has no leader.
                Err(_) => false,
            }
        })
        .await;
        assert_eq!(region(&hosts[0], region_id).await.leader.map(|l| l.store_id), Some(3));
        assert_eq!(plan(&hosts[0], to).await, Ok(vec![]), "it leads already");
    }
    assert!(switch(&hosts[2], "balance-leader", true).await);
    wait_for("each store to lead", async || {
        let stores = hosts[0].node.pd_client().stores().await.expect("PD answers");
        stores.iter().all(|s| s.leaders >= 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let hosts = three(&Net::default()).await;
    ready(&hosts[0]).await;
    let host = &hosts[1];
    let split = |region_id, keys| Kind::Split(SplitRegionRequest { region_id, keys });
    let merge = |region_id, into_region_id| Kind::Merge(MergeRegionRequest { region_id, into_region_id });
    let move_peer = |from_store, to_store| Kind::Move(MovePeerRequest { region_id: 2, from_store, to_store });
    let lead = |region_id, to_store| Kind::TransferLeader(MoveLeaderRequest { region_id, to_store });
    for (kind, reason) in [
        (split(99, vec![]), "no region 99"),
        (split(1, vec![]), "region 1 is PD's"),
        (split(0, vec![Bytes::from_static(b"\0\0\0\0x")]), "region 1 is PD's"),
        (split(2, vec![key(102, 5)]), "lies in region 4, not 2"),
        (merge(2, 4), "not neighbours"),
        (merge(2, 2), "not neighbours"),
        (merge(2, 1), "region 1 is PD's"),
        (move_peer(1, 1), "to the same store"),
        (move_peer(1, 2), "has a replica on store 2 already"),
        (move_peer(1, 9), "no store 9"),
        (lead(2, 9), "no store 9"),
        (lead(99, 1), "no region 99"),
    ] {
        let said = refused(host, kind).await;
        assert!(said.contains(reason), "{said}, not {reason}");
    }
    let old = PlanRequest { kind: Some(split(2, vec![])), epoch: Some(RegionEpoch { conf_ver: 7, version: 7 }) };
    let Err(PdError::Refused(said)) = host.node.pd_client().plan(old).await else { panic!("not refused") };
    assert!(said.contains("at epoch 1/1 now, not 7/7"), "{said}");
    let change = async |store_id, change: StoreChange| {
        let request = StoreChangeRequest { store_id, change: change as i32 };
        host.node.pd_client().change_store(request).await.map_err(|e| e.to_string())
    };
    let said = change(2, StoreChange::Drain).await.expect_err("nowhere to go");
    assert!(said.contains("2 stores would be left for regions of 3 replicas"), "{said}");
    let said = change(2, StoreChange::Remove).await.expect_err("has replicas");
    assert!(said.contains("4 regions have replicas on store 2"), "{said}");
    assert!(change(9, StoreChange::Drain).await.expect_err("unknown").contains("no store 9"));
}
