//! This data directory's place in a cluster: the founding core together with its disk, probing and handing over.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, join_all, select};
use kv::Clock;
use parking_lot::Mutex;
use proto::{
    ClusterId, StoreId,
    wire::{AcceptRequest, AcceptResponse, FoundingRecord, ProbeRequest, ProbeResponse, Region, Store},
};
use raftstore::engine::EngineError;

use crate::{
    NodeRpc,
    founding::{Answers, Founding, Step, record::Founder, show_uuid},
    identity::Identity,
};

/// Between two rounds. Founding ends within a few of them once everybody is up.
const ROUND: Duration = Duration::from_millis(200);
/// An answer within a round; a founder that needs longer counts as silent.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// The same reason for waiting is logged again after this many rounds (about ten seconds).
const REPEAT_REASON_ROUNDS: u32 = 50;
/// A running node asks a silent address of `--join` again after this long.
const LOOK_AROUND: Duration = Duration::from_millis(500);

/// Why a node did not get into a cluster, or may not stay.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FoundingError {
    /// A person must decide.
    #[error("{0}")]
    Refused(String),
    /// The disk failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// How founding ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Founded {
    /// This directory is that store of the cluster, and may run.
    As(StoreId),
    /// This directory holds the cluster's record and must be registered with its PD as a new store.
    Newcomer,
}

struct State {
    founding: Founding,
    identity: Identity,
}

impl State {
    fn hold(&mut self, record: FoundingRecord) -> Result<(), EngineError> {
        self.identity.hold(record.clone())?;
        self.founding.synced(record);
        Ok(())
    }
    fn start(&mut self, store: StoreId) -> Result<(), EngineError> {
        self.identity.start(store)?;
        self.founding.started();
        Ok(())
    }
}

/// The core with its disk. Records are synced under the lock: no two can be taken at once.
pub struct Membership {
    address: String,
    state: Mutex<State>,
}

/// What follows outside the lock.
enum Next {
    Wait(String),
    Again,
    Hand(Vec<String>, FoundingRecord, String),
    Done(Founded),
}

impl Membership {
    /// A directory at its address, with the `--join` list, and what a record would be composed of.
    pub fn new(identity: Identity, address: String, join: &[String], cluster_id: u64, user_regions: u32) -> Self {
        let me = Founder { address: address.clone(), uuid: identity.uuid.clone() };
        let (held, started) = (identity.record.clone(), identity.store.is_some());
        let founding = Founding::new(me, join, (cluster_id, user_regions), held, started);
        Membership { address, state: Mutex::new(State { founding, identity }) }
    }

