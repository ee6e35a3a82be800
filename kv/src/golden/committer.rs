//! The commit protocol from the client's side: events in, effects out.

use std::time::Duration;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use proto::{
    Timestamp,
    wire::{LockRecord, Mutation},
};

use super::{Outcome, key, next, rest};
use crate::{
    Error,
    client::committer::{Committer, Effect, Event, Protocol, Repeat, Run},
};

/// One transaction.
#[derive(Default)]
pub(super) struct Script {
    committer: Option<Committer>,
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        if name == "begin" {
            // begin KEY… [fence=TS] [long=true] [reads=true] (long keys are too many bytes for an async commit)
            let fence: u64 = key(args, "fence")?;
            let tail = if key(args, "long")? { "-".repeat(64 << 10) } else { String::new() };
            let reads: bool = key(args, "reads")?;
            let mutation = |k: String| Mutation { key: Bytes::from(k + &tail), ..Mutation::default() };
            let mutations = rest(args).into_iter().map(mutation).collect();
            let fence = (fence != 0).then_some(Timestamp(fence));
            self.committer = Some(Committer::new(mutations, fence, true, reads));
            return self.step(Event::Start);
        }
        let event = match name {
            // split ID RUN… (a run is FROM-TO)
            "split" => Event::Split(next(args, "id")?, runs(args)?),
            // prewritten ID [min=TS]
            "prewritten" => Event::Prewritten(next(args, "id")?, Timestamp(key(args, "min")?)),
            "undecided" => Event::Undecided(next(args, "id")?),
            "reads_elsewhere" => Event::ReadsElsewhere(next(args, "id")?),
            "validated" => Event::Validated(Ok(Timestamp(next(args, "timestamp")?))),
            "not_valid" => Event::Validated(Err(Error::ReadConflict { key: Bytes::from_static(b"k") })),
            "read_conflict" => Event::Timestamp(Err(Error::ReadConflict { key: Bytes::from_static(b"k") })),
            "is_committed" => Event::IsCommitted(next(args, "id")?, Timestamp(next(args, "timestamp")?)),
            "locked" => Event::Locked(next(args, "id")?, LockRecord { start_ts: 5, ..LockRecord::default() }),
            "cleared" => Event::Cleared(next(args, "id")?),
            "refused" => Event::Refused(next(args, "id")?, error(&next::<String>(args, "error")?)?),
            "again" => Event::Again(next(args, "id")?, Duration::from_millis(key(args, "ms")?)),
            "lost" => Event::Lost(next(args, "id")?),
            "timestamp" => Event::Timestamp(Ok(Timestamp(next(args, "timestamp")?))),
            "no_timestamp" => Event::Timestamp(Err(Error::Unavailable("PD is away".into()))),
            "committed" => Event::Committed(next(args, "id")?),
            "too_low" => Event::CommitTsTooLow(next(args, "id")?),
            "outcome" => Event::Outcome(match next::<u64>(args, "timestamp")? {
                0 => None,
                ts => Some(Timestamp(ts)),
            }),
            "no_outcome" => Event::NoOutcome(Duration::ZERO),
            "deadline" => Event::Deadline("out of time".into()),
            _ => return Err(format!("unknown command {name}").into()),
        };
        self.step(event)
    }
}

impl Script {
    fn step(&mut self, event: Event) -> Outcome {
        let committer = self.committer.as_mut().ok_or("begin first")?;
        let effects = committer.step(event);
        Ok(effects.iter().map(show).collect::<Vec<_>>().join("\n"))
    }
}

fn runs(args: &mut ArgumentConsumer<'_>) -> Result<Vec<Run>, Box<dyn std::error::Error>> {
    let run = |text: String| -> Result<Run, Box<dyn std::error::Error>> {
        let (from, to) = text.split_once('-').ok_or("a run is FROM-TO")?;
        Ok(from.parse()?..to.parse()?)
    };
    rest(args).into_iter().map(run).collect()
}

fn error(name: &str) -> Result<Error, Box<dyn std::error::Error>> {
    Ok(match name {
        "conflict" => Error::Conflict { key: Bytes::from_static(b"k") },
        "exists" => Error::AlreadyExists { key: Bytes::from_static(b"k") },
        "aborted" => Error::Aborted,
        "fenced" => Error::Fenced,
        "disk_full" => Error::DiskFull("store s1".into()),
        _ => return Err(format!("unknown error {name}").into()),
    })
}

fn show(effect: &Effect) -> String {
    let again = |repeat: &Repeat| match repeat.count {
        0 => String::new(),
        n => format!(" (repetition {n} after {} ms)", repeat.least.as_millis()),
    };
    let list = |runs: &[Run]| runs.iter().map(|r| format!("{}-{}", r.start, r.end)).collect::<Vec<_>>().join(" ");
    match effect {
        Effect::Prewrite { id, run, protocol, validated, repeat } => {
            let how = match protocol {
                Protocol::OnePc => " in one round",
                Protocol::Async => " async",
                Protocol::TwoPc => "",
            };
            let at = validated.map_or(String::new(), |ts| format!(" at {}", ts.0));
            format!("#{id} prewrite {}{how}{at}{}", list(std::slice::from_ref(run)), again(repeat))
        }
        Effect::Validate => "take a timestamp and look at the reads".into(),
        Effect::ClearLock { id, lock } => format!("#{id} clear the lock of {}", lock.start_ts),
        Effect::TakeTimestamp => "take a timestamp".into(),
        Effect::CommitPrimary { id, run, commit_ts, repeat } => {
            format!("#{id} commit {} at {}{}", list(std::slice::from_ref(run)), commit_ts.0, again(repeat))
        }
        Effect::AskPrimary { repeat } => format!("ask the primary{}", again(repeat)),
        Effect::CommitRest { runs, commit_ts } => format!("background: commit {} at {}", list(runs), commit_ts.0),
        Effect::Rollback { runs } => format!("background: roll back {}", list(runs)),
        Effect::Finish(Ok(ts)) => format!("finish: committed at {}", ts.0),
        Effect::Finish(Err(error)) => format!("finish: {error}"),
    }
}
