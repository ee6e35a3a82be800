//! What goes wrong, when, for how long: drawn from the seed, one fault after the other, sometimes overlapping.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{Either, select};
use proto::StoreId;
use tokio::sync::oneshot;

use rand::{Rng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    disk::Disk,
    machines::node_of,
    network::{LinkQuality, Network},
    runtime::{NodeIndex, Owner, World},
};

/// What faults do to a cluster.
pub trait Victim: Send + Sync + 'static {
    /// How many nodes.
    fn nodes(&self) -> usize;
    /// Ends a node's life where it stands; unsynced writes are lost from some point on.
    fn crash(&self, node: NodeIndex);
    /// Begins another life on what the disk holds.
    fn boot(&self, node: NodeIndex);
    /// Whether it leads any region: faults like leaders.
    fn leads(&self, node: NodeIndex) -> bool;
    /// Whether it leads PD's region.
    fn leads_pd(&self, node: NodeIndex) -> bool;
    /// Tells who wins the next election, of any region.
    fn next_election(&self) -> oneshot::Receiver<StoreId>;
    /// The node's disk.
    fn disk(&self, node: NodeIndex) -> &Disk;
    /// Tells who takes the next snapshot.
    fn next_snapshot(&self) -> oneshot::Receiver<StoreId>;
    /// Tells where a region is taken over next.
    fn next_merge(&self) -> oneshot::Receiver<StoreId>;
    /// Moves the node's wall clock.
    fn jump_clock(&self, node: NodeIndex, by_ms: i64);
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One node dies and comes back.
    Crash,
    /// All nodes die at once and come back.
    CrashAll,
    /// Two nodes die at once: what only they had acknowledged has to be on their disks.
    CrashMajority,
    /// One node is cut off from all others, both ways.
    Isolate,
    /// One direction of one link is cut.
    OneWay,
    /// Two nodes are cut off from each other; one sees both, and now and then restarts in between.
    Bridge,
    /// A leader is cut off; whoever is elected instead dies at once, with its voters, and the old leader comes back.
    Coup,
    /// A node is cut off until the others' logs do not reach back to it; it dies while it takes the snapshot it needs.
    Relapse,
    /// A node dies soon after a region there has taken over another one: its state may go back to before.
    HeirDies,
    /// All links lose, delay, double and reorder.
    RoughLinks,
    /// A node stands still, and goes on as if nothing had happened.
    Pause,
    /// Syncs take many times longer.
    SlowDisk,
    /// Syncs do not end for a while.
    StalledDisk,
    /// The wall clock jumps.
    ClockJump,
    /// For longer than a gateway's catalog lease a node is cut off, or hears nobody while all others hear it, or stands
    /// still.
    Exile,
    /// The same for so long that others see its leases end and act on it.
    LongExile,
    /// A node stands still or is cut off for so long that changes of the schema no longer wait for its gateway, and have been made
    /// before it is back.
    Absence,
}

/// What every cluster must stand.
pub const USUAL: &[Fault] = &[
    Fault::Crash,
    Fault::CrashAll,
    Fault::CrashMajority,
    Fault::Isolate,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Coup,
    Fault::Relapse,
    Fault::RoughLinks,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::StalledDisk,
    Fault::ClockJump,
];

/// Nodes that others take for gone, and that go on; and a few faults besides.
#[cfg(feature = "sql")]
pub const ABSENCES: &[Fault] = &[
    Fault::Absence,
    Fault::Absence,
    Fault::Absence,
    Fault::Absence,
    Fault::Crash,
    Fault::Isolate,
    Fault::OneWay,
    Fault::RoughLinks,
    Fault::Pause,
    Fault::ClockJump,
];

