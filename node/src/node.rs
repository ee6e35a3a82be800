//! A node, assembled.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kv::{Clock, Spawn, StoreScan};
use parking_lot::Mutex;
use proto::{
    ClusterId, PD_REGION, StoreId,
    wire::{
        self, AcceptRequest, AcceptResponse, FoundingRecord, HeartbeatRequest, HeartbeatResponse, KvRequest,
        KvResponse, PdRequest, PdResponse, ProbeRequest, ProbeResponse, RaftFrame, RegionError, RegionStatus,
        SnapshotHead, VerifyRequest, VerifyResponse,
    },
};
use raftstore::{
    BootError, ReplicaStatus, StoreConfig, StoreCore, StoreHandle, bootstrap, engine::Engine, log::LogEngine,
    snapshot::Receiving,
};
use tokio::sync::watch;

use crate::{
    AddressBook, FoundingError, FrameSender, Membership, NodeRpc, PdClient, PublicKv, StoreRunner, drain,
    eventual::Eventual,
    founding::{Answers, record},
    frames::{self, Envelopes, Sender},
    gc::{GcCounts, OldVersions, rounds::Rounds as GcRounds},
    identity::{Identity, UUID_LEN},
    kv_door::KvDoor,
    load::LoadMeter,
    measure::Sizes,
    membership::Founded,
    pd::{
        client::Doors,
        heartbeat::{DiskSpace, Heartbeat, region_status},
        role::{Origin, PdRole},
    },
    steps::Steps,
    verify::{
        Verifier,
        answer::answer,
        rounds::{Rounds, VerifyCounts},
    },
};

/// Pause between attempts to register a new store with a PD that is not there.
const REGISTER_RETRY: Duration = Duration::from_secs(1);

/// Senders whose refused frames are remembered for the log; a made-up store id costs memory only up to here.
const REFUSED_SENDERS_AT_MOST: usize = 1_000;

/// How a node behaves.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Of its gRPC door, as other nodes reach it, and as `--join` spells it.
    pub address: String,
    /// Of its SQL door; empty: none.
    pub sql_address: String,
    /// Of its HTTP door; empty: none.
    pub http_address: String,
    /// Where it stands (zone, rack, …), for replicas to be spread.
    pub labels: BTreeMap<String, String>,
    /// The founders' addresses; a node that is not among them joins the running cluster.
    pub join: Vec<String>,
    /// User regions of a new cluster, 1 to [`record::MAX_USER_REGIONS`].
    pub user_regions: u32,
    /// Random; becomes the UUID of an empty data directory.
    pub fresh_uuid: [u8; UUID_LEN],
    /// Random, not 0; becomes the id of a cluster that this node proposes.
    pub fresh_cluster_id: u64,
    /// The store's behaviour; its store id is filled in.
    pub store: StoreConfig,
    /// The client's behaviour.
    pub client: kv::ClientConfig,
    /// While this node is PD: how often the replicas of one region are compared. Zero: never.
    pub verify_every: Duration,
    /// What PD strives for, when this node is PD; the same on every node.
    pub rules: ::pd::Rules,
    /// An invariant of PD's to break.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<::pd::Planted>,
}

/// A node's doors to the world.
#[derive(Clone)]
pub struct Drivers {
    /// The store's state.
    pub engine: Arc<dyn Engine>,
    /// The Raft log.
    pub log: Arc<dyn LogEngine>,
    /// Runs the store core.
    pub runner: Arc<dyn StoreRunner>,
    /// Calls to other nodes.
    pub rpc: Arc<dyn NodeRpc>,
    /// Raft traffic to other nodes.
    pub frames: Arc<dyn FrameSender>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Background tasks of this node.
    pub spawn: Arc<dyn Spawn>,
    /// The store-side half of scans.
    pub scan: Option<Arc<dyn StoreScan>>,
    /// The disk under the store.
    pub disk: Arc<dyn Fn() -> DiskSpace + Send + Sync>,
}

/// Why a node did not start.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StartError {
    /// It is in no cluster.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// Its data does not open.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A person must look; the reason.
    #[error("{0}")]
    Refused(String),
}

/// One node. Its methods answer what other nodes call through [`NodeRpc`] and [`FrameSender`].
pub struct Node {
    config: NodeConfig,
    drivers: Drivers,
    membership: Arc<Membership>,
    book: Arc<AddressBook>,
    running: OnceLock<Running>,
    /// By sender, why its Raft frames were last refused: logged once, not with every reconnection.
    refused: Mutex<BTreeMap<u64, String>>,
    /// It hands its leaderships over and ends.
    stopping: Arc<AtomicBool>,
    /// Why it must end, once it must.
    end: watch::Sender<Option<String>>,
}

