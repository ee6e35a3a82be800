//! One seed from boot to verdict.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use history::Level;

#[cfg(feature = "sql")]
use crate::sql::{self, AdvisoryLocks, Family, Gateways, Indexed, Schema, Seats, Sessions};
use crate::{
    changes::{self, Changes},
    cluster::{
        Cluster, Settings, Software,
        nodes::{Bare, HASTY_GC, Nodes},
        stores::Stores,
    },
    coverage::Coverage,
    faults::{self, Fault, Victim},
    runtime::{NodeIndex, Owner, World},
    workload::{
        Seat, Workload,
        append::Append,
        bank::Bank,
        guard::Guard,
        large::Large,
        past::{self, Past},
        register::Register,
        space::Doors,
    },
};

/// Nodes of a simulated cluster: the smallest that survives the loss of one.
const NODES: usize = 3;
/// Two more than a region has replicas.
const MOVING_NODES: usize = 5;
/// Sessions on each node.
const SESSIONS: usize = 3;
/// How long faults go on: some ten of them.
const TORMENT: Duration = Duration::from_secs(25);
/// Where leases of gateways shall run out: each time takes half as long as [`TORMENT`].
#[cfg(feature = "sql")]
const LONG_TORMENT: Duration = Duration::from_secs(40);
/// Before the first and after the last fault everything must settle within this: elections, expired locks.
const SETTLE: Duration = Duration::from_secs(60);
/// Quiet time in which elections end and regions fall asleep.
const FALL_ASLEEP: Duration = Duration::from_secs(4);
/// Between two attempts of the harness to prepare or to judge.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Which cluster and workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stores without PD and transactions, single keys, linearizability.
    Stores,
    /// Nodes, single keys, linearizability.
    Register,
    /// Nodes, transfers between accounts, sums.
    Bank,
    /// The same on more nodes than a region has replicas, whose PD splits regions, moves them, and makes those of a silent
    /// store anew.
    Moving,
    /// Gateways, [`Kind::Register`] in SQL.
    #[cfg(feature = "sql")]
    SqlRegister,
    /// Gateways, [`Kind::Bank`] in SQL.
    #[cfg(feature = "sql")]
    SqlBank,
    /// Gateways, tables that are emptied and made anew while others fill them.
    #[cfg(feature = "sql")]
    Schema,
    /// [`Kind::Register`] through the public KV service.
    Space,
    /// Nodes, transactions that keep each other off by row locks.
    Guard,
    /// Nodes, lists that transactions read and append to, SERIALIZABLE, cycles.
    Append,
    /// The same at REPEATABLE READ.
    AppendSnapshot,
    /// The same at READ COMMITTED.
    AppendCommitted,
    /// Gateways, parents that go while children come.
    #[cfg(feature = "sql")]
    Family,
    /// Gateways, unique values that are looked at late.
    #[cfg(feature = "sql")]
    Seats,
    /// Gateways, advisory locks of their sessions.
    #[cfg(feature = "sql")]
    Advisory,
    /// Nodes, transfers, and looks at moments of the past from any replica.
    Past,
    /// Nodes, [`Kind::Bank`] in transactions that leave every step with the stores.
    Large,
    /// Gateways that are away for longer than their leases run, an index that is built anew meanwhile.
    #[cfg(feature = "sql")]
    Indexed,
}

/// All that this build has.
pub const KINDS: &[Kind] = &[
    Kind::Stores,
    Kind::Register,
    Kind::Bank,
    Kind::Moving,
    #[cfg(feature = "sql")]
    Kind::SqlRegister,
    #[cfg(feature = "sql")]
    Kind::SqlBank,
    #[cfg(feature = "sql")]
    Kind::Schema,
    Kind::Space,
    Kind::Guard,
    Kind::Append,
    Kind::AppendSnapshot,
    Kind::AppendCommitted,
    #[cfg(feature = "sql")]
    Kind::Family,
    #[cfg(feature = "sql")]
    Kind::Seats,
    #[cfg(feature = "sql")]
    Kind::Advisory,
    Kind::Past,
    Kind::Large,
    #[cfg(feature = "sql")]
    Kind::Indexed,
];

impl Kind {
    /// What goes wrong, and for how long.
    fn torment(self) -> (Vec<Fault>, Duration) {
        match self {
            Kind::Stores => ([faults::USUAL, &[Fault::HeirDies]].concat(), TORMENT),
            Kind::Register | Kind::Bank | Kind::Space | Kind::Guard => (faults::USUAL.to_vec(), TORMENT),
            Kind::Past | Kind::Large => (faults::USUAL.to_vec(), TORMENT),
            Kind::Append | Kind::AppendSnapshot | Kind::AppendCommitted => (faults::USUAL.to_vec(), TORMENT),
            Kind::Moving => ([faults::USUAL, &[Fault::Exile]].concat(), TORMENT * 2),
            #[cfg(feature = "sql")]
            Kind::SqlRegister | Kind::SqlBank | Kind::Schema | Kind::Family | Kind::Seats => {
                ([faults::USUAL, &[Fault::Exile]].concat(), LONG_TORMENT)
            }
            #[cfg(feature = "sql")]
            Kind::Advisory => ([faults::USUAL, &[Fault::LongExile; 3]].concat(), LONG_TORMENT),
            #[cfg(feature = "sql")]
            Kind::Indexed => (faults::ABSENCES.to_vec(), LONG_TORMENT * 3 / 2),
        }
    }

