//! The commit of one transaction as a state machine. PURE: events in, effects out.
//!
//! ```text
//!            all keys in one region, leader agrees
//!   Start ─► Prewriting ───────────────────────────────────────────────► Finish(commit_ts)
//!               │ │      several regions (Split): async commit, all locks stand   ▲  all in background
//!               │ ├──────────────────────────────────────────────────────────────┤
//!               │ │      too many keys for that, or no 1PC: locks                │
//!               │ └─► Timestamp ─► Committing the primary's region ──────────────┤  the rest in background
//!               │         │              │                                       │
//!               │ refused │ refused      │ answers lost until the deadline       │
//!               ▼         ▼              ▼                                       │
//!            roll back, Finish(error)   Asking the primary ── it is committed ───┘
//!                                            │        └────── rolled back now: Finish(error)
//!                                            └ no answer: Finish(CommitUnknown)
//! ```
//!
//! A serializable transaction has its reads looked at as well. If all of them and all of its writes are in one region the 1PC
//! does it. Otherwise:
//!
//! ```text
//!   Start, Split or ReadsElsewhere ─► Validating at C ─► prewrites that commit at C, and at nothing else ─► Finish(C)
//!                                          │                   └ one could not: as with two phases, where
//!                                          └ refused: Finish     the reads are looked at with the last timestamp
//! ```
//!
//! An async commit is committed when all its locks stand, whoever sees it first: the last prewrite's answer is the
//! commit. When the last of its answers are missing others may see, or have seen, what was not heard here: then the
//! primary is asked, as for a lost 1PC.
//!
//! A lost answer is never taken for a failure. A request whose answer was lost is sent again, since the store
//! recognises it. A 1PC whose answer was once lost, or a commit still unanswered at the deadline, ends by rolling
//! back the primary: that either reports the commit, or makes it impossible.
//!
//! A transaction that has spilled comes with all its locks, and goes on at Timestamp.
//!
//! It does not know regions: it hands out runs of keys, and the driver answers `Split` when a run has to be cut.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use proto::{
    Timestamp,
    wire::{LockRecord, Mutation},
};

use crate::Error;

/// Keys of an async commit at most: the primary's lock lists them, and whoever resolves it has to ask them all.
const ASYNC_KEYS: usize = 256;
/// And bytes of these keys, for the same reason.
const ASYNC_KEY_BYTES: usize = 16 << 10;

/// Names a request, so that its answer finds its way back.
pub type SendId = u32;

/// A run of the transaction's sorted mutations, by position.
pub type Run = Range<usize>;

/// How often something was sent before, and the least pause the callee asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeat {
    /// 0: the first time; no pause.
    pub count: u32,
    /// Pause at least this long.
    pub least: Duration,
}

/// What a prewrite is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One round for all keys of the transaction in one region.
    OnePc,
    /// Committed when all its locks stand.
    Async,
    /// Committed when its primary is.
    TwoPc,
}

/// What the driver does for the committer.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Prewrite a run, in one request to one region, or answer `Split`.
    Prewrite {
        /// Names the answer.
        id: SendId,
        /// The keys.
        run: Run,
        /// Part of which protocol.
        protocol: Protocol,
        /// Commit at this, at which the reads were looked at. None: with 1PC they are part of the request, or there are none.
        validated: Option<Timestamp>,
        /// Pause first.
        repeat: Repeat,
    },
    /// Take a timestamp from PD and see whether what the transaction has read is the same at it; then `Validated`.
    Validate,
    /// Get a lock out of the way, or wait for it a while; then `Cleared`.
    ClearLock {
        /// The prewrite that met it.
        id: SendId,
        /// The lock.
        lock: LockRecord,
    },
    /// Take a timestamp from PD, at which what has to be sure before the commit is sure.
    TakeTimestamp,
    /// Commit a run that holds the primary, in one request to one region, or answer `Split`.
    CommitPrimary {
        /// Names the answer.
        id: SendId,
        /// The keys.
        run: Run,
        /// At.
        commit_ts: Timestamp,
        /// Pause first.
        repeat: Repeat,
    },
    /// Roll back the primary, which tells whether it was committed.
    AskPrimary {
        /// Pause first.
        repeat: Repeat,
    },
    /// In the background, answered to nobody: commit these keys too.
    CommitRest {
        /// The keys.
        runs: Vec<Run>,
        /// At.
        commit_ts: Timestamp,
    },
    /// In the background, answered to nobody: remove what may have been locked.
    Rollback {
        /// The keys.
        runs: Vec<Run>,
    },
    /// The outcome; nothing follows.
    Finish(Result<Timestamp, Error>),
}

