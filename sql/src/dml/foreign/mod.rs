//! FOREIGN KEY: what a statement has done to rows is made good, or refused, at its end.
//!
//! ```text
//!   rows of a table, before and after ─► parent side: each key that is gone, by the constraints that reference it
//!             ▲                             RESTRICT      a child? 23503
//!             │                             CASCADE, SET  children found, locked, changed ──┐
//!             └──────── as if a statement had changed them ◄────────────────────────────────┘
//!                       ─► then the checks: NO ACTION, and for each new child its parent, locked FOR KEY SHARE
//!                          now, or at COMMIT where the constraint is deferred
//! ```
//!
//! Who removes a key holds its row FOR UPDATE, who adds a child holds the same row FOR KEY SHARE, until each has committed: so one
//! of the two waits, and then sees what the other did. Children are looked for at a snapshot that is taken under the
//! lock, parents are read as they are. A parent that somebody has not committed yet is not there, and is not waited for.
//!
//! A lock may go with its leader, and a child that came meanwhile leaves no trace on its parent's row: so the rows of keys that are
//! removed are guarded, and their locks looked at once more when the writes stand.
//!
//! Children are found by an index or primary key whose first columns are the constraint's; without one the whole table is read,
//! as in PostgreSQL. Checks come after all actions of a statement, where PostgreSQL goes by the age of constraints.

mod actions;
mod checks;
mod children;
mod deferred;
mod parents;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::{RowLocking, target::Change, unique};
use crate::{
    catalog::{CatalogSnapshot, ForeignKeyDescriptor, Table, foreign_key::Action},
    codec::{TableCodec, key},
    error::{SqlError, SqlResult, SqlState},
    eval::cast,
    planted::{Plant, Planted},
    reader::Reader,
    types::{Datum, FormatSettings, PgType},
};

pub use checks::orphan;
pub(super) use checks::{Check, Subject};
pub use deferred::{Deferred, Place};
pub use parents::Parents;

/// Rows that one statement changes through foreign keys at most: they are held until it ends.
const MAX_ROWS: usize = 1_000_000;

/// A row before and after; one that came has no before, one that went no after.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Before.
    pub old: Option<Vec<Datum>>,
    /// After.
    pub new: Option<Vec<Datum>>,
}

impl Pair {
    /// Of new rows.
    pub fn inserted(rows: &[Vec<Datum>]) -> Vec<Pair> {
        rows.iter().map(|row| Pair { old: None, new: Some(row.clone()) }).collect()
    }
    /// Of changed rows, which were kept as they were.
    pub fn updated(changes: &[Change]) -> Vec<Pair> {
        changes.iter().map(|change| Pair { old: Some(change.old.clone()), new: Some(change.row.clone()) }).collect()
    }
    /// Of rows that went.
    pub fn deleted(gone: &[Change]) -> Vec<Pair> {
        gone.iter().map(|change| Pair { old: Some(change.row.clone()), new: None }).collect()
    }
}

/// Checks that wait for a statement's last row.
#[derive(Debug, Default)]
pub struct Later {
    checks: Vec<Check>,
    /// Rows are written in bulk, and cannot be read before all are.
    bulk: bool,
}

impl Later {
    /// Of a statement that writes its rows in bulk, or as all others do.
    pub fn of(bulk: bool) -> Self {
        Later { checks: Vec::new(), bulk }
    }
}

/// What keeping constraints needs of a session.
pub struct Links {
    /// The tables and their constraints.
    pub catalog: Arc<CatalogSnapshot>,
    /// How rows are locked.
    pub locking: RowLocking,
    /// What the transaction has put off.
    pub deferred: Arc<Mutex<Deferred>>,
}

/// Keeps foreign keys and deferrable unique constraints, for one statement or at COMMIT.
pub struct Integrity<'a> {
    /// Reads tables.
    pub reader: &'a Reader,
    /// Of the session.
    pub links: &'a Links,
    /// When the transaction began, in microseconds since 1970 UTC: for defaults.
    pub now_us: i64,
    /// Of the session: for defaults.
    pub settings: &'a FormatSettings,
    /// The gateway's bug, if a test has planted one.
    pub plant: Plant,
}

