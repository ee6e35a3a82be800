//! Who holds which latches.

use goldenscript::ArgumentConsumer;

use super::{Outcome, next, rest};
use crate::latch::Latches;

/// Few slots, so that keys share them.
pub(super) struct Script {
    latches: Latches,
}

impl Default for Script {
    fn default() -> Self {
        Script { latches: Latches::new(1 << 16) }
    }
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let id = next(args, "command")?;
        match name {
            // acquire COMMAND KEY…
            "acquire" => {
                let keys = rest(args);
                let runs = self.latches.acquire(id, keys.iter().map(|k| k.as_bytes()));
                Ok(if runs { "runs".into() } else { "waits".into() })
            }
            "acquire_all" => Ok(if self.latches.acquire_all(id) { "runs".into() } else { "waits".into() }),
            // release COMMAND
            "release" => {
                let ready: Vec<String> = self.latches.release(id).iter().map(|id| format!("{id} runs")).collect();
                Ok(format!("{} left\n{}", self.latches.len(), ready.join("\n")).trim_end().to_string())
            }
            _ => Err(format!("unknown command {name}").into()),
        }
    }
}
