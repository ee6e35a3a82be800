//! Key plans: statements compiled to key accesses, which meet neither planner nor DataFusion's executor when they run.
//!
//! ```text
//!   SELECT v FROM t WHERE k = $1             key ← $1; get; project
//!   SELECT v FROM t WHERE email = $1         entry ← $1 in a unique index; get; row; get; project
//!   UPDATE t SET v = v + $1 WHERE k = $2     key ← $2; get; assign; put
//!   INSERT INTO t VALUES ($1, now())         row ← values, defaults; insert
//! ```
//!
//! `compile` makes a plan from the statement, or refuses it: then the statement goes the general way. Running is in `run`. A
//! plan holds no values: literals of the simple protocol have become parameters before, so one plan serves every
//! statement that looks the same. Not here: joins, aggregates, ORDER BY other than the key's, subqueries.

pub mod access;
pub mod by_index;
pub mod compile;
pub mod run;

use crate::{
    catalog::Sequence,
    codec::IndexCodec,
    dml::{Projection, Target},
    eval::Scalar,
    statement::row_lock::RowLockClause,
};

pub use access::{Access, Selection};

/// A compiled statement.
#[derive(Clone, Debug)]
pub enum KeyPlan {
    /// SELECT
    Read(ReadPlan),
    /// INSERT … VALUES
    Insert(InsertPlan),
    /// UPDATE and DELETE
    Modify(ModifyPlan),
}

impl KeyPlan {
    /// The table.
    pub fn target(&self) -> &Target {
        match self {
            KeyPlan::Read(plan) => &plan.target,
            KeyPlan::Insert(plan) => &plan.target,
            KeyPlan::Modify(plan) => &plan.target,
        }
    }
    /// The secondary index it goes by.
    pub fn index(&self) -> Option<&IndexCodec> {
        let selection = match self {
            KeyPlan::Read(plan) => &plan.selection,
            KeyPlan::Modify(plan) => &plan.selection,
            KeyPlan::Insert(_) => return None,
        };
        self.target().indexes.get(selection.index?)
    }
    /// The result's columns.
    pub fn projection(&self) -> Option<&Projection> {
        match self {
            KeyPlan::Read(plan) => Some(&plan.projection),
            KeyPlan::Insert(plan) => plan.returning.as_ref(),
            KeyPlan::Modify(plan) => plan.returning.as_ref(),
        }
    }
    /// It changes or locks rows that it has to find first.
    pub fn reads_for_write(&self) -> bool {
        matches!(self, KeyPlan::Modify(_)) || self.locks()
    }
    /// SELECT … FOR UPDATE and its kin.
    pub fn locks(&self) -> bool {
        matches!(self, KeyPlan::Read(ReadPlan { lock: Some(_), .. }))
    }
    /// It writes.
    pub fn writes(&self) -> bool {
        !matches!(self, KeyPlan::Read(_))
    }
}

/// SELECT by key.
#[derive(Clone, Debug)]
pub struct ReadPlan {
    /// The table.
    pub target: Target,
    /// Which rows.
    pub selection: Selection,
    /// The select list.
    pub projection: Projection,
    /// Which columns are decoded.
    pub wanted: Vec<bool>,
    /// A range is read from its end.
    pub reverse: bool,
    /// LIMIT
    pub limit: Option<Scalar>,
    /// FOR UPDATE and its kin; then the rows are points.
    pub lock: Option<RowLockClause>,
}

/// INSERT … VALUES.
#[derive(Clone, Debug)]
pub struct InsertPlan {
    /// The table.
    pub target: Target,
    /// For each row a value for each column; the hidden row id's is a NULL that is replaced.
    pub rows: Vec<Vec<Scalar>>,
    /// For each row the sequences its values are drawn from, which its scalars read as columns; empty when no row draws.
    pub draws: Vec<Vec<Sequence>>,
    /// RETURNING
    pub returning: Option<Projection>,
}

/// UPDATE or DELETE by key.
#[derive(Clone, Debug)]
pub struct ModifyPlan {
    /// The table.
    pub target: Target,
    /// Which rows; always points.
    pub selection: Selection,
    /// SET; `None` deletes.
    pub assignments: Option<Vec<(usize, Scalar)>>,
    /// RETURNING
    pub returning: Option<Projection>,
}