    /// Nodes of its cluster.
    fn nodes(self) -> usize {
        if self == Kind::Moving { MOVING_NODES } else { NODES }
    }
}

/// What PD strives for where regions move: everything happens within seconds and bytes instead of hours and megabytes.
fn hasty() -> node::Rules {
    let (split_bytes, merge_bytes) = (12 << 10, 4 << 10);
    node::Rules {
        down_after_ms: 7_000,
        split_bytes,
        merge_bytes,
        merge_after_ms: 3_000,
        gc: HASTY_GC,
        ..node::Rules::default()
    }
}

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// The hash of all events.
    pub hash: u64,
    /// How many.
    pub events: u64,
    /// What was covered.
    pub coverage: Coverage,
    /// The failure, if any.
    pub verdict: Result<(), String>,
}

/// Runs `kind` from `seed`.
pub fn run(seed: u64, kind: Kind, settings: &Settings) -> Report {
    // Equal seeds of different kinds shall not share their faults.
    let world = World::new(seed.wrapping_add((kind as u64 + 1) << 48), kind.nodes());
    let stores = |world: &World| Stores::cluster(world.clone(), NODES, settings.clone());
    let nodes = |world: &World| Nodes::cluster(world.clone(), NODES, settings.clone(), Bare);
    #[cfg(feature = "sql")]
    let gateways = |world: &World| Nodes::cluster(world.clone(), NODES, settings.clone(), Gateways::Mixed);
    match kind {
        Kind::Stores => perform(kind, world.clone(), stores(&world), Arc::new(Register::default())),
        Kind::Register => perform(kind, world.clone(), nodes(&world), Arc::new(Register::default())),
        Kind::Bank => perform(kind, world.clone(), nodes(&world), Arc::new(Bank::default())),
        Kind::Large => {
            let nodes = Nodes::cluster(world.clone(), NODES, settings.clone(), Large);
            perform(kind, world.clone(), nodes, Arc::new(Bank::default()))
        }
        Kind::Guard => perform(kind, world.clone(), nodes(&world), Arc::new(Guard::default())),
        Kind::Past => {
            let nodes = Nodes::cluster_with(world.clone(), NODES, settings.clone(), Bare, past::rules());
            perform(kind, world.clone(), nodes, Arc::new(Past::default()))
        }
        Kind::Append => perform(kind, world.clone(), nodes(&world), Arc::new(Append::new(Level::Strict))),
        Kind::AppendSnapshot => {
            perform(kind, world.clone(), nodes(&world), Arc::new(Append::new(Level::RepeatableRead)))
        }
        Kind::AppendCommitted => {
            perform(kind, world.clone(), nodes(&world), Arc::new(Append::new(Level::ReadCommitted)))
        }
        Kind::Space => {
            let doors = Nodes::cluster(world.clone(), NODES, settings.clone(), Doors::default());
            perform(kind, world.clone(), doors, Arc::new(Register::default()))
        }
        Kind::Moving => {
            let nodes = Nodes::cluster_with(world.clone(), MOVING_NODES, settings.clone(), Bare, hasty());
            perform(kind, world.clone(), nodes, Arc::new(Bank::default()))
        }
        #[cfg(feature = "sql")]
        Kind::SqlRegister => perform(kind, world.clone(), gateways(&world), Arc::new(Register::default())),
        #[cfg(feature = "sql")]
        Kind::SqlBank => perform(kind, world.clone(), gateways(&world), Arc::new(Bank::default())),
        #[cfg(feature = "sql")]
        Kind::Schema => {
            let gateways = Nodes::cluster_with(world.clone(), NODES, settings.clone(), Gateways::Mixed, past::rules());
            perform(kind, world.clone(), gateways, Arc::new(Schema::default()))
        }
        #[cfg(feature = "sql")]
        Kind::Family => perform(kind, world.clone(), gateways(&world), Arc::new(Sessions::<Family>::default())),
        #[cfg(feature = "sql")]
        Kind::Seats => perform(kind, world.clone(), gateways(&world), Arc::new(Sessions::<Seats>::default())),
        #[cfg(feature = "sql")]
        Kind::Advisory => {
            perform(kind, world.clone(), gateways(&world), Arc::new(Sessions::<AdvisoryLocks>::default()))
        }
        #[cfg(feature = "sql")]
        Kind::Indexed => {
            let gateways =
                Nodes::cluster_with(world.clone(), NODES, settings.clone(), Gateways::Patient, sql::long_memory());
            perform(kind, world.clone(), gateways, Arc::new(Sessions::<Indexed>::default()))
        }
    }
}

