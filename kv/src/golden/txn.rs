//! Transaction commands and reads over an engine in memory; what a command decides is printed and applied.

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use proto::{
    Batch, KeyRange, Timestamp,
    wire::{
        CheckSecondariesRequest, CheckTxnRequest, CommitRequest, DropGenerationsRequest, HeartbeatTxnRequest, KeyError,
        LockRecord, Mutation, MutationKind, PrewriteRequest, ResolveRequest, RollbackRequest, ValidateRequest,
        check_secondaries_response::Outcome as Found, check_txn_response::Outcome as Fate, key_error::Kind, op,
    },
};
use raftstore::engine::{Cf, Engine, Snapshot, memory::MemoryEngine};

use super::{Outcome, key, next, rest};
use crate::{
    codec, local,
    mvcc::{
        Reader, Seen, Version, WriteKind,
        lock::{self, LockCfRecord},
        scan::{PageEnd, ScanSpec, scan_page},
        spilled::Spilled,
    },
    txn::{self, PrewriteMode},
};

/// One engine.
#[derive(Default)]
pub(super) struct Script {
    engine: MemoryEngine,
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let view = self.engine.snapshot();
        let reader = Reader::new(view.as_ref());
        let (batch, answer) = match name {
            "prewrite" => prewrite(&reader, args)?,
            "spill" => spill(&reader, args)?,
            "back" => back(&reader, args)?,
            "commit" => commit(&reader, args)?,
            "rollback" => rollback(&reader, args)?,
            "check" => check(&reader, args)?,
            "secondaries" => secondaries(&reader, args)?,
            "resolve" => resolve(&reader, args)?,
            "heartbeat" => heartbeat(&reader, args)?,
            "validate" => return validate(&reader, args),
            "get" => return get(&reader, args),
            "scan" => return scan(view.as_ref(), args),
            "dump" => return dump(view.as_ref()),
            _ => return Err(format!("unknown command {name}").into()),
        };
        let mut lines: Vec<String> = batch.ops.iter().map(|op| show_op(op.kind.as_ref())).collect();
        local::apply(&self.engine, batch)?;
        lines.push(answer);
        Ok(lines.join("\n"))
    }
}

type Evaluated = Result<(Batch, String), Box<dyn std::error::Error>>;

fn keys(args: &mut ArgumentConsumer<'_>) -> Vec<Bytes> {
    rest(args).into_iter().map(Bytes::from).collect()
}

/// `prewrite START put.a=1 insert.b=2 delete.c= lock.d= [primary=] [one_pc=COMMIT_TS] [async=MIN_COMMIT_TS others=KEY,…] [ttl_ms=]
/// [min_commit_ts=] [max_commit_ts=] [exact=VALIDATED_TS (too low for one_pc and async)] [seen=VERSION] [row_lock=OWNER]`
fn prewrite(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let mut request = PrewriteRequest {
        start_ts: next(args, "start_ts")?,
        primary: key::<String>(args, "primary")?.into(),
        ttl_ms: key(args, "ttl_ms")?,
        min_commit_ts: key(args, "min_commit_ts")?,
        max_commit_ts: key(args, "max_commit_ts")?,
        ..PrewriteRequest::default()
    };
    let (one_pc, async_ts): (u64, u64) = (key(args, "one_pc")?, key(args, "async")?);
    request.try_one_pc = one_pc != 0;
    request.async_commit = async_ts != 0;
    // Asked for, and not possible here.
    request.validated_ts = key(args, "exact")?;
    let too_low = request.validated_ts != 0 && one_pc.max(async_ts) > request.validated_ts;
    let others: String = key(args, "others")?;
    request.secondaries = others.split(',').filter(|key| !key.is_empty()).map(|key| key.to_string().into()).collect();
    let (seen_ts, blocked_by): (u64, u64) = (key(args, "seen")?, key(args, "row_lock")?);
    while let Some((change, value)) = args.next_key() {
        let (kind, user_key) = change.split_once('.').ok_or("a change is kind.key=value")?;
        let kind = match kind {
            "put" => MutationKind::Put,
            "insert" => MutationKind::Insert,
            "delete" => MutationKind::Delete,
            "lock" => MutationKind::Lock,
            _ => return Err(format!("unknown kind of change {kind}").into()),
        };
        let (user_key, value) = (Bytes::from(user_key.to_string()), Bytes::from(value.to_string()));
        request.mutations.push(Mutation { kind: kind as i32, key: user_key, value, seen_ts, ..Default::default() });
    }
    if request.primary.is_empty() {
        request.primary = request.mutations[0].key.clone();
    }
    let mode = match (one_pc, async_ts) {
        _ if too_low => PrewriteMode::Locks,
        (0, 0) => PrewriteMode::Locks,
        (0, ts) => PrewriteMode::Async(Timestamp(ts)),
        (ts, _) => PrewriteMode::OnePc(Timestamp(ts)),
    };
    let (batch, response) =
        txn::prewrite(reader, &request, mode, &|_| (blocked_by > 0).then_some(Timestamp(blocked_by)))?;
    let answer = match (response.errors.first(), response.one_pc_commit_ts) {
        (Some(error), _) => show_error(error),
        (None, 0) if response.undecided && request.async_commit => {
            format!("locked, min_commit_ts {}, the primary decides", response.min_commit_ts)
        }
        (None, 0) => format!("locked, min_commit_ts {}", response.min_commit_ts),
        (None, ts) => format!("committed at {ts}"),
    };
    Ok((batch, answer))
}

