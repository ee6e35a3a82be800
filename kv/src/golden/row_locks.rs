//! Who has which rows, and who waits.

use std::time::Duration;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use proto::{RegionId, Term, Timestamp, wire::RowLockMode};
use raftstore::Instant;

use super::{Outcome, key, next, rest};
use crate::row_locks::{Claim, Claimed, Grant, Place, RowLocks, Waiter};

/// Claims live for 10 ms; the region is 2 and the term 5 where a command does not say.
#[derive(Default)]
pub(super) struct Script {
    locks: RowLocks,
    now: Instant,
}

fn mode(args: &mut ArgumentConsumer<'_>) -> Result<RowLockMode, Box<dyn std::error::Error>> {
    match next::<String>(args, "mode")?.as_str() {
        "key-share" => Ok(RowLockMode::KeyShare),
        "share" => Ok(RowLockMode::Share),
        "no-key" => Ok(RowLockMode::NoKeyUpdate),
        "update" => Ok(RowLockMode::Update),
        other => Err(format!("unknown mode {other}").into()),
    }
}

fn place(args: &mut ArgumentConsumer<'_>) -> Result<Place, Box<dyn std::error::Error>> {
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    Ok(Place { region: RegionId(or(key(args, "region")?, 2)), term: Term(or(key(args, "term")?, 5)) })
}

fn show(grants: Vec<Grant>) -> Vec<String> {
    let grant = |Grant { owner, key }: Grant| format!("{} gets {}", owner.0, String::from_utf8_lossy(&key));
    grants.into_iter().map(grant).collect()
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let place = place(args)?;
        if name == "pass" {
            // pass MS
            self.now = self.now + Duration::from_millis(next(args, "milliseconds")?);
            return Ok(String::new());
        }
        let twin = Timestamp(key(args, "twin")?);
        if name == "waits" || name == "reported" {
            let wait = |wait: crate::row_locks::Wait| {
                format!("{} waits for {} at {}", wait.waiter.0, wait.holder.0, String::from_utf8_lossy(&wait.key))
            };
            // reported [TRANSACTION…]: without those, who have stopped asking
            let silent: Vec<Timestamp> =
                rest(args).iter().map(|owner| owner.parse().map(Timestamp)).collect::<Result<_, _>>()?;
            let reported = || self.locks.reported(|waiter, _| !silent.contains(&waiter));
            let waits = if name == "waits" { self.locks.waits() } else { reported() };
            return Ok(waits.into_iter().map(wait).collect::<Vec<_>>().join("\n"));
        }
        let owner = Timestamp(next(args, "transaction")?);
        let until = self.now + Duration::from_millis(10);
        let lines = match name {
            // claim TRANSACTION MODE KEY [region=] [term=] [twin=]
            "claim" => {
                let mode = mode(args)?;
                let key = Bytes::from(next::<String>(args, "key")?);
                let claim = Claim { owner, mode, until, label: Bytes::new(), twin };
                let mut grants = Vec::new();
                let claimed = self.locks.claim(&key, place, claim, self.now, &mut grants);
                let what = match claimed {
                    Claimed::Held => "held",
                    Claimed::Waits => "waits",
                    Claimed::Full => "full",
                };
                [vec![what.to_string()], show(grants)].concat()
            }
            // release TRANSACTION KEY…
            "release" => {
                let keys: Vec<Bytes> = rest(args).into_iter().map(Bytes::from).collect();
                show(self.locks.release(owner, &keys))
            }
            // give_up TRANSACTION KEY
            "give_up" => show(self.locks.give_up(owner, &Bytes::from(next::<String>(args, "key")?))),
            // behind TRANSACTION KEY OTHER…: it waits for others, who may hold nothing here
            "behind" => {
                let key = Bytes::from(next::<String>(args, "key")?);
                let others = rest(args).iter().map(|other| other.parse().map(Timestamp)).collect::<Result<_, _>>()?;
                let holds = self.locks.wait_behind(owner, &key, others, Waiter { label: Bytes::new(), twin });
                vec![if holds { String::new() } else { "does not hold it".to_string() }]
            }
            // go_on TRANSACTION
            "go_on" => {
                self.locks.go_on(owner);
                Vec::new()
            }
            // keep TRANSACTION
            "keep" => show(self.locks.keep(owner, until, self.now)),
            // write TRANSACTION MODE KEY: whether a write of that strength may pass
            "write" => {
                let mode = mode(args)?;
                let key: String = next(args, "key")?;
                let blocker = self.locks.blocker(key.as_bytes(), owner, mode, place, self.now);
                vec![blocker.map_or("passes".to_string(), |other| format!("{} is in the way", other.0))]
            }
            // check TRANSACTION KEY
            "check" => {
                let key: String = next(args, "key")?;
                let excludes = self.locks.excludes(key.as_bytes(), owner, place, self.now);
                let holds = self.locks.holds(key.as_bytes(), owner, place, self.now);
                vec![format!("excludes {excludes}, without a gap {holds}")]
            }
            _ => return Err(format!("unknown command {name}").into()),
        };
        Ok(lines.join("\n"))
    }
}