/// What the driver reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Begin.
    Start,
    /// The run lies in several regions (or is too big for a request); nothing was sent.
    Split(SendId, Vec<Run>),
    /// Not all of what the transaction has read is in the region of what it writes; nothing was sent.
    ReadsElsewhere(SendId),
    /// What was read stands at this timestamp.
    Validated(Result<Timestamp, Error>),
    /// Locked; these locks commit at this or later.
    Prewritten(SendId, Timestamp),
    /// Locked, but only the primary's commit decides, whatever was asked for.
    Undecided(SendId),
    /// Committed: by 1PC, now or by an earlier sending of the same request; or by somebody who met its locks.
    IsCommitted(SendId, Timestamp),
    /// A lock of another transaction is in the way; nothing was written.
    Locked(SendId, LockRecord),
    /// The lock is gone, or was waited for.
    Cleared(SendId),
    /// Refused for good; this sending wrote nothing.
    Refused(SendId, Error),
    /// Certainly not carried out; send again after a pause of at least this.
    Again(SendId, Duration),
    /// It may have been carried out, or may still be.
    Lost(SendId),
    /// PD's answer.
    Timestamp(Result<Timestamp, Error>),
    /// The primary is committed.
    Committed(SendId),
    /// The primary's lock demands a later timestamp; nothing was written.
    CommitTsTooLow(SendId),
    /// What the primary says: committed at, or rolled back for good.
    Outcome(Option<Timestamp>),
    /// The primary did not say; ask again after a pause of at least this.
    NoOutcome(Duration),
    /// Time is up: nothing that was waiting is sent any more.
    Deadline(String),
}

#[derive(Debug)]
struct Sending {
    run: Run,
    protocol: Protocol,
    sent: u32,
    /// An earlier sending may have been carried out, or may still be.
    lost: bool,
}

#[derive(Debug)]
enum Phase {
    Prewriting,
    /// Before the prewrites of these runs, of which one may have been sent with other borders before.
    Validating {
        runs: Vec<Run>,
        lost: bool,
    },
    Timestamp,
    Committing {
        id: SendId,
        run: Run,
        commit_ts: Timestamp,
        sent: u32,
        lost: bool,
    },
    Asking {
        otherwise: Error,
        commit_ts: Option<Timestamp>,
        asked: u32,
    },
    Done,
}

/// One transaction's commit.
#[derive(Debug)]
pub struct Committer {
    mutations: Vec<Mutation>,
    phase: Phase,
    pending: BTreeMap<SendId, Sending>,
    locked: Vec<Run>,
    /// When it does not fit into one region.
    otherwise: Protocol,
    /// Prewrites of an async commit were sent, and all of them together decide.
    asynchronous: bool,
    /// A lock stands that decides nothing by itself.
    undecided: bool,
    /// What it has read has to be looked at.
    reads: bool,
    /// It was, at this.
    validated: Option<Timestamp>,
    /// The highest of the locks that stand.
    min_commit_ts: Timestamp,
    /// A 1PC whose answer was lost may commit at any time until the primary is rolled back.
    one_pc_lost: bool,
    max_commit_ts: Option<Timestamp>,
    /// All in one round, if all keys are in one region.
    one_pc: bool,
    next_id: SendId,
}

