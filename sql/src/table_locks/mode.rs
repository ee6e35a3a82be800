//! The modes in which tables are locked, and which of them exclude each other (PostgreSQL 13.3.1). PURE.

use std::fmt;

use datafusion::sql::sqlparser::ast::LockTableMode;

/// How a table is locked, in PostgreSQL's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// SELECT.
    AccessShare,
    /// SELECT … FOR.
    RowShare,
    /// INSERT, UPDATE, DELETE.
    RowExclusive,
    /// VALIDATE CONSTRAINT, CREATE INDEX CONCURRENTLY.
    ShareUpdateExclusive,
    /// CREATE INDEX.
    Share,
    /// ADD FOREIGN KEY.
    ShareRowExclusive,
    /// LOCK TABLE only.
    Exclusive,
    /// DROP TABLE, TRUNCATE, ALTER TABLE.
    AccessExclusive,
}

use Mode::{
    AccessExclusive, AccessShare, Exclusive, RowExclusive, RowShare, Share, ShareRowExclusive, ShareUpdateExclusive,
};

impl Mode {
    /// All of them, weakest first.
    pub const ALL: [Mode; 8] = [
        AccessShare,
        RowShare,
        RowExclusive,
        ShareUpdateExclusive,
        Share,
        ShareRowExclusive,
        Exclusive,
        AccessExclusive,
    ];

    /// One that gateways do not grant by themselves: it excludes modes of statements on rows, or itself.
    pub fn is_strong(self) -> bool {
        self >= ShareUpdateExclusive
    }

    /// The modes that others can't have beside it.
    pub fn excludes(self) -> Modes {
        let from = |weakest: Mode| Modes::of(Mode::ALL.into_iter().filter(move |mode| *mode >= weakest));
        match self {
            AccessShare => from(AccessExclusive),
            RowShare => from(Exclusive),
            RowExclusive => from(Share),
            ShareUpdateExclusive => from(ShareUpdateExclusive),
            Share => from(RowExclusive).without(Share),
            ShareRowExclusive => from(RowExclusive),
            Exclusive => from(RowShare),
            AccessExclusive => from(AccessShare),
        }
    }

    /// As `pg_locks` has it.
    pub fn pg_name(self) -> &'static str {
        match self {
            AccessShare => "AccessShareLock",
            RowShare => "RowShareLock",
            RowExclusive => "RowExclusiveLock",
            ShareUpdateExclusive => "ShareUpdateExclusiveLock",
            Share => "ShareLock",
            ShareRowExclusive => "ShareRowExclusiveLock",
            Exclusive => "ExclusiveLock",
            AccessExclusive => "AccessExclusiveLock",
        }
    }
}

impl From<&LockTableMode> for Mode {
    fn from(mode: &LockTableMode) -> Self {
        match mode {
            LockTableMode::AccessShare => AccessShare,
            LockTableMode::RowShare => RowShare,
            LockTableMode::RowExclusive => RowExclusive,
            LockTableMode::ShareUpdateExclusive => ShareUpdateExclusive,
            LockTableMode::Share => Share,
            LockTableMode::ShareRowExclusive => ShareRowExclusive,
            LockTableMode::Exclusive => Exclusive,
            LockTableMode::AccessExclusive => AccessExclusive,
        }
    }
}

/// A set of modes: bit n is the n-th of [`Mode::ALL`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Modes(u8);

impl Modes {
    /// Of these.
    pub fn of(modes: impl IntoIterator<Item = Mode>) -> Self {
        Modes(modes.into_iter().fold(0, |bits, mode| bits | 1 << mode as u8))
    }

    /// From the bits.
    pub fn from_bits(bits: u8) -> Self {
        Modes(bits)
    }

    /// The bits.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// With one more.
    pub fn with(self, mode: Mode) -> Self {
        Modes(self.0 | 1 << mode as u8)
    }

    fn without(self, mode: Mode) -> Self {
        Modes(self.0 & !(1 << mode as u8))
    }

    /// None.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Weakest first.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        Mode::ALL.into_iter().filter(move |mode| self.0 & 1 << *mode as u8 != 0)
    }

    /// Somebody who has one of these keeps another from `mode`.
    pub fn exclude(self, mode: Mode) -> bool {
        self.0 & mode.excludes().0 != 0
    }

    /// Somebody who has one of these keeps another from one of those.
    pub fn exclude_any(self, others: Modes) -> bool {
        others.iter().any(|mode| self.exclude(mode))
    }

    /// Whoever has one of these keeps off all that `mode` would.
    pub fn cover(self, mode: Mode) -> bool {
        self.iter().any(|held| mode.excludes().0 & !held.excludes().0 == 0)
    }
}

impl fmt::Debug for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_exclude_each_other_as_the_manual_says() {
        // A row for each mode in their order; x: the two exclude each other.
        let manual = [".......x", "......xx", "....xxxx", "...xxxxx", "..xx.xxx", "..xxxxxx", ".xxxxxxx", "xxxxxxxx"];
        for (mode, row) in Mode::ALL.into_iter().zip(manual) {
            let said: String =
                Mode::ALL.into_iter().map(|other| if Modes::of([other]).exclude(mode) { 'x' } else { '.' }).collect();
            assert_eq!(said, row, "{mode:?}");
        }
    }

    #[test]
    fn a_mode_covers_what_excludes_less() {
        let covers = |held, mode| Modes::of([held]).cover(mode);
        for mode in Mode::ALL {
            assert!(covers(mode, mode) && covers(AccessExclusive, mode));
        }
        assert!(covers(RowExclusive, AccessShare) && covers(ShareUpdateExclusive, RowExclusive));
        assert!(!covers(Share, RowExclusive) && !covers(RowExclusive, Share) && !covers(AccessShare, RowShare));
        assert!(!Modes::default().cover(AccessShare));
    }
}
