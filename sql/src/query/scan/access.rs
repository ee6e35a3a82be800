//! By which of its keys a scan reads a table: its own, or a secondary index's. PURE.
//!
//! ```text
//!   every column of the primary key fixed             points
//!   every column of a strictly unique index fixed     points of the index, then of the table
//!   some column of the primary key bounded            ranges
//!   first columns of an index fixed, or the next      ranges of the index, then points of the table
//!   closed on both sides
//! ```
//!
//! There are no statistics: a range of an index that is open on one side may well be most of the table, whose rows would then be
//! fetched one by one, so such a range reads the table.

use datafusion::logical_expr::Expr;

use super::bounds::{self, KeyBounds};
use crate::{
    catalog::TableDescriptor,
    codec::{IndexCodec, KeyForm},
};

/// The bounds of a scan and the keys they bound.
#[derive(Debug)]
pub struct Chosen {
    /// What the conditions say.
    pub bounds: KeyBounds<Expr>,
    /// About these keys.
    pub form: KeyForm,
    /// Of this index; `None` for the table's own.
    pub index: Option<IndexCodec>,
}

impl Chosen {
    fn of(filters: &[Expr], table: &TableDescriptor, form: KeyForm, index: Option<IndexCodec>) -> Self {
        Chosen { bounds: bounds::analyse(filters, table, &form), form, index }
    }

    /// Every column of a key that only one row has is fixed.
    pub fn is_points(&self) -> bool {
        let unique = self.index.as_ref().is_none_or(|index| index.descriptor.is_strict());
        unique && self.bounds.fixed.len() == self.form.columns().len()
    }

    /// How well it narrows the rows; more is better.
    fn rank(&self) -> (bool, usize, bool) {
        let closed = self.bounds.lower.is_some() && self.bounds.upper.is_some();
        (self.is_points(), self.bounds.fixed.len(), closed)
    }

    fn is_narrow(&self) -> bool {
        self.rank() > (false, 0, false)
    }
}

/// Chooses for conditions that all hold.
pub fn choose(filters: &[Expr], table: &TableDescriptor) -> Chosen {
    let primary = Chosen::of(filters, table, KeyForm::primary(table), None);
    if primary.is_points() {
        return primary;
    }
    let secondary = table.public_indexes().map(|index| {
        let codec = IndexCodec::new(table, index);
        Chosen::of(filters, table, codec.form().clone(), Some(codec))
    });
    let best = secondary.filter(Chosen::is_narrow).max_by_key(Chosen::rank);
    match best {
        Some(best) if best.rank() > primary.rank() => best,
        _ => primary,
    }
}

/// The condition compares a column of some key with something that has no columns.
pub fn mentions_key(filter: &Expr, table: &TableDescriptor) -> bool {
    let indexed = table.public_indexes().flat_map(|index| index.columns.iter().map(|column| column.at));
    table.key.iter().copied().chain(indexed).any(|at| bounds::bounds_column(filter, &table.columns[at].name))
}