/// Quiet time between two faults: shorter than an election, up to long enough for calm work.
const QUIET_MIN: Duration = Duration::from_millis(50);
const QUIET_MAX: Duration = Duration::from_millis(1500);
/// How long a fault lasts: from a hiccup to several election timeouts.
const LASTS_MIN: Duration = Duration::from_millis(20);
const LASTS_MAX: Duration = Duration::from_millis(3000);
/// An exile: longer than the catalog lease of a gateway (8 s), which then counts as gone; and not much longer, so that what
/// the node was doing is not given up but goes on.
const EXILE_MIN: Duration = Duration::from_millis(8300);
const EXILE_MAX: Duration = Duration::from_millis(9900);
const LONG_EXILE_MAX: Duration = Duration::from_secs(14);
/// An absence: until a gateway counts as gone (10 s), and a change of the schema is made; and not much longer, so that what the node was
/// doing is not given up (15 s) but goes on.
const ABSENCE_MIN: Duration = Duration::from_millis(12_000);
const ABSENCE_MAX: Duration = Duration::from_millis(14_500);
/// A restart that nobody else notices, and how long disks die: much shorter than an election.
const BLINK_MIN: Duration = Duration::from_millis(10);
const BLINK_MAX: Duration = Duration::from_millis(250);
/// How often the middle of a bridge restarts.
const RESTARTS_MAX: u32 = 8;
/// So long others write without a node before it comes back and dies again: more than their logs keep.
const AWAY_MIN: Duration = Duration::from_millis(1800);
/// So long it may take until it gets a snapshot.
const SNAPSHOT_WAIT: Duration = Duration::from_millis(2000);
/// About what the steps of a snapshot take.
const SNAPSHOT_STEPS_MAX: Duration = Duration::from_millis(8);
/// So long it may take until regions are merged.
const MERGE_WAIT: Duration = Duration::from_millis(4000);
/// About what a log write and its sync take: the source's log may be gone by then, the state is not synced yet.
const HEIR_LIVES_MAX: Duration = Duration::from_millis(60);
/// A coup waits this long for an election.
const ELECTION_WAIT: Duration = Duration::from_millis(3000);
/// What a winner is given before it dies: about what a disk needs for its first entry.
const GRACE_MAX: Duration = Duration::from_millis(2);

/// Lets faults of `kinds` happen until `until`, then heals everything and boots who is down.
pub async fn torment(world: World, network: Network, victim: Arc<dyn Victim>, mut kinds: Vec<Fault>, until: Duration) {
    let mut rng = world.rng("faults");
    // Each seed has its own mix: all kinds, or only a few of them, many times.
    kinds.shuffle(&mut rng);
    kinds.truncate(rng.random_range(2..=kinds.len()));
    let mut nemesis = Nemesis { world: world.clone(), network, victim, rng };
    while world.now() < until {
        let quiet = nemesis.rng.random_range(QUIET_MIN..QUIET_MAX);
        world.sleep(Owner::Harness, quiet).await;
        let kind = kinds[nemesis.rng.random_range(0..kinds.len())];
        nemesis.strike(kind).await;
    }
    nemesis.heal();
}

struct Nemesis {
    world: World,
    network: Network,
    victim: Arc<dyn Victim>,
    rng: ChaCha8Rng,
}

impl Nemesis {
    async fn strike(&mut self, fault: Fault) {
        let lasts = self.rng.random_range(LASTS_MIN..LASTS_MAX);
        let node = self.choose();
        self.world.trace("fault", fault as u64);
        tracing::debug!(now = ?self.world.now(), ?fault, node, ?lasts, "fault");
        match fault {
            Fault::Crash => self.crash(&[node], lasts).await,
            Fault::Bridge => self.bridge(node, lasts).await,
            Fault::Coup => self.coup(node).await,
            Fault::Relapse => self.relapse(node, lasts).await,
            Fault::HeirDies => self.heir_dies().await,
            Fault::CrashAll => {
                let all: Vec<_> = (0..self.victim.nodes()).collect();
                self.crash(&all, lasts / 4).await;
            }
            Fault::CrashMajority => {
                let majority: Vec<_> = (0..self.victim.nodes()).filter(|n| *n != node).collect();
                self.crash(&majority, lasts / 4).await;
            }
            Fault::Isolate => {
                self.world.count("partitions", 1);
                self.isolate(node, lasts).await;
            }
            Fault::OneWay => {
                self.world.count("one-way cuts", 1);
                let other = (node + self.rng.random_range(1..self.victim.nodes())) % self.victim.nodes();
                self.network.cut(node, other);
                self.wait(lasts).await;
                self.network.heal();
            }
            Fault::RoughLinks => {
                self.world.count("rough links", 1);
                self.network.set_quality(LinkQuality::ROUGH);
                self.wait(lasts).await;
                self.network.set_quality(LinkQuality::CALM);
            }
            Fault::Pause => {
                self.world.count("pauses", 1);
                self.world.pause(node, lasts);
                self.wait(lasts).await;
            }
            Fault::Exile => self.exile(node, EXILE_MIN..EXILE_MAX).await,
            Fault::LongExile => self.exile(node, EXILE_MAX..LONG_EXILE_MAX).await,
            Fault::Absence => self.absence(node).await,
            // These two go on beside whatever comes next.
            Fault::SlowDisk => self.victim.disk(node).slow_down(lasts),
            Fault::StalledDisk => self.victim.disk(node).stall(lasts),
            Fault::ClockJump => {
                self.world.count("clock jumps", 1);
                self.victim.jump_clock(node, self.rng.random_range(-5_000..5_000));
            }
        }
    }

