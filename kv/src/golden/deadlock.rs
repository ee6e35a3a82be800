//! Reports of waits, and the deadlocks they make.

use std::time::Duration;

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use proto::Timestamp;
use raftstore::Instant;

use super::{Outcome, next, rest};
use crate::{deadlock::Detector, row_locks::Wait};

#[derive(Default)]
pub(super) struct Script {
    detector: Detector,
    now: Instant,
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        match name {
            // pass MS
            "pass" => {
                self.now = self.now + Duration::from_millis(next(args, "milliseconds")?);
                Ok(String::new())
            }
            // report STORE WAITER-HOLDER… TWIN/WAITER…
            "report" => {
                let store = next(args, "store")?;
                let wait = |text: String| {
                    let twin = text.split_once('/');
                    let (waiter, holder) = twin.or(text.split_once('-')).ok_or("a wait is WAITER-HOLDER")?;
                    let number = |text: &str| text.parse().map(Timestamp).map_err(|_| "not a number");
                    let key = if twin.is_some() { Bytes::new() } else { Bytes::from("row") };
                    let label = Bytes::new();
                    Ok::<_, &str>(Wait { waiter: number(waiter)?, holder: number(holder)?, key, label })
                };
                let waits = rest(args).into_iter().map(wait).collect::<Result<Vec<_>, _>>()?;
                let found = self.detector.report(store, waits, self.now);
                let lines: Vec<String> = found
                    .iter()
                    .map(|deadlock| {
                        let cycle: Vec<String> =
                            deadlock.cycle.iter().map(|w| format!("{} → {}", w.waiter.0, w.holder.0)).collect();
                        format!("{} gives way: {}", deadlock.victim.0, cycle.join(", "))
                    })
                    .collect();
                Ok(lines.join("\n"))
            }
            _ => Err(format!("unknown command {name}").into()),
        }
    }
}