/// `spill NUMBER START put.a=VALUE_GENERATION … [primary=] [ttl_ms=] [marks=GENERATION,…]`
fn spill(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let mut request = PrewriteRequest {
        spill: next(args, "number")?,
        start_ts: next(args, "start_ts")?,
        primary: key::<String>(args, "primary")?.into(),
        ttl_ms: key(args, "ttl_ms")?,
        ..PrewriteRequest::default()
    };
    let marks: String = key(args, "marks")?;
    request.marks = marks.split(',').filter(|mark| !mark.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    while let Some((change, value)) = args.next_key() {
        let (kind, user_key) = change.split_once('.').ok_or("a change is kind.key=value")?;
        let kind = match kind {
            "put" => MutationKind::Put,
            "insert" => MutationKind::Insert,
            "delete" => MutationKind::Delete,
            "lock" => MutationKind::Lock,
            _ => return Err(format!("unknown kind of change {kind}").into()),
        };
        let (value, generation) = value.split_once('_').ok_or("a value is value_generation")?;
        let (user_key, value) = (Bytes::from(user_key.to_string()), Bytes::from(value.to_string()));
        let generation = generation.parse()?;
        request.mutations.push(Mutation { kind: kind as i32, key: user_key, value, generation, ..Default::default() });
    }
    if request.primary.is_empty() {
        request.primary = request.mutations[0].key.clone();
    }
    let (batch, response) = txn::spill(reader, &request, &|_| None)?;
    Ok((batch, response.errors.first().map_or_else(|| "spilled".into(), show_error)))
}

/// `back NUMBER START KEEP KEY…`
fn back(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let (spill, start_ts, keep) = (next(args, "number")?, next(args, "start_ts")?, next(args, "keep")?);
    let request = DropGenerationsRequest { start_ts, keep, spill, range: None };
    Ok((txn::drop_generations(reader, &request, &keys(args))?, format!("as at {keep}")))
}

/// `commit START COMMIT KEY… [max_commit_ts=]`
fn commit(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let (start_ts, commit_ts) = (next(args, "start_ts")?, next(args, "commit_ts")?);
    let max_commit_ts = key(args, "max_commit_ts")?;
    let request = CommitRequest { start_ts, commit_ts, max_commit_ts, keys: keys(args), ..Default::default() };
    let (batch, response) = txn::commit(reader, &request)?;
    let answer = response.error.as_ref().map_or_else(|| format!("committed at {}", response.commit_ts), show_error);
    Ok((batch, answer))
}

/// `secondaries START KEY…`
fn secondaries(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let request = CheckSecondariesRequest { start_ts: next(args, "start_ts")?, keys: keys(args) };
    let (batch, response) = txn::check_secondaries(reader, &request)?;
    let answer = match response.outcome {
        Some(Found::MinCommitTs(ts)) => format!("all are locked, min_commit_ts {ts}"),
        Some(Found::CommitTs(ts)) => format!("committed at {ts}"),
        Some(Found::RolledBack(_)) => "one is not locked, and never will be".into(),
        None => "no outcome".into(),
    };
    Ok((batch, answer))
}

/// `rollback START KEY…`
fn rollback(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let request = RollbackRequest { start_ts: next(args, "start_ts")?, keys: keys(args) };
    let (batch, response) = txn::rollback(reader, &request)?;
    let answer = match response.committed_ts {
        0 => "rolled back".into(),
        ts => format!("is committed at {ts}"),
    };
    Ok((batch, answer))
}

/// `check PRIMARY START now_ms=MS [absent=rollback] [pass=READ_TS]`
fn check(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let primary = next::<String>(args, "primary")?.into();
    let request = CheckTxnRequest {
        primary,
        start_ts: next(args, "start_ts")?,
        current_ts: Timestamp::new(key(args, "now_ms")?, 0).0,
        rollback_if_absent: key::<String>(args, "absent")? == "rollback",
        pass_ts: key(args, "pass")?,
    };
    let (batch, response) = txn::check_txn(reader, &request)?;
    let answer = match (&response.error, response.outcome) {
        (Some(error), _) => show_error(error),
        (None, Some(Fate::CommitTs(ts))) => format!("committed at {ts}"),
        (None, Some(Fate::RolledBack(_))) => "rolled back".into(),
        (None, Some(Fate::TtlMs(ms))) if response.passed => format!("alive for {ms} ms, commits above"),
        (None, Some(Fate::TtlMs(ms))) => format!("alive for {ms} ms"),
        (None, Some(Fate::AsyncLock(lock))) => {
            let others = lock.secondaries.iter().map(|key| text(key)).collect::<Vec<_>>().join(" ");
            format!("min_commit_ts {}, ask {others}", lock.min_commit_ts)
        }
        (None, None) => "no outcome".into(),
    };
    Ok((batch, answer))
}

/// `resolve START COMMIT KEY…` (commit 0: roll back)
fn resolve(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let (start_ts, commit_ts) = (next(args, "start_ts")?, next(args, "commit_ts")?);
    let (batch, _) =
        txn::resolve(reader, &ResolveRequest { start_ts, commit_ts, keys: keys(args), ..Default::default() })?;
    Ok((batch, "resolved".into()))
}

/// `heartbeat PRIMARY START ttl_ms=MS`
fn heartbeat(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Evaluated {
    let primary = next::<String>(args, "primary")?.into();
    let request = HeartbeatTxnRequest { primary, start_ts: next(args, "start_ts")?, ttl_ms: key(args, "ttl_ms")? };
    let (batch, response) = txn::heartbeat(reader, &request)?;
    Ok((batch, response.error.as_ref().map_or(format!("ttl {} ms", response.ttl_ms), show_error)))
}

/// `validate START AT FROM-TO…`
fn validate(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Outcome {
    let (start_ts, at_ts) = (next(args, "start_ts")?, next(args, "at_ts")?);
    let span = |text: String| match text.split_once('-') {
        Some((from, to)) => KeyRange::new(from.to_owned(), to.to_owned()),
        // Behind all of its versions.
        None => KeyRange::new(text.clone(), [text.as_bytes(), &[0xff; 9]].concat()),
    };
    let spans = rest(args).into_iter().map(|text| (&span(text)).into()).collect();
    let response = txn::validate(reader, &ValidateRequest { spans, start_ts, at_ts })?;
    Ok(response.error.as_ref().map_or("as it was".into(), show_error))
}

/// `[own=START] [upto=GENERATION] [passed=START]`: what is no obstacle for a read.
fn seen(args: &mut ArgumentConsumer<'_>) -> Result<Seen, Box<dyn std::error::Error>> {
    let (own, upto, passed): (u64, u64, u64) = (key(args, "own")?, key(args, "upto")?, key(args, "passed")?);
    let upto = if upto == 0 { u64::MAX } else { upto };
    let passed = (passed != 0).then_some(passed).into_iter().collect();
    Ok(Seen { own: (own != 0).then_some((Timestamp(own), upto)), passed })
}

/// `get TS KEY…`, and what is no obstacle.
fn get(reader: &Reader<'_>, args: &mut ArgumentConsumer<'_>) -> Outcome {
    let ts = Timestamp(next(args, "timestamp")?);
    let seen = seen(args)?;
    let mut lines = Vec::new();
    for key in keys(args) {
        lines.push(match reader.read(&key, ts, &seen)? {
            Err(lock) => show_lock(&lock),
            Ok(Some(value)) => format!("{} = {}", text(&key), text(&value)),
            Ok(None) => format!("{} has no value", text(&key)),
        });
    }
    Ok(lines.join("\n"))
}

/// `scan TS [from=] [to=] [limit=] [bytes=] [reverse=true]`, and what is no obstacle.
fn scan(view: &dyn Snapshot, args: &mut ArgumentConsumer<'_>) -> Outcome {
    let read_ts = Timestamp(next(args, "timestamp")?);
    let range = KeyRange::new(key::<String>(args, "from")?, key::<String>(args, "to")?);
    let or_all = |n: u64| if n == 0 { u64::MAX } else { n };
    let (limit, max_bytes) = (or_all(key(args, "limit")?), or_all(key(args, "bytes")?));
    let seen = seen(args)?;
    let spec = ScanSpec { read_ts, limit, max_bytes, reverse: key(args, "reverse")? };
    let mut lines = Vec::new();
    let (end, _) = scan_page(view, &range, spec, &seen, |key, value| {
        lines.push(format!("{} = {}", text(key), text(value)));
        Ok(())
    })?;
    lines.push(match end {
        PageEnd::Done => "done".into(),
        PageEnd::More(key) => format!("more from {}", text(&key)),
        PageEnd::Locked(lock) => show_lock(&lock),
    });
    Ok(lines.join("\n"))
}

/// Everything in the engine.
fn dump(view: &dyn Snapshot) -> Outcome {
    let mut lines = Vec::new();
    for cf in [Cf::Lock, Cf::Data] {
        let mut cursor = view.cursor(cf, b"", b"");
        let mut stands = cursor.seek_to_first()?;
        while stands {
            lines.push(format!("{} {}", show_key(cf, cursor.key()), show_record(cf, cursor.value())));
            stands = cursor.next()?;
        }
    }
    Ok(lines.join("\n"))
}

fn show_op(op: Option<&op::Kind>) -> String {
    match op {
        Some(op::Kind::Put(p)) => format!("put {} {}", show_key(p.cf(), &p.key), show_record(p.cf(), &p.value)),
        Some(op::Kind::Delete(d)) => format!("delete {}", show_key(d.cf(), &d.key)),
        Some(op::Kind::Move(m)) => {
            let prefix = show_record(m.to_cf(), &m.prefix);
            let (from, to) = (show_key(m.from_cf(), &m.from_key), show_key(m.to_cf(), &m.to_key));
            format!("move {from} from byte {} to {to} behind {prefix}", m.offset)
        }
        other => format!("{other:?}"),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show_key(cf: Cf, key: &[u8]) -> String {
    let name = if cf == Cf::Lock { "lock" } else { "data" };
    // Keys of the scripts are shorter than a timestamp.
    match codec::split_versioned(key) {
        Some((user, ts)) if !user.is_empty() => format!("{name} {}@{}", text(user), ts.0),
        _ => format!("{name} {}", text(key)),
    }
}

fn show_record(cf: Cf, record: &[u8]) -> String {
    if cf == Cf::Data {
        return match Version::decode(b"", record) {
            Ok(v) => format!("[{} start {} {}]", show_kind(v.kind), v.start_ts.0, text(v.value)),
            Err(fault) => fault.to_string(),
        };
    }
    match lock::decode(b"", record) {
        Ok(LockCfRecord::Rollback) => "[rollback]".into(),
        Ok(LockCfRecord::Lock(l)) => {
            let (kind, value) = (show_kind(l.kind), text(&l.value));
            let (start, min, primary) = (l.start_ts.0, l.min_commit_ts.0, text(&l.primary));
            let how = match &l.secondaries {
                Some(keys) => format!(" async [{}]", keys.iter().map(|k| text(k)).collect::<Vec<_>>().join(" ")),
                None => l.spilled.as_ref().map_or_else(String::new, show_spilled),
            };
            format!("[{kind} start {start} min {min} ttl {} primary {primary}{how} {value}]", l.ttl_ms)
        }
        Err(fault) => fault.to_string(),
    }
}

fn show_spilled(spilled: &Spilled) -> String {
    let earlier = spilled.earlier.iter().map(|e| format!(" {} {}@{}", show_kind(e.kind), text(&e.value), e.generation));
    format!(" spill {} generation {}, before{}:", spilled.spill, spilled.generation, earlier.collect::<String>())
}

fn show_kind(kind: WriteKind) -> &'static str {
    match kind {
        WriteKind::Put => "put",
        WriteKind::Delete => "delete",
        WriteKind::Lock => "no-change",
    }
}

fn show_lock(lock: &LockRecord) -> String {
    format!("{} is locked by {} with primary {}", text(&lock.key), lock.start_ts, text(&lock.primary))
}

fn show_error(error: &KeyError) -> String {
    match error.kind.as_ref() {
        Some(Kind::Locked(lock)) => show_lock(lock),
        Some(Kind::Conflict(c)) => {
            format!("conflict on {} with {} committed at {}", text(&c.key), c.conflict_start_ts, c.conflict_commit_ts)
        }
        Some(Kind::ReadConflict(c)) => {
            format!("{} was changed by {} at {}", text(&c.key), c.conflict_start_ts, c.conflict_commit_ts)
        }
        Some(Kind::AlreadyExists(e)) => format!("{} already exists", text(&e.key)),
        Some(Kind::Aborted(a)) => format!("{} was rolled back", a.start_ts),
        Some(Kind::TxnNotFound(t)) => format!("no trace of {}", t.start_ts),
        Some(Kind::CommitFenced(f)) => format!("fenced: {} is not below {}", f.needed_commit_ts, f.max_commit_ts),
        Some(Kind::RowLocked(r)) => format!("the row {} is locked by {}", text(&r.key), r.owner),
        Some(Kind::CommitTsTooLow(t)) => format!("{} needs a commit_ts of {} at least", text(&t.key), t.min_commit_ts),
        other => format!("{other:?}"),
    }
}
