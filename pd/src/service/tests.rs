//! The service over a map that stands for region 1, and that can be taken from it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use proto::{
    Epoch, PeerId, PeerRole, RegionId, Timestamp, keyspace,
    wire::{
        CatalogLeaseRequest, CatalogPublishRequest, HeartbeatRequest, RegisterStoreRequest, Store, StoreStatus,
        TimestampRequest,
    },
};

use super::*;

/// Region 1: its pairs, and the term that may write.
#[derive(Default)]
struct Region1 {
    pairs: Mutex<BTreeMap<Bytes, Bytes>>,
    term: AtomicU64,
}

struct Meta {
    region: Arc<Region1>,
    term: u64,
}

impl Meta {
    fn check(&self) -> Result<(), MetaError> {
        let current = self.region.term.load(Ordering::SeqCst);
        let gone = || MetaError::NotLeading(Box::new(RegionError::not_leader(PD_REGION, None, Term(current))));
        (self.term == current).then_some(()).ok_or_else(gone)
    }
}

#[async_trait]
impl MetaStore for Meta {
    async fn scan(&self, range: &KeyRange) -> Result<Vec<(Bytes, Bytes)>, MetaError> {
        self.check()?;
        let pairs = self.region.pairs.lock();
        Ok(pairs.iter().filter(|(k, _)| range.contains(k)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
    async fn write(&self, writes: Vec<MetaWrite>) -> Result<(), MetaError> {
        self.check()?;
        for (key, value) in writes {
            match value {
                Some(value) => self.region.pairs.lock().insert(key, value),
                None => self.region.pairs.lock().remove(&key),
            };
        }
        Ok(())
    }
    fn holds_lease(&self) -> bool {
        self.check().is_ok()
    }
    async fn confirm(&self) -> Result<(), MetaError> {
        self.check()
    }
}

const CLUSTER: ClusterId = ClusterId(0xC);

fn founder(id: u64) -> Store {
    Store { id, address: format!("n{id}:1"), uuid: vec![id as u8; 16].into(), ..Store::default() }
}

async fn lead(region: &Arc<Region1>, term: u64, now: Now) -> Service {
    region.term.store(term, Ordering::SeqCst);
    let me = Peer { id: PeerId(1), store: StoreId(1), role: PeerRole::Voter };
    let pd_region = Region {
        id: PD_REGION,
        range: keyspace::keyspace_range(keyspace::PD_KEYSPACE),
        epoch: Epoch { conf_ver: 1, version: 1 },
        peers: vec![me],
    };
    let user = Region {
        id: RegionId(2),
        range: KeyRange::new(pd_region.range.end.clone(), Bytes::new()),
        ..pd_region.clone()
    };
    let settings = Settings {
        cluster: CLUSTER,
        me,
        term: Term(term),
        founders: (1..=3).map(founder).collect(),
        founded: vec![pd_region, user],
        rules: Rules::default(),
        #[cfg(feature = "planted-bugs")]
        planted: None,
    };
    let meta = Arc::new(Meta { region: region.clone(), term });
    Service::start(meta, settings, now).await.expect("region 1 is there")
}

fn now(ms: u64) -> Now {
    Now { monotonic_ms: ms, wall_ms: 1_000_000 + ms }
}

fn beat(id: u64, at: Now) -> HeartbeatRequest {
    let store = StoreStatus { store: Some(founder(id)), ..StoreStatus::default() };
    HeartbeatRequest {
        cluster_id: CLUSTER.0,
        store: Some(store),
        regions: vec![],
        full: true,
        wall_ms: at.wall_ms,
        ..Default::default()
    }
}

async fn report_all(pd: &Service, at: Now) {
    for id in 1..=3 {
        let answer = pd.heartbeat(at, beat(id, at)).await.expect("leads");
        assert_eq!(answer.refusal, "");
    }
}

async fn ask(pd: &Service, at: Now, body: Body) -> PdResponse {
    match pd.call(at, &PdRequest { header: None, body: Some(body) }).await {
        Answer::Done(response) => response,
        Answer::Wait { otherwise, .. } => panic!("waits: {otherwise:?}"),
    }
}

async fn timestamp(pd: &Service, at: Now) -> Result<Timestamp, PdResponse> {
    let response = ask(pd, at, Body::Timestamp(TimestampRequest { count: 1 })).await;
    match response.body {
        Some(pd_response::Body::Timestamp(t)) => Ok(Timestamp(t.last)),
        _ => Err(response),
    }
}

#[tokio::test]
async fn timestamps_grow_over_a_change_of_pd_whose_clock_is_behind() {
    let region = Arc::new(Region1::default());
    let first = lead(&region, 5, now(0)).await;
    assert!(timestamp(&first, now(0)).await.is_err(), "a new cluster waits for its stores' clocks");
    report_all(&first, now(0)).await;
    let before = timestamp(&first, now(10)).await.expect("reported");
    let second = lead(&region, 6, now(0)).await;
    let after = timestamp(&second, Now { monotonic_ms: 0, wall_ms: 5 }).await.expect("there is a past");
    assert!(after > before);
    let refused = timestamp(&first, now(20)).await.expect_err("deposed");
    assert!(refused.error.is_some());
    assert_eq!(first.try_timestamps(now(20), 1), None);
}

#[tokio::test]
async fn a_store_registers_once_and_takes_over_the_address_of_a_wiped_one() {
    let region = Arc::new(Region1::default());
    let pd = lead(&region, 5, now(0)).await;
    let wiped = Store { id: 0, uuid: vec![9; 16].into(), ..founder(2) };
    let register = || Body::RegisterStore(RegisterStoreRequest { store: Some(wiped.clone()) });
    let id = |r: PdResponse| match r.body {
        Some(pd_response::Body::RegisterStore(r)) => r.store_id,
        other => panic!("{other:?}"),
    };
    report_all(&pd, now(0)).await;
    let early = ask(&pd, now(1_000), register()).await.error.expect("store 2 may still be there");
    assert!(early.message.contains("store 2 was heard of there 1000 ms ago"), "{early}");
    let new = id(ask(&pd, now(6_000), register()).await);
    assert_eq!(new, 4, "above every founded id");
    assert_eq!(id(ask(&pd, now(0), register()).await), new);
    let again = lead(&region, 6, now(0)).await;
    assert_eq!(id(ask(&again, now(0), register()).await), new);
    let addresses: Vec<_> = again.stores(now(0)).into_iter().map(|s| s.store.expect("has one").address).collect();
    assert_eq!(addresses, ["n1:1", "", "n3:1", "n2:1"]);
    let old = again.heartbeat(now(0), HeartbeatRequest { cluster_id: 7, ..beat(1, now(0)) }).await.expect("leads");
    assert!(old.refusal.contains("cluster 7"), "{}", old.refusal);
    let other_disk = StoreStatus { store: Some(Store { id: 2, ..wiped.clone() }), ..StoreStatus::default() };
    let old = again.heartbeat(now(0), HeartbeatRequest { store: Some(other_disk), ..beat(1, now(0)) }).await;
    assert!(old.expect("leads").refusal.contains("UUID"));
}

#[tokio::test]
async fn a_ddl_waits_for_a_gateway_and_a_new_pd_for_the_leases_of_the_old_one() {
    let region = Arc::new(Region1::default());
    let pd = lead(&region, 5, now(0)).await;
    report_all(&pd, now(0)).await;
    let lease =
        |version| Body::CatalogLease(CatalogLeaseRequest { gateway_id: 7, acknowledged_version: version, wait_ms: 0 });
    let publish = |version| Body::CatalogPublish(CatalogPublishRequest { version, wait_ms: 0 });
    ask(&pd, now(0), publish(1)).await;
    let waits = pd.call(now(1), &PdRequest { header: None, body: Some(lease(1)) }).await;
    assert!(matches!(waits, Answer::Wait { .. }), "nothing newer yet");
    let ddl = pd.call(now(2), &PdRequest { header: None, body: Some(publish(2)) }).await;
    let Answer::Wait { otherwise, recheck_ms: Some(_) } = ddl else { panic!("{ddl:?}") };
    let Some(pd_response::Body::CatalogPublish(p)) = otherwise.body else { panic!("a publish answer") };
    assert_eq!((p.done, p.waiting_for), (false, vec![7]));
    let mut changes = pd.changes();
    ask(&pd, now(3), lease(1)).await; // is told of 2 at once
    assert!(!changes.has_changed().expect("alive"), "renewals that bring nothing new wake nobody");
    let _ = pd.call(now(4), &PdRequest { header: None, body: Some(lease(2)) }).await;
    assert!(changes.has_changed().expect("alive"));
    changes.mark_unchanged();
    let waits = pd.call(now(4), &PdRequest { header: None, body: Some(lease(2)) }).await;
    assert!(matches!(waits, Answer::Wait { .. }) && !changes.has_changed().expect("alive"));
    ask(&pd, now(5), publish(2)).await;

    let new = lead(&region, 6, now(0)).await;
    report_all(&new, now(5)).await;
    let mut at = 6;
    let request = PdRequest { header: None, body: Some(publish(3)) };
    while let Answer::Wait { recheck_ms, .. } = new.call(now(at), &request).await {
        at += recheck_ms.expect("the old leases end");
        assert!(at < 2 * crate::catalog_lease::LEASE_MS, "they end soon");
    }
    assert!(at > crate::catalog_lease::LEASE_MS, "gateway 7 may commit under version 2 until then");
}

/// A leader's report of the user region: three voters, all of which follow.
fn led_by(leader: u64, stores: &[u64]) -> wire::RegionStatus {
    let peer = |id: u64| wire::Peer { id: id * 10, store_id: id, role: 0 };
    let end = keyspace::keyspace_range(keyspace::PD_KEYSPACE).end;
    let region = wire::Region {
        id: 2,
        range: Some((&KeyRange::new(end, Bytes::new())).into()),
        epoch: Some(wire::RegionEpoch { conf_ver: 2, version: 1 }),
        peers: stores.iter().copied().map(peer).collect(),
    };
    let progress = |id: &u64| wire::PeerProgress { peer_id: id * 10, matched: 50, active: true, needs_snapshot: false };
    wire::RegionStatus {
        region: Some(region),
        leader: Some(peer(leader)),
        term: 7,
        committed_index: 50,
        progress: stores.iter().filter(|id| **id != leader).map(progress).collect(),
        ..wire::RegionStatus::default()
    }
}

async fn report(pd: &Service, at: Now, store: u64, regions: Vec<wire::RegionStatus>) -> Vec<wire::RegionStep> {
    let request = HeartbeatRequest { regions, full: false, ..beat(store, at) };
    pd.heartbeat(at, request).await.expect("leads").steps
}

async fn admin(pd: &Service, at: Now, body: Body) -> Result<pd_response::Body, String> {
    let response = ask(pd, at, body).await;
    if response.refusal.is_empty() { Ok(response.body.expect("an answer")) } else { Err(response.refusal) }
}

fn lead_on(to_store: u64) -> Body {
    let request = wire::MoveLeaderRequest { region_id: 2, to_store };
    Body::Plan(wire::PlanRequest { kind: Some(wire::plan_request::Kind::TransferLeader(request)), epoch: None })
}

#[tokio::test]
async fn a_step_goes_to_the_leaders_store_until_its_region_shows_it() {
    let region = Arc::new(Region1::default());
    let pd = lead(&region, 5, now(0)).await;
    let early = ask(&pd, now(0), lead_on(1)).await.error.expect("nobody reported it: ask again");
    assert!(early.to_string().contains("has no leader right now"), "{early}");
    report_all(&pd, now(0)).await;
    report(&pd, now(0), 1, vec![led_by(1, &[1, 2, 3])]).await;
    let listening = HeartbeatRequest { listen_ms: 1_000, ..beat(1, now(1)) };
    assert_eq!(pd.listen(now(1), &listening).await, Ok(None), "nothing to do");
    let changes = pd.changes();
    let planned = admin(&pd, now(1), lead_on(2)).await.expect("planned");
    let pd_response::Body::Plan(planned) = planned else { panic!("{planned:?}") };
    assert!(changes.has_changed().expect("alive"), "who listens is woken");
    let pushed = pd.listen(now(2), &listening).await.expect("leads").expect("a step");
    assert_eq!(pushed.steps.iter().map(|s| s.operator_id).collect::<Vec<_>>(), planned.operator_ids);
    assert!(report(&pd, now(3), 2, vec![]).await.is_empty(), "it is for the leader's store");
    assert!(report(&pd, now(3), 1, vec![]).await.is_empty(), "it was sent just now");
    assert_eq!(report(&pd, now(1_500), 1, vec![]).await.len(), 1, "nothing came of it");
    report(&pd, now(1_600), 2, vec![wire::RegionStatus { term: 8, ..led_by(2, &[1, 2, 3]) }]).await;
    let list = Body::Operators(wire::OperatorsRequest { finished: true, ..Default::default() });
    let Ok(pd_response::Body::Operators(list)) = admin(&pd, now(1_700), list).await else { panic!("a list") };
    assert_eq!(list.operators[0].state(), wire::OperatorState::Done);
    assert_eq!(admin(&pd, now(1_700), lead_on(2)).await, Ok(pd_response::Body::Plan(Default::default())));
}

#[tokio::test]
async fn a_drain_and_a_switched_off_scheduler_outlive_pd() {
    let region = Arc::new(Region1::default());
    let pd = lead(&region, 5, now(0)).await;
    report_all(&pd, now(0)).await;
    let change =
        |change: wire::StoreChange| Body::StoreChange(wire::StoreChangeRequest { store_id: 3, change: change as i32 });
    let refusal = admin(&pd, now(1), change(wire::StoreChange::Remove)).await.expect_err("regions are not reported");
    assert!(refusal.contains("does not know all regions"), "{refusal}");
    let pd_region = wire::RegionStatus {
        region: Some((&pd.settings.founded[0]).into()),
        leader: Some(pd.settings.me.into()),
        term: 5,
        ..Default::default()
    };
    report(&pd, now(1), 1, vec![pd_region, led_by(1, &[1, 2])]).await;
    admin(&pd, now(1), change(wire::StoreChange::Drain)).await.expect("it has no replicas");
    let off = Body::Schedulers(wire::SchedulersRequest { name: "balance-leader".into(), enabled: false });
    admin(&pd, now(1), off).await.expect("switches");

    let new = lead(&region, 6, now(0)).await;
    let drains = |pd: &Service| pd.stores(now(0))[2].store.as_ref().map(|s| s.state());
    assert_eq!(drains(&new), Some(wire::StoreState::Draining));
    let list = Body::Schedulers(wire::SchedulersRequest::default());
    let Ok(pd_response::Body::Schedulers(list)) = admin(&new, now(1), list).await else { panic!("a list") };
    let off: Vec<_> = list.schedulers.iter().filter(|s| !s.enabled).map(|s| s.name.as_str()).collect();
    assert_eq!(off, ["balance-leader"]);
    admin(&new, now(1), change(wire::StoreChange::Up)).await.expect("takes it back");
    assert_eq!(drains(&new), Some(wire::StoreState::Up));
    report_all(&new, now(1)).await;
    report(&new, now(1), 1, vec![led_by(1, &[1, 2])]).await;
}

#[tokio::test]
async fn ids_of_a_split_are_durable_before_anybody_learns_them() {
    let region = Arc::new(Region1::default());
    let pd = lead(&region, 5, now(0)).await;
    report_all(&pd, now(0)).await;
    report(&pd, now(0), 1, vec![led_by(1, &[1, 2, 3])]).await;
    let split = |key: &'static [u8]| {
        let request = wire::SplitRegionRequest { region_id: 0, keys: vec![Bytes::from_static(key)] };
        Body::Plan(wire::PlanRequest { kind: Some(wire::plan_request::Kind::Split(request)), epoch: None })
    };
    admin(&pd, now(1), split(b"\0\0\0\x01m")).await.expect("planned");
    let steps = report(&pd, now(2), 1, vec![]).await;
    let Some(wire::region_step::Kind::Split(step)) = &steps[0].kind else { panic!("{steps:?}") };
    let used = step.ids[0].peer_ids.iter().chain([&step.ids[0].region_id]).max().copied();
    assert_eq!((step.ids.len(), step.ids[0].peer_ids.len()), (1, 3));
    // The next PD gives none of them again.
    let new = lead(&region, 6, now(0)).await;
    report_all(&new, now(0)).await;
    report(&new, now(0), 1, vec![led_by(1, &[1, 2, 3])]).await;
    admin(&new, now(1), split(b"\0\0\0\x01m")).await.expect("planned anew");
    let steps = report(&new, now(2), 1, vec![]).await;
    let Some(wire::region_step::Kind::Split(step)) = &steps[0].kind else { panic!("{steps:?}") };
    assert!(Some(step.ids[0].region_id) > used);
}