    /// Any node, or, as often, one that leads.
    fn choose(&mut self) -> NodeIndex {
        let all = self.victim.nodes();
        let leaders: Vec<_> = (0..all).filter(|node| self.victim.leads(*node)).collect();
        let any = self.rng.random_range(0..all);
        match leaders.is_empty() || self.rng.random_bool(0.5) {
            true => any,
            false => leaders[self.rng.random_range(0..leaders.len())],
        }
    }

    async fn isolate(&self, node: NodeIndex, lasts: Duration) {
        for other in (0..self.victim.nodes()).filter(|other| *other != node) {
            self.network.cut(node, other);
            self.network.cut(other, node);
        }
        self.wait(lasts).await;
        self.network.heal();
    }

    async fn exile(&mut self, node: NodeIndex, lasts: std::ops::Range<Duration>) {
        self.world.count("exiles", 1);
        let lasts = self.rng.random_range(lasts);
        match self.rng.random_range(0..3) {
            0 => self.isolate(node, lasts).await,
            1 => {
                (0..self.victim.nodes()).filter(|other| *other != node).for_each(|other| self.network.cut(other, node));
                self.wait(lasts).await;
                self.network.heal();
            }
            _ => {
                self.world.pause(node, lasts);
                self.wait(lasts).await;
            }
        }
    }

    /// Seldom PD's node: a new PD takes longer until it is certain that a gateway is gone.
    async fn absence(&mut self, any: NodeIndex) {
        self.world.count("absences", 1);
        let lasts = self.rng.random_range(ABSENCE_MIN..ABSENCE_MAX);
        let away = self.victim.leads_pd(any) && self.rng.random_bool(0.8);
        let node = if away { (any + 1) % self.victim.nodes() } else { any };
        if self.rng.random_bool(0.3) {
            return self.isolate(node, lasts).await;
        }
        self.world.pause(node, lasts);
        self.wait(lasts).await;
    }

    async fn bridge(&mut self, middle: NodeIndex, lasts: Duration) {
        self.world.count("bridges", 1);
        let ends: Vec<_> = (0..self.victim.nodes()).filter(|node| *node != middle).collect();
        for &(from, to) in &[(ends[0], ends[1]), (ends[1], ends[0])] {
            self.network.cut(from, to);
        }
        for _ in 0..self.rng.random_range(0..=RESTARTS_MAX) {
            let (up, down) =
                (self.rng.random_range(BLINK_MIN..BLINK_MAX * 2), self.rng.random_range(BLINK_MIN..BLINK_MAX / 3));
            self.wait(up).await;
            // Often the middle does not hear one end for a moment after its restart: the other may speak first.
            let mute = ends[self.rng.random_range(0..ends.len())];
            let muted = self.rng.random_range(BLINK_MIN..BLINK_MAX);
            self.network.cut(mute, middle);
            self.network.cut(middle, mute);
            self.world.count("crashes", 1);
            self.victim.crash(middle);
            self.wait(down).await;
            self.victim.boot(middle);
            self.wait(muted).await;
            self.network.mend(mute, middle);
            self.network.mend(middle, mute);
        }
        self.wait(lasts).await;
        self.network.heal();
    }