/// What a node consists of once it is in a cluster.
struct Running {
    cluster: ClusterId,
    sender: Sender,
    store: StoreHandle,
    role: Arc<PdRole>,
    pd: PdClient,
    door: Arc<KvDoor>,
    client: kv::Client,
    load: Arc<LoadMeter>,
    sizes: Arc<Sizes>,
    verifier: Arc<Verifier>,
    verified: Arc<VerifyCounts>,
    public_kv: PublicKv,
    old_versions: Arc<OldVersions>,
}

impl Node {
    /// Opens the data directory's identity. From now on the node answers who it is; [`Node::start`] does the rest.
    pub fn open(config: NodeConfig, drivers: Drivers) -> Result<Arc<Node>, StartError> {
        if !(1..=record::MAX_USER_REGIONS).contains(&config.user_regions) || config.fresh_cluster_id == 0 {
            let most = record::MAX_USER_REGIONS;
            return Err(StartError::Refused(format!("user regions must be 1 to {most}, and the cluster id not 0")));
        }
        let identity = Identity::open(drivers.engine.clone(), config.fresh_uuid).map_err(FoundingError::Engine)?;
        for note in identity.recoveries().map_err(FoundingError::Engine)?.notes {
            tracing::warn!(
                plan = %format!("{:x}", note.plan_id),
                lost_stores = ?note.lost_stores,
                regions = ?note.regions.iter().map(|r| r.id).collect::<Vec<_>>(),
                "unsafe recovery was carried out here: acknowledged writes may be missing, the lost stores must never run"
            );
        }
        let (address, cluster) = (config.address.clone(), config.fresh_cluster_id);
        let membership = Membership::new(identity, address, &config.join, cluster, config.user_regions);
        Ok(Arc::new(Node {
            config,
            drivers,
            membership: Arc::new(membership),
            book: Arc::default(),
            running: OnceLock::new(),
            refused: Mutex::default(),
            stopping: Arc::default(),
            end: watch::Sender::new(None),
        }))
    }

    /// Finds or founds the cluster, and runs. Returns when client and PD can be used (they may have to wait for elections).
    pub async fn start(self: &Arc<Self>) -> Result<(), StartError> {
        let founded = self.membership.found(&*self.drivers.rpc, &*self.drivers.clock).await?;
        let no_record = || StartError::Refused("this node holds no founding record".into());
        let record = self.membership.record().ok_or_else(no_record)?;
        let regions = record::regions(&record).map_err(StartError::Refused)?;
        let pd = self.find_pd(&record, &regions[0])?;
        let store = match founded {
            Founded::As(store) => store,
            Founded::Newcomer => self.register(&pd).await?,
        };
        let (engine, log) = (self.drivers.engine.clone(), self.drivers.log.clone());
        bootstrap(&*engine, &*log, store, &regions)?;
        let store_config = StoreConfig { store, boot_id: self.membership.boot_id(), ..self.config.store.clone() };
        let (core, handle) = StoreCore::open(store_config, engine, log, self.drivers.clock.clone())?;
        let cluster = ClusterId(record.cluster_id);
        let sender = Sender { cluster, store, uuid: self.membership.uuid(), boot_id: self.membership.boot_id() };
        let envelopes = Envelopes::new(sender.clone(), self.book.clone(), self.drivers.frames.clone());
        let running = self.assemble(cluster, sender, record, regions, handle.clone(), pd)?;
        if self.running.set(running).is_err() {
            return Err(StartError::Refused("the node was started before".into()));
        }
        self.drivers.runner.run(core, handle, Arc::new(envelopes)).map_err(StartError::Refused)?;
        self.spawn_tasks();
        tracing::info!(%store, cluster = %format!("{:x}", cluster.0), address = self.config.address, "the node runs");
        Ok(())
    }

    fn find_pd(&self, record: &FoundingRecord, founded: &proto::Region) -> Result<PdClient, StartError> {
        let (remembered, addresses) = self.membership.remembered().map_err(FoundingError::Engine)?;
        self.book.update(&record.founders);
        self.book.update(&addresses);
        let region = remembered.and_then(|r| proto::Region::try_from(r).ok());
        let doors = Doors {
            rpc: self.drivers.rpc.clone(),
            book: self.book.clone(),
            clock: self.drivers.clock.clone(),
            spawn: self.drivers.spawn.clone(),
        };
        Ok(PdClient::new(ClusterId(record.cluster_id), doors, region.as_ref().unwrap_or(founded)))
    }

