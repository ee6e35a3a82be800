//! What a transaction leaves to be checked at COMMIT, and SET CONSTRAINTS.

use std::collections::BTreeMap;

use super::{
    Integrity,
    checks::{Check, Subject},
};
use crate::{
    catalog::{CatalogSnapshot, foreign_key::Deferral},
    ddl::restore::{self, Move},
    error::{SqlError, SqlResult, SqlState},
};

/// Checks of one transaction at most: some 200 bytes each.
const MAX_CHECKS: usize = 1_000_000;

/// Of one transaction.
#[derive(Debug, Default)]
pub struct Deferred {
    checks: Vec<Check>,
    modes: Modes,
}

/// What SET CONSTRAINTS has said: whether checks are put off.
#[derive(Clone, Debug, Default)]
struct Modes {
    all: Option<bool>,
    named: BTreeMap<u32, bool>,
}

impl Modes {
    /// What concerns a constraint that is gone is not put off, and forgotten.
    fn puts_off(&self, check: &Check, catalog: &CatalogSnapshot) -> bool {
        let said = self.named.get(&check.key).copied().or(self.all);
        match deferral_of(catalog, check) {
            None | Some(Deferral::Never) => false,
            Some(deferral) => said.unwrap_or(deferral == Deferral::Deferred),
        }
    }
}

/// A place to go back to.
#[derive(Clone, Debug)]
pub struct Place {
    checks: usize,
    modes: Modes,
}

/// Of a foreign key, or of an index.
fn deferral_of(catalog: &CatalogSnapshot, check: &Check) -> Option<Deferral> {
    let table = catalog.by_id(check.child)?;
    let key = table.foreign_keys.iter().find(|key| key.id == check.key).map(|key| key.deferral);
    key.or_else(|| table.indexes.iter().find(|index| index.id == check.key).map(|index| index.deferral))
}

impl Deferred {
    /// Keeps the checks that are put off; the others, which are due.
    pub(super) fn put_off(&mut self, checks: Vec<Check>, catalog: &CatalogSnapshot) -> SqlResult<Vec<Check>> {
        let later = |check: &Check| self.modes.puts_off(check, catalog);
        let (later, now): (Vec<Check>, Vec<Check>) = checks.into_iter().partition(later);
        if self.checks.len() + later.len() > MAX_CHECKS {
            let message = format!("a transaction puts off at most {MAX_CHECKS} checks of constraints");
            return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
                .with_hint("SET CONSTRAINTS ALL IMMEDIATE checks them as they come."));
        }
        self.checks.extend(later);
        Ok(now)
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// SET CONSTRAINTS ALL.
    pub fn set_all(&mut self, put_off: bool) {
        self.modes = Modes { all: Some(put_off), named: BTreeMap::new() };
    }

    /// SET CONSTRAINTS of a constraint by its id.
    pub fn set(&mut self, key: u32, put_off: bool) {
        self.modes.named.insert(key, put_off);
    }

    /// For ROLLBACK TO.
    pub fn place(&self) -> Place {
        Place { checks: self.checks.len(), modes: self.modes.clone() }
    }

    /// ROLLBACK TO.
    pub fn roll_back_to(&mut self, place: &Place) {
        self.checks.truncate(place.checks);
        self.modes = place.modes.clone();
    }

    /// Tables' rows have other keys, after one move and the next.
    pub fn follow(&mut self, moves: impl Iterator<Item = Move>) {
        for way in moves {
            for check in &mut self.checks {
                if let Subject::Row { row_key, .. } = &mut check.subject
                    && let Some(key) = restore::moved(row_key, way)
                {
                    *row_key = key;
                }
            }
        }
    }
}

impl Integrity<'_> {
    /// Runs the checks that wait although their constraints are not put off any more. They stay for COMMIT: a ROLLBACK TO may
    /// undo what made them good.
    pub async fn check_due(&self) -> SqlResult<()> {
        let due = {
            let deferred = self.links.deferred.lock();
            let due = |check: &&Check| !deferred.modes.puts_off(check, &self.links.catalog);
            deferred.checks.iter().filter(due).cloned().collect()
        };
        self.check(due).await
    }

    /// Runs all that wait.
    pub async fn check_all(&self) -> SqlResult<()> {
        let all = std::mem::take(&mut self.links.deferred.lock().checks);
        self.check(all).await
    }
}