    /// The address of this node's gRPC door, as others know it.
    pub fn address(&self) -> &str {
        &self.address
    }
    /// Of the data directory.
    pub fn uuid(&self) -> Bytes {
        self.state.lock().identity.uuid.clone()
    }
    /// How often a process was started on the directory.
    pub fn boot_id(&self) -> u64 {
        self.state.lock().identity.boot_id
    }
    /// The store id, once it may run.
    pub fn store(&self) -> Option<StoreId> {
        self.state.lock().identity.store
    }
    /// The record this directory holds.
    pub fn record(&self) -> Option<FoundingRecord> {
        self.state.lock().identity.record.clone()
    }
    /// The cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.state.lock().identity.cluster()
    }
    /// Region 1 and the stores' addresses as PD last told, from before this start.
    pub fn remembered(&self) -> Result<(Option<Region>, Vec<Store>), EngineError> {
        let state = self.state.lock();
        Ok((state.identity.pd_region()?, state.identity.addresses()?))
    }
    /// Remembers region 1 over restarts.
    pub fn remember_pd_region(&self, region: &Region) -> Result<(), EngineError> {
        self.state.lock().identity.set_pd_region(region)
    }
    /// Remembers where the stores are over restarts.
    pub fn remember_addresses(&self, stores: &[Store]) -> Result<(), EngineError> {
        self.state.lock().identity.set_addresses(stores)
    }

    /// Answers another node's question.
    pub fn probe(&self, request: &ProbeRequest) -> ProbeResponse {
        let mut state = self.state.lock();
        ProbeResponse { boot_id: state.identity.boot_id, ..state.founding.answer(request) }
    }

    /// Takes a record that another founder hands over; answers after it is synced.
    pub fn accept(&self, request: AcceptRequest) -> AcceptResponse {
        let mut state = self.state.lock();
        let taken = match &request.record {
            None => Err("no record in the message".to_string()),
            Some(record) => state.founding.accept(record).and_then(|new| {
                let held = if new { state.hold(record.clone()) } else { Ok(()) };
                held.map_err(|e| format!("{} could not sync the record: {e}", self.address))
            }),
        };
        match taken {
            Ok(()) => AcceptResponse::default(),
            Err(refusal) => {
                tracing::warn!(refusal, "a founding record was not taken");
                AcceptResponse { refusal }
            }
        }
    }

    /// PD gave this directory a store id.
    pub fn registered(&self, store: StoreId) -> Result<(), EngineError> {
        self.state.lock().start(store)
    }

    /// Takes part in the founding until this directory knows its place.
    pub async fn found(&self, rpc: &dyn NodeRpc, clock: &dyn Clock) -> Result<Founded, FoundingError> {
        if let Some(store) = self.store() {
            return Ok(Founded::As(store));
        }
        let (mut said, mut rounds) = (String::new(), 0);
        loop {
            let answers = self.ask_all(rpc, clock).await;
            let reason = match self.decide(&answers)? {
                Next::Again => continue,
                Next::Done(founded) => return Ok(founded),
                Next::Wait(reason) => reason,
                Next::Hand(to, record, reason) => {
                    self.hand(rpc, clock, to, record).await;
                    reason
                }
            };
            rounds += 1;
            if said != reason || rounds % REPEAT_REASON_ROUNDS == 0 {
                tracing::info!(address = self.address, reason, "founding waits");
                said = reason;
            }
            clock.sleep(ROUND).await;
        }
    }

    fn decide(&self, answers: &Answers) -> Result<Next, FoundingError> {
        let mut state = self.state.lock();
        Ok(match state.founding.round(answers) {
            Step::Wait(reason) => Next::Wait(reason),
            Step::Sync(record) => {
                tracing::info!(address = self.address, cluster = %format!("{:x}", record.cluster_id), "holds the founding record");
                state.hold(record)?;
                Next::Again
            }
            Step::Hand(to, reason) => match state.identity.record.clone() {
                Some(record) => Next::Hand(to, record, reason),
                None => Next::Again,
            },
            Step::Start(store) => {
                state.start(store)?;
                tracing::info!(address = self.address, %store, "the cluster is founded");
                Next::Done(Founded::As(store))
            }
            Step::Join(record) => {
                tracing::info!(
                    address = self.address,
                    cluster = %format!("{:x}", record.cluster_id),
                    uuid = show_uuid(&state.identity.uuid),
                    "the founding record does not name this data directory: it joins as a new store"
                );
                if state.identity.record.is_none() {
                    state.hold(record)?;
                }
                Next::Done(Founded::Newcomer)
            }
            Step::Fail(reason) => return Err(FoundingError::Refused(reason)),
        })
    }

    async fn ask_all(&self, rpc: &dyn NodeRpc, clock: &dyn Clock) -> Answers {
        let (question, targets) = {
            let state = self.state.lock();
            (ProbeRequest { boot_id: state.identity.boot_id, ..state.founding.question() }, state.founding.targets())
        };
        let ask = |at: String| {
            let question = question.clone();
            async move {
                let answer = within(clock, rpc.probe(&at, question)).await;
                (at, answer)
            }
        };
        join_all(targets.into_iter().map(ask)).await
    }

    async fn hand(&self, rpc: &dyn NodeRpc, clock: &dyn Clock, to: Vec<String>, record: FoundingRecord) {
        let give = |at: String| {
            let request = AcceptRequest { record: Some(record.clone()) };
            async move {
                match within(clock, rpc.accept(&at, request)).await {
                    Ok(answer) if answer.refusal.is_empty() => {}
                    Ok(answer) => {
                        tracing::warn!(founder = at, refusal = answer.refusal, "a founder refused the record")
                    }
                    Err(reason) => tracing::warn!(founder = at, reason, "a founder did not take the record yet"),
                }
            }
        };
        join_all(to.into_iter().map(give)).await;
    }

    /// A running node asks the addresses of `--join` until each has answered once, and hands every round's answers to
    /// `heard`. Returns the reason why the node must stop, when one of them belongs to another cluster.
    pub async fn look_around(
        &self,
        rpc: &dyn NodeRpc,
        clock: &dyn Clock,
        heard: impl Fn(&Answers) + Send,
    ) -> Option<String> {
        loop {
            let answers = self.ask_all(rpc, clock).await;
            heard(&answers);
            let stray = self.state.lock().founding.stray(&answers);
            if stray.is_some() || answers.iter().all(|(_, answer)| answer.is_ok()) {
                return stray;
            }
            clock.sleep(LOOK_AROUND).await;
        }
    }
}

async fn within<T>(clock: &dyn Clock, call: impl Future<Output = Result<T, crate::CallError>>) -> Result<T, String> {
    match select(std::pin::pin!(call), clock.sleep(ANSWER_WITHIN)).await {
        Either::Left((answer, _)) => answer.map_err(|e| e.to_string()),
        Either::Right(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
    }
}