    /// Asks PD for a store id until it gives one.
    async fn register(&self, pd: &PdClient) -> Result<StoreId, StartError> {
        loop {
            match pd.register(self.record(0)).await {
                Ok(registered) => {
                    let store = StoreId(registered.store_id);
                    self.membership.registered(store).map_err(FoundingError::Engine)?;
                    return Ok(store);
                }
                Err(kv::PdError::Refused(reason)) => return Err(StartError::Refused(reason)),
                Err(kv::PdError::Unavailable(reason)) => {
                    tracing::warn!(address = self.config.address, reason, "a new store waits for PD to register it");
                    self.drivers.clock.sleep(REGISTER_RETRY).await;
                }
            }
        }
    }

    /// This store as PD shall know it.
    fn record(&self, id: u64) -> wire::Store {
        wire::Store {
            id,
            address: self.config.address.clone(),
            uuid: self.membership.uuid(),
            sql_address: self.config.sql_address.clone(),
            http_address: self.config.http_address.clone(),
            boot_id: self.membership.boot_id(),
            labels: self.config.labels.clone().into_iter().collect(),
            ..wire::Store::default()
        }
    }

    fn assemble(
        &self,
        cluster: ClusterId,
        sender: Sender,
        record: FoundingRecord,
        founded: Vec<proto::Region>,
        store: StoreHandle,
        pd: PdClient,
    ) -> Result<Running, StartError> {
        let Drivers { clock, spawn, scan, rpc, engine, .. } = self.drivers.clone();
        let origin = Origin {
            cluster,
            founders: record.founders,
            founded,
            rules: self.config.rules.clone(),
            #[cfg(feature = "planted-bugs")]
            planted: self.config.planted,
        };
        let role = Arc::new(PdRole::new(origin, store.clone(), clock.clone()));
        pd.set_local(sender.store, role.clone());
        let regions = Arc::new(store.clone());
        let service = kv::Service::new(regions, Arc::new(pd.clone()), clock.clone(), spawn.clone(), scan.clone())
            .plant(self.config.client.plant);
        let load = Arc::new(LoadMeter::default());
        let verifier = Arc::new(Verifier {
            cluster,
            store: store.clone(),
            pd: pd.clone(),
            rpc: rpc.clone(),
            book: self.book.clone(),
            clock: clock.clone(),
        });
        let door = Arc::new(KvDoor {
            cluster,
            store: sender.store,
            service,
            rpc,
            book: self.book.clone(),
            scan,
            load: load.clone(),
            clock: clock.clone(),
        });
        let config = self.config.client.clone();
        let client = kv::Client::with_config(door.clone(), Arc::new(pd.clone()), clock.clone(), spawn, config);
        let spaces = kv::Spaces::new(client.clone());
        let eventual = Eventual::open(engine.clone(), store.clone(), spaces.clone(), clock.clone());
        let eventual = eventual.map_err(BootError::Engine)?;
        let serving = (door.service.clone(), client.clone());
        let old_versions = OldVersions::new((store.clone(), engine), serving, clock, self.config.client.plant);
        let public_kv = PublicKv { spaces, eventual: Arc::new(eventual) };
        let (sizes, verified) = (Arc::default(), Arc::default());
        let old_versions = Arc::new(old_versions);
        Ok(Running {
            cluster,
            sender,
            store,
            role,
            pd,
            door,
            client,
            load,
            sizes,
            verifier,
            verified,
            public_kv,
            old_versions,
        })
    }