/// A key that rows may have referenced, and what it has become.
struct Gone {
    row_key: Bytes,
    old: Vec<Datum>,
    new: Option<Vec<Datum>>,
}

impl Integrity<'_> {
    /// Makes good what a statement has done to rows of `table`. 23503 where that is impossible.
    pub async fn settle(&self, table: &Table, pairs: Vec<Pair>) -> SqlResult<()> {
        let mut rounds = VecDeque::from([(Arc::clone(table), pairs)]);
        let (mut checks, mut touched) = (Vec::new(), 0);
        while let Some((table, pairs)) = rounds.pop_front() {
            touched += pairs.len();
            if touched > MAX_ROWS {
                let message = format!("a statement changes at most {MAX_ROWS} rows through foreign keys");
                return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
            }
            new_children(&table, &pairs, &mut checks)?;
            unique::new_values(&table, &pairs, &mut checks)?;
            for (child, key) in self.referring(&table) {
                let gone = gone_keys(&table, &key, &pairs)?;
                self.guard(&table, &gone)?;
                for (action, gone) in by_action(&key, gone) {
                    let parents = gone.iter().map(|gone| Check::parent(&child, &key, gone.old.clone()));
                    match action {
                        Action::NoAction => checks.extend(parents),
                        Action::Restrict => self.restrict(&table, &child, &key, &gone).await?,
                        _ => {
                            if action == Action::SetDefault {
                                // The default may be the key that is gone.
                                checks.extend(parents);
                            }
                            let changed = self.carry_out(&child, &key, action, &gone).await?;
                            if !changed.is_empty() {
                                rounds.push_back((Arc::clone(&child), changed));
                            }
                        }
                    }
                }
            }
        }
        self.check_or_put_off(checks).await
    }

    /// The same for new rows of which more are to come, in the same statement: `later` gets the checks whose parents may be among
    /// those.
    pub async fn settle_some(&self, table: &Table, rows: &[Vec<Datum>], later: &mut Later) -> SqlResult<()> {
        let (mut checks, pairs) = (Vec::new(), Pair::inserted(rows));
        new_children(table, &pairs, &mut checks)?;
        if !later.bulk {
            unique::new_values(table, &pairs, &mut checks)?;
        }
        let own = |check: &Check| table.foreign_keys.iter().any(|key| key.id == check.key && key.parent == table.id);
        let (own, others): (Vec<Check>, Vec<Check>) = checks.into_iter().partition(own);
        later.checks.extend(own);
        if later.checks.len() > MAX_ROWS {
            let message = format!("a statement adds at most {MAX_ROWS} rows to a table that references itself");
            return Err(SqlError::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message));
        }
        self.check_or_put_off(others).await
    }

    /// All rows have come.
    pub async fn settle_rest(&self, table: &Table, later: Later) -> SqlResult<()> {
        let mut checks = later.checks;
        if later.bulk {
            unique::all_values(table, &mut checks);
        }
        self.check_or_put_off(checks).await
    }

    /// Nobody may have taken such a row for the parent of a new child since it was locked.
    fn guard(&self, table: &Table, gone: &[Gone]) -> SqlResult<()> {
        if self.reader.is_unpublished(table.storage_id) || self.plant.has(Planted::UnguardedParent) {
            return Ok(());
        }
        let rows: Vec<Bytes> = gone.iter().map(|gone| gone.row_key.clone()).collect();
        self.reader.txn(table.storage_id).guard_rows(rows);
        Ok(())
    }

    async fn check_or_put_off(&self, checks: Vec<Check>) -> SqlResult<()> {
        let now = self.links.deferred.lock().put_off(checks, &self.links.catalog)?;
        self.check(now).await
    }

    /// The constraints that reference a table.
    fn referring(&self, table: &Table) -> Vec<(Table, ForeignKeyDescriptor)> {
        let children = table.referrers.iter().filter_map(|id| self.links.catalog.by_id(*id));
        children
            .flat_map(|child| {
                let keys = child.foreign_keys.iter().filter(|key| key.parent == table.id);
                keys.map(|key| (Arc::clone(child), key.clone()))
            })
            .collect()
    }
}

