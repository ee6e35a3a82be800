//! Virtual time, the event queue, and what befell the nodes.

use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::executor::{Executor, panic_message};
use crate::{coverage::Coverage, trace::Trace};

/// A node of the simulated cluster, from 0.
pub type NodeIndex = usize;

/// Whose event or task this is; it ends with that life of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The test itself: clients, faults, checkers. Never crashes.
    Harness,
    /// One life of a node: index, how many crashes it has behind it.
    Node(NodeIndex, u64),
}

/// Runaway runs end here: some hundred times what a seed needs.
const EVENTS_MAX: u64 = 20_000_000;

type Fire = Box<dyn FnOnce() + Send>;

struct Event {
    owner: Owner,
    label: &'static str,
    detail: u64,
    fire: Fire,
}

struct NodeState {
    life: u64,
    up: bool,
    paused_until: Duration,
}

struct State {
    now: Duration,
    sequence: u64,
    fired: u64,
    events: BTreeMap<(Duration, u64, u64), Event>,
    nodes: Vec<NodeState>,
    schedule_rng: ChaCha8Rng,
    trace: Trace,
    coverage: Coverage,
    failure: Option<String>,
}

struct Inner {
    seed: u64,
    state: Mutex<State>,
    executor: Executor,
}

/// One run of one seed. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Inner>);

impl World {
    /// A world of `nodes` nodes, all down.
    pub fn new(seed: u64, nodes: usize) -> World {
        let node = || NodeState { life: 0, up: false, paused_until: Duration::ZERO };
        let state = State {
            now: Duration::ZERO,
            sequence: 0,
            fired: 0,
            events: BTreeMap::new(),
            nodes: (0..nodes).map(|_| node()).collect(),
            schedule_rng: stream(seed, "schedule"),
            trace: Trace::default(),
            coverage: Coverage::default(),
            failure: None,
        };
        World(Arc::new(Inner { seed, state: Mutex::new(state), executor: Executor::default() }))
    }

    /// A stream of randomness of its own, so that one part's draws do not shift another's.
    pub fn rng(&self, name: &str) -> ChaCha8Rng {
        stream(self.0.seed, name)
    }

    /// Time since the run began.
    pub fn now(&self) -> Duration {
        self.0.state.lock().now
    }

    /// Runs `fire` `after` from now, unless its owner's life ends before; a paused owner gets it when it goes on.
    /// `label` and `detail` go into the trace.
    pub fn schedule(
        &self,
        owner: Owner,
        after: Duration,
        label: &'static str,
        detail: u64,
        fire: impl FnOnce() + Send + 'static,
    ) {
        let mut state = self.0.state.lock();
        let at = state.now + after;
        state.push(at, Event { owner, label, detail, fire: Box::new(fire) });
    }

    /// Starts a task that ends with its owner's life.
    pub fn spawn(&self, owner: Owner, task: impl Future<Output = ()> + Send + 'static) {
        if self.alive(owner) {
            self.0.executor.spawn(owner, Box::pin(task));
        }
    }

