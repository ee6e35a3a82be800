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