impl Committer {
    /// For mutations sorted by key, at least one; the first is the primary. The commit stays below `max_commit_ts`. Without
    /// `one_pc` something is to be done between prewrite and commit. With `reads` it has read what must not have changed.
    pub fn new(mutations: Vec<Mutation>, max_commit_ts: Option<Timestamp>, one_pc: bool, reads: bool) -> Self {
        assert!(!mutations.is_empty(), "a transaction without writes needs no commit");
        let key_bytes: usize = mutations.iter().map(|m| m.key.len()).sum();
        let few = mutations.len() <= ASYNC_KEYS && key_bytes <= ASYNC_KEY_BYTES;
        let otherwise = if few && one_pc { Protocol::Async } else { Protocol::TwoPc };
        Committer {
            mutations,
            phase: Phase::Prewriting,
            pending: BTreeMap::new(),
            locked: Vec::new(),
            otherwise,
            asynchronous: false,
            undecided: false,
            reads,
            validated: None,
            min_commit_ts: Timestamp::ZERO,
            one_pc_lost: false,
            max_commit_ts,
            one_pc,
            next_id: 0,
        }
    }

    /// For a transaction that has spilled: all its locks stand, that of `primary` (one mutation) among them; it goes on with the timestamp.
    pub fn spilled(primary: Vec<Mutation>, max_commit_ts: Option<Timestamp>) -> Self {
        let all = 0..primary.len();
        Committer { phase: Phase::Timestamp, locked: vec![all], ..Self::new(primary, max_commit_ts, false, false) }
    }

    /// The transaction's changes.
    pub fn mutations(&self) -> &[Mutation] {
        &self.mutations
    }

    /// Whether some of its locks stand, so that their TTL has to be kept up.
    pub fn holds_locks(&self) -> bool {
        match self.phase {
            Phase::Prewriting | Phase::Timestamp => !self.locked.is_empty(),
            Phase::Committing { .. } => true,
            Phase::Validating { .. } | Phase::Asking { .. } | Phase::Done => false,
        }
    }

    /// Whether prewrites are still wanted; afterwards those not sent yet need not be.
    pub fn is_prewriting(&self) -> bool {
        matches!(self.phase, Phase::Prewriting)
    }