/// Notes which new rows have to have a parent.
fn new_children(table: &Table, pairs: &[Pair], checks: &mut Vec<Check>) -> SqlResult<()> {
    if table.foreign_keys.is_empty() {
        return Ok(());
    }
    let codec = TableCodec::new(table);
    for key in &table.foreign_keys {
        for pair in pairs {
            let Some(row) = &pair.new else { continue };
            let Some(values) = child_values(key, row) else { continue };
            if let Some(old) = &pair.old {
                let same = values == at(old, &key.columns);
                // A check that waits for COMMIT looks for its row by the row's key.
                if same && !(key.is_deferrable() && codec.key(old)? != codec.key(row)?) {
                    continue;
                }
            }
            let subject = Subject::Row { row_key: codec.key(row)?, values };
            checks.push(Check { child: table.id, key: key.id, subject });
        }
    }
    Ok(())
}

/// The values of a constraint's columns in a row, if it has to have a parent. Some may be NULL under MATCH FULL: such a row has none.
pub fn child_values(key: &ForeignKeyDescriptor, row: &[Datum]) -> Option<Vec<Datum>> {
    let values = at(row, &key.columns);
    let nulls = values.iter().filter(|value| value.is_null()).count();
    let free = nulls == values.len() || (nulls > 0 && !key.match_full);
    (!free).then_some(values)
}

/// The values that a parent has to have; `None` when it cannot.
pub fn parent_values(parent: &Table, key: &ForeignKeyDescriptor, values: &[Datum]) -> SqlResult<Option<Vec<Datum>>> {
    if values.iter().any(Datum::is_null) {
        return Ok(None);
    }
    converted(values, &types_of(parent, &key.referenced), &FormatSettings::default())
}

/// The keys that a constraint may reference and that rows had and have no more.
fn gone_keys(table: &Table, key: &ForeignKeyDescriptor, pairs: &[Pair]) -> SqlResult<Vec<Gone>> {
    let codec = TableCodec::new(table);
    let types = types_of(table, &key.referenced);
    let (mut gone, mut seen) = (Vec::new(), BTreeSet::new());
    for pair in pairs {
        let Some(old) = &pair.old else { continue };
        let row_key = codec.key(old)?;
        let old = at(old, &key.referenced);
        if old.iter().any(Datum::is_null) {
            continue;
        }
        let name = name_of(&old, &types);
        let new = pair.new.as_ref().map(|row| at(row, &key.referenced));
        if new.as_ref().is_none_or(|new| name_of(new, &types) != name) && seen.insert(name) {
            gone.push(Gone { row_key, old, new });
        }
    }
    Ok(gone)
}

/// Those that were changed and those that were removed, each with what becomes of their children.
fn by_action(key: &ForeignKeyDescriptor, gone: Vec<Gone>) -> impl Iterator<Item = (Action, Vec<Gone>)> {
    let (changed, removed): (Vec<Gone>, Vec<Gone>) = gone.into_iter().partition(|gone| gone.new.is_some());
    [(key.on_update, changed), (key.on_delete, removed)].into_iter().filter(|(_, gone)| !gone.is_empty())
}

fn at(row: &[Datum], positions: &[usize]) -> Vec<Datum> {
    positions.iter().map(|at| row[*at].clone()).collect()
}

fn types_of(table: &Table, positions: &[usize]) -> Vec<PgType> {
    positions.iter().map(|at| table.columns[*at].column_type.pg_type).collect()
}

/// Bytes that are the same for values that are equal.
fn name_of(values: &[Datum], types: &[PgType]) -> Bytes {
    let mut name = BytesMut::new();
    for (value, pg_type) in values.iter().zip(types) {
        key::encode(value, key::KeyColumn { nullable: true, ..key::KeyColumn::primary(*pg_type) }, &mut name);
    }
    name.freeze()
}

/// Values as values of other types; `None` when those have no equal ones.
fn converted(values: &[Datum], to: &[PgType], settings: &FormatSettings) -> SqlResult<Option<Vec<Datum>>> {
    let mut out = Vec::with_capacity(values.len());
    for (value, to) in values.iter().zip(to) {
        match cast::cast(value.clone(), to.plain(), true, settings) {
            Ok(value) => out.push(value),
            Err(error) if error.sqlstate == SqlState::NUMERIC_VALUE_OUT_OF_RANGE => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(out))
}