    fn spawn_tasks(self: &Arc<Self>) {
        let running = self.running();
        let Drivers { engine, clock, spawn, .. } = self.drivers.clone();
        let steps = Steps::new(running.store.clone(), engine.clone(), running.load.clone(), clock.clone(), spawn);
        let heartbeat = Arc::new(Heartbeat {
            membership: self.membership.clone(),
            cluster: running.cluster,
            record: self.record(running.sender.store.0),
            store: running.store.clone(),
            pd: running.pd.clone(),
            book: self.book.clone(),
            clock,
            disk: self.drivers.disk.clone(),
            engine,
            load: running.load.clone(),
            sizes: running.sizes.clone(),
            old_versions: running.old_versions.clone(),
            steps,
            stopping: self.stopping.clone(),
            end: self.end.clone(),
        });
        if !self.config.verify_every.is_zero() {
            let rounds = Rounds {
                verifier: running.verifier.clone(),
                role: running.role.clone(),
                every: self.config.verify_every,
                clock: self.drivers.clock.clone(),
                counts: running.verified.clone(),
            };
            self.drivers.spawn.spawn(Box::pin(rounds.run()));
        }
        self.drivers.spawn.spawn(Box::pin(running.role.clone().run()));
        self.drivers.spawn.spawn(Box::pin(heartbeat.clone().run()));
        self.drivers.spawn.spawn(Box::pin(heartbeat.listen()));
        self.drivers.spawn.spawn(Box::pin(running.public_kv.eventual.clone().carry()));
        let (role, client, clock) = (running.role.clone(), running.client.clone(), self.drivers.clock.clone());
        self.drivers.spawn.spawn(Box::pin(GcRounds { role, client, clock }.run()));
        self.drivers.spawn.spawn(Box::pin(running.old_versions.clone().run()));
        self.drivers.spawn.spawn(Box::pin(running.door.service.clone().keep_resolving()));
        self.drivers.spawn.spawn(Box::pin(self.clone().look_around()));
    }

    /// Compares `--join` with what the data directory says: nodes may have moved, or it may be another cluster's.
    async fn look_around(self: Arc<Self>) {
        let heard = |answers: &Answers| {
            for (address, answer) in answers {
                if let Ok(answer) = answer {
                    self.seen_at(&answer.uuid, answer.boot_id, address);
                }
            }
        };
        let stray = self.membership.look_around(&*self.drivers.rpc, &*self.drivers.clock, heard).await;
        if let Some(reason) = stray {
            tracing::error!(reason, "this node must stop");
            self.end.send_replace(Some(reason));
        }
    }

    /// A node of the cluster is at this address now; the founding record and PD may say otherwise for a while.
    fn seen_at(&self, uuid: &[u8], boot_id: u64, address: &str) {
        if self.book.seen_at(uuid, boot_id, address) {
            tracing::info!(address, "a store has moved");
            if let Err(error) = self.membership.remember_addresses(&self.book.records()) {
                tracing::error!(%error, "the stores' addresses could not be remembered");
            }
        }
    }

    fn running(&self) -> &Running {
        self.running.get().expect("the node was started")
    }

    /// Completes when the node must not go on, with the reason (it belongs to another cluster than `--join` says, or its
    /// store was removed).
    pub async fn must_end(&self) -> String {
        let mut end = self.end.subscribe();
        loop {
            if let Some(reason) = end.borrow_and_update().clone() {
                return reason;
            }
            // The sender lives as long as the node.
            let _ = end.changed().await;
        }
    }

    /// Hands the leadership of every region to another store, and waits until that is done, at most `limit`.
    pub async fn drain(&self, limit: Duration) {
        if let Some(running) = self.running.get() {
            // PD hears of it with the next heartbeat, and gives none back.
            self.stopping.store(true, Ordering::Relaxed);
            drain::hand_over(&running.store, &*self.drivers.clock, limit).await;
        }
    }
}

/// What the rest of the process uses. All but `cluster` and `store` must be called after [`Node::start`].
impl Node {
    /// The cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.membership.cluster()
    }
    /// This node's store, once it runs.
    pub fn store(&self) -> Option<StoreId> {
        self.running.get().map(|r| r.sender.store)
    }
    /// Transactions.
    pub fn client(&self) -> kv::Client {
        self.running().client.clone()
    }
    /// From now on this node serves SQL: other nodes' gateways may ask this one.
    pub fn serve_gateway(&self, gateway: Arc<dyn kv::GatewayDoor>) {
        self.running().door.service.serve_gateway(gateway);
    }
    /// The public KV service, once this node runs.
    pub fn public_kv(&self) -> Option<PublicKv> {
        self.running.get().map(|r| r.public_kv.clone())
    }
    /// Timestamps, ids, routing, catalog leases; what PD knows of the cluster.
    pub fn pd_client(&self) -> PdClient {
        self.running().pd.clone()
    }
    /// The store's own handle, for tests and tools.
    pub fn store_handle(&self) -> StoreHandle {
        self.running().store.clone()
    }
    /// Whether this node is PD, as far as it knows.
    pub fn is_pd(&self) -> bool {
        self.running.get().is_some_and(|r| r.role.is_running())
    }
    /// Compares the replicas of regions.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.running().verifier.clone()
    }
    /// What the slow pass over all regions has found, on this node.
    pub fn verify_counts(&self) -> Option<Arc<VerifyCounts>> {
        self.running.get().map(|r| r.verified.clone())
    }
    /// How much this node has collected of old versions.
    pub fn gc_counts(&self) -> Option<Arc<GcCounts>> {
        self.running.get().map(|r| r.old_versions.counts())
    }
    /// What became of reads of the past that this node's store was asked for, once this node runs.
    pub fn past_reads(&self) -> Option<&kv::PastReads> {
        self.running.get().map(|r| r.door.service.past_reads())
    }
    /// What PD has done, when this node is PD.
    pub fn pd_counts(&self) -> Option<::pd::Counts> {
        self.running.get().and_then(|r| r.role.counts())
    }
    /// The replicas of this store.
    pub fn replicas(&self) -> Vec<RegionStatus> {
        let Some(running) = self.running.get() else { return vec![] };
        let now = self.drivers.clock.now();
        let status = |r: &ReplicaStatus| region_status(r, &running.sizes, &running.load, now);
        running.store.statuses().iter().map(status).collect()
    }
}

