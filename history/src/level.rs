//! What a level promises, in the words of Adya, Berenson and Elle.
//!
//! | level | forbids, besides all of the line above |
//! |---|---|
//! | read-committed | dirty writes (G0), aborted, intermediate and circular reads (G1a–c), all that no database may do |
//! | repeatable-read (snapshot isolation) | read skew and lost updates (G-single, G-nonadjacent): cycles without two anti-dependencies in a row |
//! | serializable | every cycle, write skew (G2) above all |
//! | strict | the same, and cycles that real time closes |

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An isolation level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// PostgreSQL's default.
    ReadCommitted,
    /// Snapshot isolation, as PostgreSQL means it.
    RepeatableRead,
    /// As if one after the other.
    Serializable,
    /// As if one after the other, in the order of real time.
    Strict,
}

impl Level {
    /// Its name, as `--level` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::ReadCommitted => "read-committed",
            Level::RepeatableRead => "repeatable-read",
            Level::Serializable => "serializable",
            Level::Strict => "strict",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(name: &str) -> Result<Level, String> {
        let all = [Level::ReadCommitted, Level::RepeatableRead, Level::Serializable, Level::Strict];
        let found = all.into_iter().find(|level| level.name() == name);
        found.ok_or_else(|| "a level is read-committed, repeatable-read, serializable or strict".into())
    }
}

/// What a history is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The level.
    pub level: Level,
    /// Whether what returned before another began is ordered before it, at levels below strict too: one PostgreSQL
    /// server keeps that, and so does FlareDB.
    pub realtime: bool,
}

impl Promise {
    /// The level in the order of real time.
    pub fn in_real_time(level: Level) -> Promise {
        Promise { level, realtime: true }
    }

    /// The level alone.
    pub fn plain(level: Level) -> Promise {
        Promise { level, realtime: level == Level::Strict }
    }

    /// Whether this promise is broken by such an anomaly.
    pub fn forbids(self, kind: Kind, order: Order) -> bool {
        let by_order = order == Order::Data || self.realtime || self.level == Level::Strict;
        by_order && self.level >= kind.forbidden_from()
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_real_time = self.realtime && self.level != Level::Strict;
        write!(f, "{}{}", self.level, if in_real_time { " in real time" } else { "" })
    }
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A value was read that nobody wrote.
    FromNowhere,
    /// A value is there twice.
    Duplicate,
    /// What was acknowledged is not there.
    Lost,
    /// Two reads of one list, neither of which can have become the other.
    IncompatibleOrders,
    /// A transaction did not see its own writes.
    Internal,
    /// What was read was never committed.
    G1a,
    /// What was read was overwritten before it was committed.
    G1b,
    /// Transactions that wrote over each other in a circle.
    G0,
    /// Transactions that saw each other in a circle.
    G1c,
    /// A transaction did not see what was there before it began.
    StaleRead,
    /// No order of the operations on one register explains the answers.
    NotLinearizable,
    /// Money was made or lost.
    WrongSum,
    /// A sequence went back.
    Backwards,
    /// Two transactions changed what both had read.
    LostUpdate,
    /// A cycle with one anti-dependency: read skew.
    GSingle,
    /// A cycle with several anti-dependencies, no two in a row.
    GNonadjacent,
    /// A cycle with two anti-dependencies in a row: write skew.
    G2,
    /// A constraint over several rows was broken, though each transaction kept it.
    WriteSkew,
}

impl Kind {
    /// The lowest level that forbids it.
    pub fn forbidden_from(self) -> Level {
        match self {
            Kind::LostUpdate | Kind::GSingle | Kind::GNonadjacent => Level::RepeatableRead,
            Kind::G2 | Kind::WriteSkew => Level::Serializable,
            _ => Level::ReadCommitted,
        }
    }

    /// Its name in verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Kind::FromNowhere => "value from nowhere",
            Kind::Duplicate => "duplicate",
            Kind::Lost => "lost",
            Kind::IncompatibleOrders => "incompatible orders",
            Kind::Internal => "own writes not seen",
            Kind::G1a => "G1a (aborted read)",
            Kind::G1b => "G1b (intermediate read)",
            Kind::G0 => "G0",
            Kind::G1c => "G1c",
            Kind::StaleRead => "stale read (G-single-realtime)",
            Kind::NotLinearizable => "not linearizable",
            Kind::WrongSum => "wrong sum",
            Kind::Backwards => "backwards",
            Kind::LostUpdate => "lost update",
            Kind::GSingle => "G-single",
            Kind::GNonadjacent => "G-nonadjacent",
            Kind::G2 => "G2-item",
            Kind::WriteSkew => "write skew",
        }
    }
}

/// What closes a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// What transactions wrote and saw.
    Data,
    /// The order of one session's transactions besides.
    Process,
    /// The order of real time besides.
    Realtime,
}

impl Order {
    /// Behind an anomaly's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Order::Data => "",
            Order::Process => "-process",
            Order::Realtime => "-realtime",
        }
    }
}
