//! `INSERT … ON CONFLICT`: what happens to a row whose key exists.
//!
//! SET and WHERE of DO UPDATE are bound as the select list of `SELECT … FROM t, t AS excluded`: they see the row that is there under
//! the table's name (or alias), and the one that was to be inserted as `excluded`. A name without a table is ambiguous.

use std::{collections::BTreeSet, sync::Arc};

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
    catalog::{Table, TableDescriptor, descriptor::IndexDescriptor},
    error::{SqlError, SqlResult, SqlState},
    query::failure::from_datafusion,
};

/// The name of the row that was to be inserted.
const EXCLUDED: &str = "excluded";

/// What to do with a row whose key exists.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// By what rows meet.
    pub arbiters: Arbiters,
    /// DO UPDATE; without it the new row is left out.
    pub update: Option<ConflictUpdate>,
}

/// The unique constraints by which new rows meet those that are there; others are errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arbiters {
    /// The primary key is one.
    pub key: bool,
    /// Ids of unique indexes.
    pub indexes: Vec<u32>,
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
    let arbiters = match &conflict_target {
        Some(target) => arbiters_of(target, table)?,
        None => all_arbiters(table)?,
    };
    match action {
        OnConflictAction::DoNothing => Ok(Conflict { arbiters, update: None }),
        OnConflictAction::DoUpdate(_) if conflict_target.is_none() => {
            Err(SqlError::syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name")
                .with_hint("For example, ON CONFLICT (column_name)."))
        }
        OnConflictAction::DoUpdate(update) => {
            let update = update_of(binder, update, table, alias)?;
            Ok(Conflict { arbiters, update: Some(update) })
        }
    }
}

/// Without a target everything that is unique counts.
fn all_arbiters(table: &TableDescriptor) -> SqlResult<Arbiters> {
    let unique = table.indexes.iter().filter(|index| index.unique);
    let indexes = unique.map(|index| arbiter(table, index)).collect::<SqlResult<Vec<u32>>>()?;
    Ok(Arbiters { key: table.primary_key.is_some(), indexes })
}

/// 55000 for an index that several rows may meet by, for a while.
fn arbiter(table: &TableDescriptor, index: &IndexDescriptor) -> SqlResult<u32> {
    if index.is_strict() {
        return Ok(index.id);
    }
    let message = "ON CONFLICT does not support deferrable unique constraints/exclusion constraints as arbiters";
    Err(SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .with_table(&table.schema, &table.name)
        .with_constraint(&index.name))
}

/// The constraints a target means. A unique index that is still being filled has been written since it was made and may miss older
/// rows: it is not meant.
fn arbiters_of(target: &ConflictTarget, table: &TableDescriptor) -> SqlResult<Arbiters> {
    let unique = table.public_indexes().filter(|index| index.unique);
    match target {
        ConflictTarget::Columns(names) => {
            let position = |name: &Ident| {
                let name = folded(name);
                table.position(&name).ok_or_else(|| {
                    SqlError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist"))
                })
            };
            let wanted = names.iter().map(position).collect::<SqlResult<BTreeSet<usize>>>()?;
            let same = |index: &&IndexDescriptor| index.columns.iter().map(|c| c.at).collect::<BTreeSet<_>>() == wanted;
            let key = table.primary_key.is_some() && table.key.iter().copied().collect::<BTreeSet<_>>() == wanted;
            let indexes = unique.filter(same).map(|index| arbiter(table, index)).collect::<SqlResult<Vec<u32>>>()?;
            if key || !indexes.is_empty() { Ok(Arbiters { key, indexes }) } else { Err(no_constraint()) }
        }
        ConflictTarget::OnConstraint(name) => {
            let name = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
            if table.primary_key.as_deref() == Some(&name) {
                return Ok(Arbiters { key: true, indexes: Vec::new() });
            }
            if let Some(index) = unique.filter(|index| index.constraint).find(|index| index.name == name) {
                return Ok(Arbiters { key: false, indexes: vec![arbiter(table, index)?] });
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
