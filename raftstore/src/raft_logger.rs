//! raft-rs's log (slog) into ours (tracing): warnings and worse. Its informative lines tell what `region` says itself.

use std::fmt::{self, Write};

use proto::{Peer, RegionId};
use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};
use tracing::{error, warn};

/// Collects a record's values into one line.
#[derive(Default)]
struct Line(String);

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

struct Bridge {
    region: RegionId,
    peer: Peer,
}

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        let mut line = Line(record.msg().to_string());
        // A value that can't be printed is left out of a log line.
        let _ = record.kv().serialize(record, &mut line);
        let (region, peer) = (self.region.0, self.peer.id.0);
        match record.level() {
            Level::Critical | Level::Error => error!(region, peer, "raft: {}", line.0),
            Level::Warning => warn!(region, peer, "raft: {}", line.0),
            _ => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(Level::Warning)
    }
}

/// The logger of one replica.
pub(crate) fn logger(region: RegionId, peer: Peer) -> Logger {
    Logger::root(Bridge { region, peer }.filter_level(Level::Warning).ignore_res(), o!())
}