    /// Completes `after` from now.
    pub fn sleep(&self, owner: Owner, after: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (done, woken) = tokio::sync::oneshot::channel();
        self.schedule(owner, after, "wake", 0, move || {
            let _ = done.send(());
        });
        async move {
            // The sender is dropped only with the owner's life; then nobody polls this again.
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether that life still lasts.
    pub fn alive(&self, owner: Owner) -> bool {
        self.0.state.lock().alive(owner)
    }

    /// The present life of a node, when it is up.
    pub fn owner(&self, node: NodeIndex) -> Option<Owner> {
        let state = self.0.state.lock();
        let n = &state.nodes[node];
        n.up.then_some(Owner::Node(node, n.life))
    }

    /// Begins a life.
    pub fn boot(&self, node: NodeIndex) -> Owner {
        let mut state = self.0.state.lock();
        let n = &mut state.nodes[node];
        assert!(!n.up, "node {node} is up already");
        n.up = true;
        n.paused_until = Duration::ZERO;
        let owner = Owner::Node(node, n.life);
        state.trace.add("boot", node as u64);
        owner
    }

    /// Ends a life: its tasks are dropped where they stand, its events never fire.
    pub fn crash(&self, node: NodeIndex) {
        {
            let mut state = self.0.state.lock();
            let n = &mut state.nodes[node];
            n.up = false;
            n.life += 1;
            state.trace.add("crash", node as u64);
            let now = state.now;
            tracing::debug!(?now, node, "crash");
        }
        self.0.executor.drop_tasks(|owner| matches!(owner, Owner::Node(n, _) if *n == node));
    }

    /// Nothing of this node runs for `duration` (SIGSTOP, a long garbage collection of the hypervisor).
    pub fn pause(&self, node: NodeIndex, duration: Duration) {
        let mut state = self.0.state.lock();
        let until = state.now + duration;
        state.nodes[node].paused_until = until;
        state.trace.add("pause", node as u64);
    }

    /// Counts something for the coverage report.
    pub fn count(&self, what: &'static str, by: u64) {
        self.0.state.lock().coverage.add(what, by);
    }

    /// Adds to the trace.
    pub fn trace(&self, label: &'static str, detail: u64) {
        self.0.state.lock().trace.add(label, detail);
    }

    /// Ends the run as failed; the first message wins.
    pub fn fail(&self, message: impl Into<String>) {
        let mut state = self.0.state.lock();
        let at = state.now;
        let message = format!("at {at:?}: {}", message.into());
        state.failure.get_or_insert(message);
    }

    /// What was covered so far.
    pub fn coverage(&self) -> Coverage {
        self.0.state.lock().coverage.clone()
    }

    /// The hash of everything fired so far, and how many events that was.
    pub fn trace_hash(&self) -> (u64, u64) {
        let state = self.0.state.lock();
        (state.trace.hash(), state.fired)
    }

    /// Fires events until `done`, a failure, or `limit` of virtual time, which is a failure too.
    pub fn run(&self, limit: Duration, done: impl Fn() -> bool) -> Result<(), String> {
        let mut rng = self.rng("tasks");
        loop {
            if let Err(reason) = self.0.executor.run_until_idle(&mut rng) {
                self.fail(reason);
            }
            if let Some(failure) = self.0.state.lock().failure.clone() {
                return Err(failure);
            }
            if done() {
                return Ok(());
            }
            let Some(fire) = self.next(limit)? else { continue };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(fire)) {
                self.fail(format!("an event panicked: {}", panic_message(&*panic)));
            }
        }
    }

    /// Ends everything: tasks and events hold handles to this world, and would keep each other alive.
    pub fn shut_down(&self) {
        self.0.executor.drop_tasks(|_| true);
        let events = std::mem::take(&mut self.0.state.lock().events);
        drop(events);
    }

    /// The next event to fire; `None` when it was put off or its owner is gone.
    fn next(&self, limit: Duration) -> Result<Option<Fire>, String> {
        let mut state = self.0.state.lock();
        let Some(((at, _, _), event)) = state.events.pop_first() else {
            return Err("nothing is left to happen, and the run is not done: a task waits for ever".into());
        };
        state.fired += 1;
        if at > limit || state.fired > EVENTS_MAX {
            return Err(format!("not done after {at:?} of virtual time and {} events", state.fired));
        }
        state.now = at;
        if !state.alive(event.owner) {
            // Dropping may run destructors that call back.
            drop(state);
            drop(event);
            return Ok(None);
        }
        if let Owner::Node(node, _) = event.owner
            && state.nodes[node].paused_until > at
        {
            let until = state.nodes[node].paused_until;
            state.push(until, event);
            return Ok(None);
        }
        let owner = match event.owner {
            Owner::Harness => u64::MAX,
            Owner::Node(node, _) => node as u64,
        };
        state.trace.add("at", at.as_nanos() as u64);
        state.trace.add(event.label, owner);
        state.trace.add("detail", event.detail);
        tracing::trace!(?at, label = event.label, owner, detail = event.detail, "event");
        Ok(Some(event.fire))
    }
}

impl State {
    fn push(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        let tie = self.schedule_rng.random();
        self.events.insert((at, tie, self.sequence), event);
    }
    fn alive(&self, owner: Owner) -> bool {
        match owner {
            Owner::Harness => true,
            Owner::Node(node, life) => self.nodes[node].up && self.nodes[node].life == life,
        }
    }
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut trace = Trace::default();
    trace.add_bytes(name.as_bytes());
    ChaCha8Rng::seed_from_u64(seed ^ trace.hash().rotate_left(17))
}
