//! Who may say what is in an identity column. PURE.

use datafusion::sql::sqlparser::ast::{Expr, Query, SetExpr};

use crate::{
    catalog::{ColumnDescriptor, Identity, TableDescriptor},
    error::{SqlError, SqlResult, SqlState},
    statement::sequence::Overriding,
};

/// The keyword DEFAULT, which the parser takes for a column.
fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default"))
}

/// OVERRIDING USER VALUE: what a statement says about the column counts for nothing.
pub fn is_left_aside(column: &ColumnDescriptor, overriding: Option<Overriding>) -> bool {
    overriding == Some(Overriding::User) && column.identity.is_some()
}

/// 428C9 for an INSERT whose source has values for a column that is GENERATED ALWAYS.
pub fn check_source(
    query: &Query,
    table: &TableDescriptor,
    targets: &[usize],
    overriding: Option<Overriding>,
) -> SqlResult<()> {
    if overriding.is_some() {
        return Ok(());
    }
    let always = |at: &usize| table.columns[*at].identity == Some(Identity::Always);
    if !targets.iter().any(always) {
        return Ok(());
    }
    // A row may say less than it could: what it does not say is the default.
    let says = |place: usize| match &*query.body {
        SetExpr::Values(values) => values.rows.iter().any(|row| row.get(place).is_some_and(|value| !is_default(value))),
        SetExpr::Select(select) => place < select.projection.len(),
        _ => true,
    };
    match targets.iter().enumerate().find(|(place, at)| always(at) && says(*place)) {
        None => Ok(()),
        Some((_, at)) => {
            let name = &table.columns[*at].name;
            let message = format!("cannot insert a non-DEFAULT value into column \"{name}\"");
            Err(SqlError::new(SqlState::GENERATED_ALWAYS, message)
                .with_detail(format!("Column \"{name}\" is an identity column defined as GENERATED ALWAYS."))
                .with_hint("Use OVERRIDING SYSTEM VALUE to override."))
        }
    }
}

/// 428C9 for an UPDATE that assigns a value to a column that is GENERATED ALWAYS.
pub fn check_assigned(table: &TableDescriptor, at: usize, value: &Expr) -> SqlResult<()> {
    let column = &table.columns[at];
    if column.identity != Some(Identity::Always) || is_default(value) {
        return Ok(());
    }
    let message = format!("column \"{}\" can only be updated to DEFAULT", column.name);
    Err(SqlError::new(SqlState::GENERATED_ALWAYS, message)
        .with_detail(format!("Column \"{}\" is an identity column defined as GENERATED ALWAYS.", column.name)))
}
