//! `INSERT … ON CONFLICT`: what happens to a row whose key exists.
//!
//! SET and WHERE of DO UPDATE are bound as the select list of `SELECT … FROM t, t AS excluded`: they see the row that is there under
//! the table's name (or alias), and the one that was to be inserted as `excluded`. A name without a table is ambiguous.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{DFSchema, DFSchemaRef, TableReference},
    logical_expr::{Expr, ExprSchemable, LogicalPlan},
    sql::sqlparser::ast::{
        Assignment, AssignmentTarget, ConflictTarget, DoUpdate, Expr as Ast, Ident, OnConflict, OnConflictAction,
        OnInsert, SelectItem, SetExpr, Value,
    },
};

use super::{Binder, dml, folded};
use crate::{
    catalog::{Table, TableDescriptor},
    error::{SqlError, SqlResult, SqlState},
    query::failure::from_datafusion,
};

/// The name of the row that was to be inserted.
const EXCLUDED: &str = "excluded";

/// What to do with a row whose key exists.
#[derive(Clone, Debug)]
pub enum Conflict {
    /// Leave it out.
    Nothing,
    /// Change the one that is there.
    Update(ConflictUpdate),
}

/// DO UPDATE.
#[derive(Clone, Debug)]
pub struct ConflictUpdate {
    /// Positions of the assigned columns.
    pub assigned: Vec<usize>,
    /// Their new values in this order, then the condition: one expression more than columns.
    pub exprs: Vec<Expr>,
    /// What the expressions see: all columns of the row that is there, then of the other.
    pub schema: DFSchemaRef,
}

/// Binds the clause of an INSERT into `table`, which the statement calls `alias`.
pub fn bind(binder: &Binder<'_>, on: OnInsert, table: &Table, alias: Option<&Ident>) -> SqlResult<Conflict> {
    let OnInsert::OnConflict(OnConflict { conflict_target, action }) = on else {
        return Err(SqlError::syntax("syntax error at or near \"DUPLICATE\""));
    };
    if let Some(target) = &conflict_target {
        check_target(target, table)?;
    }
    match action {
        OnConflictAction::DoNothing => Ok(Conflict::Nothing),
        OnConflictAction::DoUpdate(_) if conflict_target.is_none() => {
            Err(SqlError::syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name")
                .with_hint("For example, ON CONFLICT (column_name)."))
        }
        OnConflictAction::DoUpdate(update) => update_of(binder, update, table, alias).map(Conflict::Update),
    }
}

/// The target must be the primary key: nothing else is unique.
fn check_target(target: &ConflictTarget, table: &TableDescriptor) -> SqlResult<()> {
    let key: Vec<&str> = match table.primary_key {
        Some(_) => table.key.iter().map(|at| table.columns[*at].name.as_str()).collect(),
        None => Vec::new(),
    };
    match target {
        ConflictTarget::Columns(names) => {
            let names: Vec<String> = names.iter().map(folded).collect();
            if let Some(name) = names.iter().find(|name| table.position(name).is_none()) {
                return Err(SqlError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")));
            }
            let matches = !key.is_empty()
                && key.iter().all(|column| names.iter().any(|name| name == column))
                && names.iter().all(|name| key.contains(&name.as_str()));
            if matches { Ok(()) } else { Err(no_constraint()) }
        }
        ConflictTarget::OnConstraint(name) => {
            let name = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
            if table.primary_key.as_deref() == Some(&name) {
                return Ok(());
            }
            let message = format!("constraint \"{name}\" for table \"{}\" does not exist", table.name);
            Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message))
        }
    }
}

fn no_constraint() -> SqlError {
    SqlError::new(
        SqlState::INVALID_COLUMN_REFERENCE,
        "there is no unique or exclusion constraint matching the ON CONFLICT specification",
    )
}

fn update_of(binder: &Binder<'_>, update: DoUpdate, table: &Table, alias: Option<&Ident>) -> SqlResult<ConflictUpdate> {
    let own = alias.cloned().unwrap_or_else(|| Ident::with_quote('"', &table.name));
    let (mut assigned, mut values) = (Vec::new(), Vec::new());
    for Assignment { target, value } in update.assignments {
        let AssignmentTarget::ColumnName(name) = &target else {
            return Err(SqlError::unsupported("ON CONFLICT DO UPDATE with a list of columns in SET"));
        };
        let name = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        let at = dml::visible_position(table, &name)?;
        if assigned.contains(&at) {
            return Err(SqlError::syntax(format!("multiple assignments to same column \"{name}\"")));
        }
        assigned.push(at);
        values.push(value);
    }
    let defaults: Vec<bool> = values.iter().map(dml::is_default).collect();
    let condition = update.selection.unwrap_or_else(|| Ast::value(Value::Boolean(true)));
    let mut items = Vec::with_capacity(values.len() + 1);
    for ((value, at), default) in values.into_iter().zip(&assigned).zip(&defaults) {
        // DEFAULT is no expression: a NULL holds its place.
        let value = if *default { Ast::value(Value::Null) } else { binder.typed(value, table, *at)? };
        items.push(item(value, items.len()));
    }
    items.push(item(condition, items.len()));
    let name = format!("{}.{}", Ident::with_quote('"', &table.schema), Ident::with_quote('"', &table.name));
    let mut query = dml::parsed_query(&format!("SELECT 1 FROM {name} AS {own} CROSS JOIN {name} AS {EXCLUDED}"))?;
    if let SetExpr::Select(select) = query.body.as_mut() {
        select.projection = items;
    }
    let LogicalPlan::Projection(projection) = binder.query(query, &[])? else {
        return Err(SqlError::unsupported("a subquery in ON CONFLICT DO UPDATE"));
    };
    if !matches!(projection.input.as_ref(), LogicalPlan::Join(_)) {
        return Err(SqlError::unsupported("a subquery in ON CONFLICT DO UPDATE"));
    }
    let schema = both_rows(table, &folded(&own))?;
    let mut exprs: Vec<Expr> = projection.expr.into_iter().map(Expr::unalias).collect();
    let condition = exprs.pop().unwrap_or_default();
    if condition.get_type(schema.as_ref()).map_err(from_datafusion)? != DataType::Boolean {
        let message = "argument of WHERE must be type boolean";
        return Err(SqlError::new(SqlState::DATATYPE_MISMATCH, message));
    }
    for ((expr, at), default) in exprs.iter_mut().zip(&assigned).zip(defaults) {
        *expr = match default {
            true => binder.default(table, *at)?,
            false => binder.assigned(std::mem::take(expr), table, *at, &schema)?,
        };
    }
    exprs.push(condition);
    Ok(ConflictUpdate { assigned, exprs, schema })
}

/// One expression of the select list.
fn item(expr: Ast, number: usize) -> SelectItem {
    SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', format!("\u{1}conflict{number}")) }
}

fn both_rows(table: &Table, own: &str) -> SqlResult<DFSchemaRef> {
    let positions: Vec<usize> = (0..table.columns.len()).collect();
    let row = crate::query::scan::schema_of(table, &positions);
    let named = |name: &str| DFSchema::try_from_qualified_schema(TableReference::bare(name), &row);
    let both = named(own).and_then(|there| there.join(&named(EXCLUDED)?)).map_err(from_datafusion)?;
    Ok(Arc::new(both))
}