    async fn relapse(&mut self, node: NodeIndex, lasts: Duration) {
        self.isolate(node, lasts.max(AWAY_MIN)).await;
        // Now and then on links that bend what they carry.
        if self.rng.random_bool(0.3) {
            self.network.set_quality(LinkQuality::ROUGH);
        }
        let (taken, patience) = (self.victim.next_snapshot(), self.world.sleep(Owner::Harness, SNAPSHOT_WAIT));
        if let Either::Left((Ok(store), _)) = select(taken, pin!(patience)).await {
            self.world.count("relapses", 1);
            let steps = self.rng.random_range(Duration::ZERO..SNAPSHOT_STEPS_MAX);
            self.wait(steps).await;
            let down = self.rng.random_range(BLINK_MIN..BLINK_MAX);
            self.crash(&[node_of(store)], down).await;
        }
        self.network.set_quality(LinkQuality::CALM);
    }

    async fn heir_dies(&mut self) {
        let (merged, patience) = (self.victim.next_merge(), self.world.sleep(Owner::Harness, MERGE_WAIT));
        if let Either::Left((Ok(store), _)) = select(merged, pin!(patience)).await {
            self.world.count("heirs killed", 1);
            let lives = self.rng.random_range(Duration::ZERO..HEIR_LIVES_MAX);
            self.wait(lives).await;
            let down = self.rng.random_range(BLINK_MIN..BLINK_MAX);
            self.crash(&[node_of(store)], down).await;
        }
    }

    async fn coup(&mut self, old: NodeIndex) {
        let others: Vec<_> = (0..self.victim.nodes()).filter(|node| *node != old).collect();
        for &other in &others {
            self.network.cut(old, other);
            self.network.cut(other, old);
        }
        let (elected, patience) = (self.victim.next_election(), self.world.sleep(Owner::Harness, ELECTION_WAIT));
        let winner = match select(elected, pin!(patience)).await {
            Either::Left((Ok(store), _)) if node_of(store) != old => node_of(store),
            _ => return self.network.heal(),
        };
        self.world.count("coups", 1);
        // Before or after the voter's disk has the winner's first entry.
        let grace = self.rng.random_range(Duration::ZERO..GRACE_MAX);
        self.wait(grace).await;
        others.iter().for_each(|&node| self.victim.crash(node));
        self.network.heal();
        for &node in others.iter().filter(|node| **node != winner).chain([&winner]) {
            let down = self.rng.random_range(BLINK_MIN..BLINK_MAX);
            self.wait(down).await;
            self.victim.boot(node);
            // Time enough for the old leader and the voters to choose again.
            let alone = self.rng.random_range(BLINK_MIN..ELECTION_WAIT / 2);
            self.wait(alone).await;
        }
    }

    async fn crash(&mut self, nodes: &[NodeIndex], down: Duration) {
        // Power seldom fails at once: in half of the cases the disks go first, and what is appended then is lost.
        if self.rng.random_bool(0.5) {
            let dying = self.rng.random_range(BLINK_MIN..BLINK_MAX);
            nodes.iter().for_each(|&node| self.victim.disk(node).stall(dying * 2));
            self.wait(dying).await;
        }
        for &node in nodes {
            self.world.count("crashes", 1);
            self.victim.crash(node);
        }
        self.wait(down).await;
        for &node in nodes {
            self.victim.disk(node).heal();
            self.victim.boot(node);
            let between = self.rng.random_range(Duration::ZERO..Duration::from_millis(300));
            self.wait(between).await;
        }
    }

    async fn wait(&self, time: Duration) {
        self.world.sleep(Owner::Harness, time).await;
    }

    fn heal(&self) {
        self.network.heal();
        self.network.set_quality(LinkQuality::CALM);
        for node in 0..self.victim.nodes() {
            self.victim.disk(node).heal();
            if self.world.owner(node).is_none() {
                self.victim.boot(node);
            }
        }
    }
}