fn perform<S: Software>(
    kind: Kind,
    world: World,
    cluster: Arc<Cluster<S>>,
    workload: Arc<dyn Workload<S::Client>>,
) -> Report {
    let (done, torment) = (Arc::new(AtomicBool::new(false)), kind.torment());
    let limit = torment.1 + SETTLE * 3;
    let (nodes, pd_changes, last_blow) = (kind.nodes(), kind == Kind::Moving, kind == Kind::Stores);
    let play = Play { world: world.clone(), cluster: cluster.clone(), workload, torment, nodes, pd_changes, last_blow };
    let noted = done.clone();
    world.spawn(Owner::Harness, async move {
        play.perform().await;
        noted.store(true, Ordering::Relaxed);
    });
    let verdict = world.run(limit, || done.load(Ordering::Relaxed));
    let (hash, events) = world.trace_hash();
    let report = Report { hash, events, coverage: world.coverage(), verdict };
    cluster.shut_down();
    world.shut_down();
    report
}

/// The plot: boot, prepare, work under faults, settle, judge.
struct Play<S: Software> {
    world: World,
    cluster: Arc<Cluster<S>>,
    workload: Arc<dyn Workload<S::Client>>,
    /// Which faults, and for how long.
    torment: (Vec<Fault>, Duration),
    nodes: usize,
    /// Regions are changed by PD, and nobody else.
    pd_changes: bool,
    /// Whether a node dies for good when all is quiet.
    last_blow: bool,
}

impl<S: Software> Play<S> {
    async fn perform(self) {
        for node in 0..self.nodes {
            self.cluster.boot(node);
        }
        let workload = self.workload.clone();
        self.insist(move |client| workload.clone().prepare(client)).await;
        let (workload, world) = (self.workload.clone(), self.world.clone());
        self.cluster
            .on_ready(Box::new(move |node, owner, client| open_sessions(&world, &workload, node, owner, client)));
        let (kinds, lasts) = self.torment.clone();
        let changes = Changes::new(self.world.clone(), Arc::new(self.cluster.clone()));
        let workload = self.workload.clone();
        let border: changes::Border = Arc::new(move |rng| workload.border(rng));
        let until = self.world.now() + lasts;
        // Ids that somebody else gives away and PD's own would not grow together, as stores expect of a region's peers.
        if !self.pd_changes {
            self.world.spawn(Owner::Harness, changes.clone().torment(border, until));
        }
        self.world.spawn(Owner::Harness, changes.clone().verify(until));
        let (network, victim) = (self.cluster.network().clone(), Arc::new(self.cluster.clone()));
        faults::torment(self.world.clone(), network, victim, kinds, self.world.now() + lasts).await;
        self.workload.stop();
        let settled = self.insist(move |_| Box::pin(std::future::ready(changes.settled()))).await;
        if let Err(reason) = settled {
            self.world.fail(reason);
        }
        if self.last_blow {
            self.strike_a_sleeper().await;
        }
        let (workload, world) = (self.workload.clone(), self.world.clone());
        let verdict = self.insist(move |client| workload.clone().judge(client, world.clone())).await;
        if let Err(reason) = verdict {
            self.world.fail(reason);
        }
    }

    /// When nobody uses them any more and all regions sleep, a node that leads some dies for good.
    async fn strike_a_sleeper(&self) {
        self.world.sleep(Owner::Harness, FALL_ASLEEP).await;
        if let Some(node) = (0..NODES).find(|node| self.cluster.leads(*node) && self.cluster.can_spare(*node)) {
            self.world.count("sleeping leaders killed", 1);
            self.cluster.crash(node);
        }
    }

    /// Tries on one node after the other until it works. Only while no faults happen: a node that crashes takes
    /// the attempt with it.
    async fn insist<T>(&self, attempt: impl Fn(S::Client) -> BoxFuture<'static, Result<T, String>>) -> T {
        let give_up = self.world.now() + SETTLE;
        let mut turn = 0;
        loop {
            let result = match self.cluster.client(turn % self.nodes) {
                Some(client) => attempt(client).await,
                None => Err("the node is not ready".into()),
            };
            match result {
                Ok(value) => return value,
                Err(reason) if self.world.now() > give_up => {
                    self.world.fail(format!("the cluster does not settle: {reason}"));
                    std::future::pending::<()>().await;
                }
                Err(reason) => tracing::debug!(now = ?self.world.now(), reason, "the harness tries again"),
            }
            turn += 1;
            self.world.sleep(Owner::Harness, RETRY_PAUSE).await;
        }
    }
}

fn open_sessions<C: Clone + 'static>(
    world: &World,
    workload: &Arc<dyn Workload<C>>,
    node: NodeIndex,
    owner: Owner,
    client: C,
) {
    for session in 0..SESSIONS {
        let rng = world.rng(&format!("session {owner:?} {node} {session}"));
        let seat = Seat { world: world.clone(), owner, rng };
        world.spawn(owner, workload.clone().session(client.clone(), seat));
    }
}