/// What other nodes call; safe at any time.
impl Node {
    /// Who this node is.
    pub fn probe(&self, request: &ProbeRequest) -> ProbeResponse {
        let answer = self.membership.probe(request);
        if answer.refusal.is_empty() {
            self.seen_at(&request.uuid, request.boot_id, &request.address);
        }
        answer
    }

    /// Takes a founding record.
    pub fn accept(&self, request: AcceptRequest) -> AcceptResponse {
        self.membership.accept(request)
    }

    /// Answers as PD, if it is.
    pub async fn pd(&self, request: PdRequest) -> PdResponse {
        let refuse = |error| PdResponse { error: Some(error), ..PdResponse::default() };
        let Some(running) = self.running.get() else {
            return refuse(RegionError::region_not_found(PD_REGION));
        };
        let said = ClusterId(request.header.as_ref().map_or(0, |h| h.cluster_id));
        if said != running.cluster {
            return refuse(RegionError::cluster_mismatch(running.cluster, said));
        }
        running.role.call(request).await
    }

    /// Takes a report as PD, if it is.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> HeartbeatResponse {
        match self.running.get() {
            Some(running) => running.role.heartbeat(request).await,
            None => HeartbeatResponse { refusal: "this node is not in a cluster yet".into(), ..Default::default() },
        }
    }

    /// Answers a request to this store's regions.
    pub async fn kv(&self, request: KvRequest) -> KvResponse {
        match self.running.get() {
            Some(running) => running.door.answer(request).await,
            None => {
                let region = proto::RegionId(request.header.as_ref().map_or(0, |h| h.region_id));
                KvResponse { region_error: Some(RegionError::region_not_found(region)), ..KvResponse::default() }
            }
        }
    }

    /// Marks a region that this store leads, or tells what its replica has to say to a mark.
    pub async fn verify(&self, request: VerifyRequest) -> VerifyResponse {
        let refuse = |refusal: String| VerifyResponse { refusal, hash: None };
        match self.running.get() {
            Some(running) if request.cluster_id == running.cluster.0 => answer(&running.store, &request).await,
            Some(running) => {
                refuse(RegionError::cluster_mismatch(running.cluster, ClusterId(request.cluster_id)).to_string())
            }
            None => refuse("this node is not in a cluster yet".into()),
        }
    }

    /// Takes Raft traffic. `Err`: it is not for this store, and why; the stream should end.
    pub fn raft(&self, frame: RaftFrame) -> Result<(), String> {
        let Some(running) = self.running.get() else { return Err("this node is not in a cluster yet".into()) };
        if let Some(reason) = frames::refusal(&running.sender, &self.book, &frame) {
            let mut refused = self.refused.lock();
            if refused.len() < REFUSED_SENDERS_AT_MOST
                && refused.insert(frame.from_store, reason.clone()).as_ref() != Some(&reason)
            {
                tracing::warn!(from = frame.from_store, reason, "Raft frames are refused");
            }
            return Err(reason);
        }
        // Past the inbox's bound it is dropped: Raft repeats itself.
        let _ = running.store.deliver(frame);
        Ok(())
    }

    /// Begins to take a snapshot from another store. `Err`: it is not taken, and why.
    pub fn receive_snapshot(&self, head: SnapshotHead) -> Result<Receiving, String> {
        let Some(running) = self.running.get() else { return Err("this node is not in a cluster yet".into()) };
        if let Some(reason) = frames::refusal(&running.sender, &self.book, &head) {
            return Err(reason);
        }
        running.store.receive_snapshot(head.message.ok_or("a snapshot without a message")?)
    }
}