    /// Takes an event; returns what to do now.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match self.phase {
            Phase::Prewriting => self.prewriting(event, &mut effects),
            Phase::Validating { .. } => self.validating(event, &mut effects),
            Phase::Timestamp => self.timestamp(event, &mut effects),
            Phase::Committing { .. } => self.committing(event, &mut effects),
            Phase::Asking { .. } => self.asking(event, &mut effects),
            Phase::Done => {}
        }
        effects
    }

    fn prewriting(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Start => {
                let all = 0..self.mutations.len();
                let protocol = if self.one_pc { Protocol::OnePc } else { Protocol::TwoPc };
                self.send(all, protocol, false, effects);
            }
            Event::Split(id, runs) => {
                let Some(old) = self.pending.remove(&id) else { return };
                if self.reads && self.validated.is_none() && self.otherwise == Protocol::Async {
                    return self.validate(runs, old.lost, effects);
                }
                for run in runs {
                    self.send(run, self.otherwise, old.lost, effects);
                }
            }
            Event::ReadsElsewhere(id) => {
                let Some(old) = self.pending.remove(&id) else { return };
                self.validate(vec![old.run], old.lost, effects);
            }
            Event::Prewritten(id, min_commit_ts) => self.prewritten(id, min_commit_ts, effects),
            Event::Undecided(id) => {
                self.undecided = true;
                self.asynchronous = false;
                self.prewritten(id, Timestamp::ZERO, effects);
            }
            Event::IsCommitted(_, ts) => self.committed(ts, effects),
            Event::Locked(id, lock) => effects.push(Effect::ClearLock { id, lock }),
            Event::Cleared(id) => self.resend(id, None, false, effects),
            Event::Again(id, least) => self.resend(id, Some(least), false, effects),
            Event::Lost(id) => self.resend(id, Some(Duration::ZERO), true, effects),
            Event::Refused(id, error) => {
                if let Some(refused) = self.pending.remove(&id)
                    && refused.lost
                {
                    self.locked.push(refused.run);
                }
                self.fail(error, effects);
            }
            Event::Deadline(why) => self.fail(Error::Unavailable(why), effects),
            Event::Timestamp(_)
            | Event::Validated(_)
            | Event::Committed(_)
            | Event::CommitTsTooLow(_)
            | Event::Outcome(_)
            | Event::NoOutcome(_) => {}
        }
    }

    fn prewritten(&mut self, id: SendId, min_commit_ts: Timestamp, effects: &mut Vec<Effect>) {
        let Some(done) = self.pending.remove(&id) else { return };
        self.locked.push(done.run);
        self.min_commit_ts = self.min_commit_ts.max(min_commit_ts);
        if !self.pending.is_empty() {
            return;
        }
        if done.protocol == Protocol::Async && !self.undecided {
            return self.committed(self.min_commit_ts, effects);
        }
        self.phase = Phase::Timestamp;
        effects.push(Effect::TakeTimestamp);
    }

    /// Nothing stands yet; a 1PC may have been sent and lost.
    fn validate(&mut self, runs: Vec<Run>, lost: bool, effects: &mut Vec<Effect>) {
        self.phase = Phase::Validating { runs, lost };
        effects.push(Effect::Validate);
    }

    fn validating(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let Phase::Validating { runs, lost } = &mut self.phase else { return };
        let (runs, lost) = (std::mem::take(runs), *lost);
        match event {
            Event::Validated(Ok(at)) => {
                self.validated = Some(at);
                self.phase = Phase::Prewriting;
                let protocol = if runs.len() == 1 { Protocol::OnePc } else { self.otherwise };
                for run in runs {
                    self.send(run, protocol, lost, effects);
                }
            }
            Event::Validated(Err(_)) | Event::Deadline(_) => {
                if lost {
                    self.locked.extend(runs);
                }
                let error = match event {
                    Event::Validated(Err(error)) => error,
                    Event::Deadline(why) => Error::Unavailable(why),
                    _ => unreachable!("matched above"),
                };
                self.fail(error, effects);
            }
            _ => self.phase = Phase::Validating { runs, lost },
        }
    }

    fn timestamp(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Start => effects.push(Effect::TakeTimestamp),
            Event::Timestamp(Ok(ts)) if self.max_commit_ts.is_some_and(|max| ts >= max) => {
                self.fail(Error::Fenced, effects);
            }
            Event::Timestamp(Ok(commit_ts)) => {
                let at = self.locked.iter().position(|run| run.start == 0).expect("the primary is prewritten");
                let run = self.locked.swap_remove(at);
                let id = self.take_id();
                effects.push(Effect::CommitPrimary { id, run: run.clone(), commit_ts, repeat: Repeat::default() });
                self.phase = Phase::Committing { id, run, commit_ts, sent: 1, lost: false };
            }
            Event::Timestamp(Err(error)) => self.fail(error, effects),
            Event::Deadline(why) => self.fail(Error::Unavailable(why), effects),
            _ => {}
        }
    }

    fn committing(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let Phase::Committing { id, run, commit_ts, sent, lost } = &mut self.phase else { return };
        let (id, commit_ts) = (*id, *commit_ts);
        match event {
            Event::Committed(of) if of == id => self.committed(commit_ts, effects),
            Event::Split(of, runs) if of == id => {
                let mut runs = runs.into_iter();
                *run = runs.next().expect("a run is cut into runs");
                let repeat = Repeat::default();
                effects.push(Effect::CommitPrimary { id, run: run.clone(), commit_ts, repeat });
                self.locked.extend(runs);
            }
            Event::Again(of, least) if of == id => {
                let repeat = Repeat { count: *sent, least };
                *sent += 1;
                effects.push(Effect::CommitPrimary { id, run: run.clone(), commit_ts, repeat });
            }
            Event::Lost(of) if of == id => {
                *lost = true;
                let repeat = Repeat { count: *sent, least: Duration::ZERO };
                *sent += 1;
                effects.push(Effect::CommitPrimary { id, run: run.clone(), commit_ts, repeat });
            }
            // An earlier sending is refused for the same reason, whenever it arrives.
            Event::CommitTsTooLow(of) if of == id => {
                self.locked.push(run.clone());
                self.phase = Phase::Timestamp;
                effects.push(Effect::TakeTimestamp);
            }
            Event::Refused(of, error) if of == id => {
                let settled = matches!(error, Error::Aborted | Error::Fenced);
                let (run, lost) = (run.clone(), *lost);
                self.locked.push(run);
                if lost && !settled { self.ask(error, Some(commit_ts), effects) } else { self.fail(error, effects) }
            }
            Event::Deadline(why) => {
                let (run, lost) = (run.clone(), *lost);
                self.locked.push(run);
                let error = Error::Unavailable(why);
                if lost { self.ask(error, Some(commit_ts), effects) } else { self.fail(error, effects) }
            }
            _ => {}
        }
    }

    fn asking(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let Phase::Asking { otherwise, commit_ts, asked } = &mut self.phase else { return };
        match event {
            Event::Outcome(Some(ts)) => {
                assert!(commit_ts.is_none_or(|own| own == ts), "committed at another timestamp than was asked for");
                self.committed(ts, effects);
            }
            Event::Outcome(None) => {
                let error = otherwise.clone();
                self.abort(error, effects);
            }
            Event::NoOutcome(least) => {
                effects.push(Effect::AskPrimary { repeat: Repeat { count: *asked, least } });
                *asked += 1;
            }
            Event::IsCommitted(_, ts) => self.committed(ts, effects),
            Event::Deadline(why) => {
                let error = Error::CommitUnknown(format!("{why}; before that: {otherwise}"));
                self.finish(Err(error), effects);
            }
            _ => {}
        }
    }

    fn take_id(&mut self) -> SendId {
        self.next_id += 1;
        self.next_id
    }

    fn send(&mut self, run: Run, protocol: Protocol, lost: bool, effects: &mut Vec<Effect>) {
        let id = self.take_id();
        self.asynchronous |= protocol == Protocol::Async && !self.undecided;
        let (validated, repeat) = (self.validated, Repeat::default());
        effects.push(Effect::Prewrite { id, run: run.clone(), protocol, validated, repeat });
        self.pending.insert(id, Sending { run, protocol, sent: 1, lost });
    }

    fn resend(&mut self, id: SendId, pause: Option<Duration>, lost: bool, effects: &mut Vec<Effect>) {
        let Some(sending) = self.pending.get_mut(&id) else { return };
        sending.lost |= lost;
        self.one_pc_lost |= lost && sending.protocol == Protocol::OnePc;
        let repeat = pause.map_or(Repeat::default(), |least| Repeat { count: sending.sent, least });
        sending.sent += 1;
        let (run, protocol, validated) = (sending.run.clone(), sending.protocol, self.validated);
        effects.push(Effect::Prewrite { id, run, protocol, validated, repeat });
    }

    /// The transaction is committed; what is locked follows, and so does what must be locked although nobody has said so.
    fn committed(&mut self, commit_ts: Timestamp, effects: &mut Vec<Effect>) {
        let mut runs = std::mem::take(&mut self.locked);
        if self.asynchronous {
            runs.extend(std::mem::take(&mut self.pending).into_values().map(|sending| sending.run));
        }
        // The primary first: from then on whoever meets another lock need not wait.
        runs.sort_by_key(|run| run.start);
        if !runs.is_empty() {
            effects.push(Effect::CommitRest { runs, commit_ts });
        }
        self.finish(Ok(commit_ts), effects);
    }

    /// It can't commit, unless a lost 1PC has done so, or still does, or all locks of an async commit stand.
    fn fail(&mut self, error: Error, effects: &mut Vec<Effect>) {
        let pending = self.pending.values().map(|sending| &sending.run);
        let may_be_locked: usize = self.locked.iter().chain(pending).map(Run::len).sum();
        if self.one_pc_lost || (self.asynchronous && may_be_locked == self.mutations.len()) {
            return self.ask(error, None, effects);
        }
        self.abort(error, effects);
    }

    /// It does not commit any more.
    fn abort(&mut self, error: Error, effects: &mut Vec<Effect>) {
        let mut runs = std::mem::take(&mut self.locked);
        runs.extend(std::mem::take(&mut self.pending).into_values().map(|s| s.run));
        runs.sort_by_key(|run| run.start);
        if !runs.is_empty() {
            effects.push(Effect::Rollback { runs });
        }
        self.finish(Err(error), effects);
    }

    fn ask(&mut self, otherwise: Error, commit_ts: Option<Timestamp>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Asking { otherwise, commit_ts, asked: 1 };
        effects.push(Effect::AskPrimary { repeat: Repeat::default() });
    }

    fn finish(&mut self, outcome: Result<Timestamp, Error>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Done;
        self.pending.clear();
        effects.push(Effect::Finish(outcome));
    }
}
