//! Statements to key plans. PURE.

use datafusion::sql::sqlparser::ast::{
    AssignmentTarget, Delete, Expr, FromTable, GroupByExpr, Insert, LimitClause, ObjectName, OrderByKind,
    OrderByOptions, Query, Select, SelectItem, SetExpr, Statement, TableFactor, TableObject, TableWithJoins, Update,
};

use super::{Access, InsertPlan, KeyPlan, ModifyPlan, ReadPlan, Selection, access};
use crate::{
    catalog::{CatalogSnapshot, Table, descriptor::IndexColumn},
    dml::{Projection, Target, identity, returning::mark},
    error::{SqlError, SqlResult, SqlState},
    eval::{Compiler, ParamTypes, Refusal, Scalar},
    name::{RelationName, folded},
    statement::{
        row_lock::{self, RowLockClause},
        sequence::Overriding,
    },
    types::{Datum, PgType},
};

/// A plan and its parameters' types.
pub struct Compiled {
    /// The plan.
    pub plan: KeyPlan,
    /// All parameters up to the highest that is named.
    pub params: Vec<PgType>,
}

type Result<T> = std::result::Result<T, Refusal>;

/// Compiles a statement whose parameters the client declared as `declared`.
pub fn compile(statement: &Statement, catalog: &CatalogSnapshot, declared: &[PgType]) -> Result<Compiled> {
    let params = ParamTypes::new(declared);
    match statement {
        Statement::Query(query) => read(query, catalog, params),
        Statement::Insert(insert) => insert_values(insert, catalog, params),
        Statement::Update(update) => update_rows(update, catalog, params),
        Statement::Delete(delete) => delete_rows(delete, catalog, params),
        _ => Err(Refusal::Unknown),
    }
}

/// A plain table of ours in FROM, with its alias.
fn plain_table(from: &TableWithJoins, catalog: &CatalogSnapshot) -> Result<(Table, Option<String>)> {
    if !from.joins.is_empty() {
        return Err(Refusal::Unknown);
    }
    let TableFactor::Table { name, alias, args: None, with_hints, version: None, partitions, sample: None, .. } =
        &from.relation
    else {
        return Err(Refusal::Unknown);
    };
    let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
    if !with_hints.is_empty() || !partitions.is_empty() || renamed {
        return Err(Refusal::Unknown);
    }
    Ok((known_table(name, catalog)?, alias.as_ref().map(|alias| folded(&alias.name))))
}

fn known_table(name: &ObjectName, catalog: &CatalogSnapshot) -> Result<Table> {
    let name = RelationName::new(name)?;
    // A name that is not ours may be a system view: the general way says what is wrong with it.
    catalog.resolve(name.schema.as_deref(), &name.name).cloned().map_err(|_| Refusal::Unknown)
}

fn read(query: &Query, catalog: &CatalogSnapshot, params: ParamTypes) -> Result<Compiled> {
    let SetExpr::Select(select) = &*query.body else { return Err(Refusal::Unknown) };
    let bare =
        query.with.is_none() && query.fetch.is_none() && query.for_clause.is_none() && query.pipe_operators.is_empty();
    if !bare || !is_plain(select) {
        return Err(Refusal::Unknown);
    }
    let [from] = select.from.as_slice() else { return Err(Refusal::Unknown) };
    let (table, alias) = plain_table(from, catalog)?;
    let lock = lock(query, alias.as_deref().unwrap_or(&table.name))?;
    let mut compiler = Compiler::over(&table, alias, params);
    let projection = Projection::compile(&mut compiler, &table, &select.projection)?;
    let selection = access::select(&mut compiler, &table, select.selection.as_ref())?;
    let limit = limit(&mut compiler, query)?;
    let order = order(&mut compiler, query, &table, &selection)?;
    let short = match &selection.access {
        Access::Points(points) if lock.is_some() => limit.is_none() && (points.len() == 1 || order == Order::Any),
        Access::Range { .. } if lock.is_some() => false,
        Access::Points(points) => points.len() == 1 || (order == Order::Any && limit.is_none()),
        Access::Range { prefix, low, high } => {
            limit.is_some() || !prefix.is_empty() || (low.is_some() && high.is_some())
        }
    };
    // Wide ranges are the business of scans that run in parallel and filter at the store.
    if !short || (limit.is_some() && selection.filter.is_some() && selection.index.is_none()) {
        return Err(Refusal::Unknown);
    }
    let mut wanted = vec![false; table.columns.len()];
    projection.mark_columns(&mut wanted);
    selection.filter.iter().for_each(|filter| mark(filter, &mut wanted));
    let params = compiler.params.finish();
    let reverse = order == Order::Descending;
    let plan = ReadPlan { target: Target::new(table), selection, projection, wanted, reverse, limit, lock };
    Ok(Compiled { plan: KeyPlan::Read(plan), params })
}

/// The locking clause over the one table there is.
fn lock(query: &Query, name: &str) -> Result<Option<RowLockClause>> {
    let [clause] = query.locks.as_slice() else {
        return if query.locks.is_empty() { Ok(None) } else { Err(Refusal::Unknown) };
    };
    let clause = row_lock::decoded(clause).ok_or(Refusal::Unknown)?;
    match clause.of.iter().all(|of| folded(of) == name) {
        true => Ok(Some(clause)),
        false => Err(Refusal::Unknown),
    }
}

fn is_plain(select: &Select) -> bool {
    let no_groups = matches!(&select.group_by, GroupByExpr::Expressions(groups, modifiers) if groups.is_empty() && modifiers.is_empty());
    no_groups
        && select.distinct.is_none()
        && select.top.is_none()
        && select.into.is_none()
        && select.lateral_views.is_empty()
        && select.prewhere.is_none()
        && select.having.is_none()
        && select.qualify.is_none()
        && select.named_window.is_empty()
        && select.cluster_by.is_empty()
        && select.distribute_by.is_empty()
        && select.sort_by.is_empty()
        && select.connect_by.is_empty()
        && select.exclude.is_none()
        && !select.projection.is_empty()
}

fn limit(compiler: &mut Compiler<'_>, query: &Query) -> Result<Option<Scalar>> {
    let Some(clause) = &query.limit_clause else { return Ok(None) };
    let LimitClause::LimitOffset { limit: Some(limit), offset: None, limit_by } = clause else {
        return Err(Refusal::Unknown);
    };
    if !limit_by.is_empty() {
        return Err(Refusal::Unknown);
    }
    let scalar = compiler.assigned(limit, PgType::Int8.plain(), "limit").map_err(|_| Refusal::Unknown)?;
    if scalar.is_constant() { Ok(Some(scalar)) } else { Err(Refusal::Unknown) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Any,
    Ascending,
    Descending,
}

/// ORDER BY, as far as the key gives it for nothing.
fn order(compiler: &mut Compiler<'_>, query: &Query, table: &Table, selection: &Selection) -> Result<Order> {
    let Some(order_by) = &query.order_by else { return Ok(Order::Any) };
    let OrderByKind::Expressions(expressions) = &order_by.kind else { return Err(Refusal::Unknown) };
    if order_by.interpolate.is_some() {
        return Err(Refusal::Unknown);
    }
    let key = ordered_by(table, selection);
    let fixed = match &selection.access {
        Access::Points(points) if points.len() == 1 => key.len(),
        Access::Points(_) => return Err(Refusal::Unknown),
        Access::Range { prefix, .. } => prefix.len(),
    };
    let mut rest = key[fixed..].iter();
    let mut order = Order::Any;
    for expression in expressions {
        // A name in ORDER BY is an output column's first; only plain columns of the table are the same both ways.
        let (Expr::Identifier(_) | Expr::CompoundIdentifier(_)) = &expression.expr else {
            return Err(Refusal::Unknown);
        };
        let aliased = query.body.as_select().is_some_and(|select| {
            select.projection.iter().any(|item| matches!(item, SelectItem::ExprWithAlias { .. }))
        });
        let Scalar::Column(column) = compiler.expr(&expression.expr)?.scalar else { return Err(Refusal::Unknown) };
        if aliased || expression.with_fill.is_some() {
            return Err(Refusal::Unknown);
        }
        if key[..fixed].iter().any(|known| known.at == column) {
            continue;
        }
        let Some(next) = rest.next().filter(|next| next.at == column) else { return Err(Refusal::Unknown) };
        let direction = direction(&expression.options, next, table).ok_or(Refusal::Unknown)?;
        if order != Order::Any && order != direction {
            return Err(Refusal::Unknown);
        }
        order = direction;
    }
    Ok(order)
}

/// In what order the keys of a selection come.
fn ordered_by(table: &Table, selection: &Selection) -> Vec<IndexColumn> {
    match selection.index {
        Some(place) => table.indexes[place].columns.clone(),
        None => table.key.iter().map(|at| IndexColumn { at: *at, descending: false, nulls_first: false }).collect(),
    }
}

/// Which way a key's column is read so that it comes as wanted; `None` for neither.
fn direction(wanted: &OrderByOptions, column: &IndexColumn, table: &Table) -> Option<Order> {
    let descending = wanted.asc == Some(false);
    let nulls_first = wanted.nulls_first.unwrap_or(descending);
    let nulls = table.columns[column.at].nullable;
    if descending == column.descending && (!nulls || nulls_first == column.nulls_first) {
        return Some(Order::Ascending);
    }
    (descending != column.descending && (!nulls || nulls_first != column.nulls_first)).then_some(Order::Descending)
}

/// The columns INSERT names, as positions; all visible ones when it names none.
pub fn insert_columns(table: &Table, columns: &[ObjectName]) -> SqlResult<Vec<usize>> {
    if columns.is_empty() {
        return Ok(table.visible().map(|(at, _)| at).collect());
    }
    let mut positions = Vec::with_capacity(columns.len());
    for name in columns {
        let name = RelationName::new(name)?.name;
        let at = table.position(&name).filter(|at| !table.columns[*at].hidden);
        let at = at.ok_or_else(|| SqlError::undefined_column(&name, &table.name))?;
        if positions.contains(&at) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{name}\" specified more than once"),
            ));
        }
        positions.push(at);
    }
    Ok(positions)
}

/// The table an INSERT writes to.
pub fn insert_table(insert: &Insert, catalog: &CatalogSnapshot) -> SqlResult<Table> {
    let TableObject::TableName(name) = &insert.table else {
        return Err(SqlError::unsupported("INSERT into something that is no table"));
    };
    let name = RelationName::new(name)?;
    Ok(catalog.resolve(name.schema.as_deref(), &name.name)?.clone())
}

/// 0A000 for what an INSERT may say beside columns, source and RETURNING.
pub fn check_insert(insert: &Insert) -> SqlResult<()> {
    let foreign = insert.or.is_some()
        || insert.ignore
        || insert.overwrite
        || !insert.assignments.is_empty()
        || insert.partitioned.is_some()
        || insert.replace_into
        || insert.priority.is_some();
    if foreign { Err(SqlError::syntax("syntax error in INSERT")) } else { Ok(()) }
}

/// The column's DEFAULT; NULL when it has none.
pub fn default_scalar(table: &Table, at: usize) -> SqlResult<Scalar> {
    let column = &table.columns[at];
    match &column.default {
        None => Ok(Scalar::Literal(Datum::Null)),
        Some(text) => crate::ddl::default::compile(text, column),
    }
}

fn insert_values(insert: &Insert, catalog: &CatalogSnapshot, params: ParamTypes) -> Result<Compiled> {
    check_insert(insert)?;
    if insert.on.is_some() {
        return Err(Refusal::Unknown);
    }
    let table = insert_table(insert, catalog)?;
    let columns = insert_columns(&table, &insert.columns)?;
    let overriding = Overriding::of(insert);
    let mut compiler = Compiler::drawing(catalog, params);
    let mut draws = Vec::new();
    let rows = match &insert.source {
        None => {
            let row = insert_row(&mut compiler, &table, &[], &[], overriding)?;
            draws.push(compiler.take_draws());
            vec![row]
        }
        Some(query) => {
            identity::check_source(query, &table, &columns, overriding)?;
            let bare = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
            let SetExpr::Values(values) = &*query.body else { return Err(Refusal::Unknown) };
            if !bare {
                return Err(Refusal::Unknown);
            }
            let mut rows = Vec::with_capacity(values.rows.len());
            for row in &values.rows {
                rows.push(insert_row(&mut compiler, &table, &columns, row, overriding)?);
                draws.push(compiler.take_draws());
            }
            rows
        }
    };
    let params = compiler.params;
    let (returning, params) = returning(&table, alias(insert), insert.returning.as_deref(), params)?;
    if draws.iter().all(Vec::is_empty) {
        draws.clear();
    }
    let plan = InsertPlan { target: Target::new(table), rows, draws, returning };
    Ok(Compiled { plan: KeyPlan::Insert(plan), params: params.finish() })
}

fn alias(insert: &Insert) -> Option<String> {
    insert.table_alias.as_ref().map(|alias| folded(&alias.alias))
}

/// A RETURNING clause over the table's rows.
pub fn returning(
    table: &Table,
    alias: Option<String>,
    items: Option<&[SelectItem]>,
    params: ParamTypes,
) -> Result<(Option<Projection>, ParamTypes)> {
    let Some(items) = items else { return Ok((None, params)) };
    let mut compiler = Compiler::over(table, alias, params);
    let projection = Projection::compile(&mut compiler, table, items)?;
    Ok((Some(projection), compiler.params))
}

fn insert_row(
    compiler: &mut Compiler<'_>,
    table: &Table,
    columns: &[usize],
    row: &[Expr],
    overriding: Option<Overriding>,
) -> Result<Vec<Scalar>> {
    if row.len() > columns.len() {
        return Err(SqlError::syntax("INSERT has more expressions than target columns").into());
    }
    // PostgreSQL takes the rest from defaults only when no columns are named, but it is an error to name more than given.
    let mut values: Vec<Option<Scalar>> = vec![None; table.columns.len()];
    for (at, expr) in columns.iter().zip(row) {
        let column = &table.columns[*at];
        if !is_default(expr) && !identity::is_left_aside(column, overriding) {
            values[*at] = Some(compiler.assigned(expr, column.column_type, &column.name)?);
        }
    }
    let value = |(at, value): (usize, Option<Scalar>)| value.map_or_else(|| drawn_or_default(compiler, table, at), Ok);
    values.into_iter().enumerate().map(value).collect()
}

/// A column's DEFAULT, drawn from its sequence if it has one.
fn drawn_or_default(compiler: &mut Compiler<'_>, table: &Table, at: usize) -> Result<Scalar> {
    let column = &table.columns[at];
    match column.sequence {
        Some(sequence) => {
            let drawn = compiler.draw(sequence)?;
            compiler.assign(drawn, column.column_type, &column.name)
        }
        None => Ok(default_scalar(table, at)?),
    }
}

/// The keyword DEFAULT, which the parser takes for a column.
pub fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(name) if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("default"))
}

/// SET's columns and expressions. 0A000 for tuples.
pub fn assignment_targets<'a>(update: &'a Update, table: &Table) -> SqlResult<Vec<(usize, &'a Expr)>> {
    let mut targets: Vec<(usize, &Expr)> = Vec::with_capacity(update.assignments.len());
    for assignment in &update.assignments {
        let AssignmentTarget::ColumnName(name) = &assignment.target else {
            return Err(SqlError::unsupported("UPDATE … SET (a, b) = …"));
        };
        let name = RelationName::new(name)?;
        let at = match name.schema {
            None => table.position(&name.name).filter(|at| !table.columns[*at].hidden),
            Some(ref composite) => return Err(SqlError::undefined_column(composite, &table.name)),
        };
        let at = at.ok_or_else(|| SqlError::undefined_column(&name.name, &table.name))?;
        if targets.iter().any(|(other, _)| *other == at) {
            return Err(SqlError::syntax(format!("multiple assignments to same column \"{}\"", name.name)));
        }
        targets.push((at, &assignment.value));
    }
    Ok(targets)
}

fn update_rows(update: &Update, catalog: &CatalogSnapshot, params: ParamTypes) -> Result<Compiled> {
    if update.from.is_some() || update.or.is_some() || update.limit.is_some() || !update.order_by.is_empty() {
        return Err(Refusal::Unknown);
    }
    let (table, alias) = plain_table(&update.table, catalog)?;
    let mut compiler = Compiler::over(&table, alias, params);
    let mut assignments = Vec::with_capacity(update.assignments.len());
    for (at, expr) in assignment_targets(update, &table)? {
        let column = &table.columns[at];
        identity::check_assigned(&table, at, expr)?;
        if is_default(expr) && column.sequence.is_some() {
            return Err(Refusal::Unknown);
        }
        let scalar = if is_default(expr) {
            default_scalar(&table, at)?
        } else {
            compiler.assigned(expr, column.column_type, &column.name)?
        };
        assignments.push((at, scalar));
    }
    modify(compiler, &table, update.selection.as_ref(), Some(assignments), update.returning.as_deref())
}

fn delete_rows(delete: &Delete, catalog: &CatalogSnapshot, params: ParamTypes) -> Result<Compiled> {
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
    let [from] = from.as_slice() else { return Err(Refusal::Unknown) };
    if delete.using.is_some() || delete.limit.is_some() || !delete.tables.is_empty() || !delete.order_by.is_empty() {
        return Err(Refusal::Unknown);
    }
    let (table, alias) = plain_table(from, catalog)?;
    let compiler = Compiler::over(&table, alias, params);
    modify(compiler, &table, delete.selection.as_ref(), None, delete.returning.as_deref())
}

fn modify(
    mut compiler: Compiler<'_>,
    table: &Table,
    selection: Option<&Expr>,
    assignments: Option<Vec<(usize, Scalar)>>,
    items: Option<&[SelectItem]>,
) -> Result<Compiled> {
    let selection = access::select(&mut compiler, table, selection)?;
    if !matches!(selection.access, Access::Points(_)) {
        return Err(Refusal::Unknown);
    }
    let returning = match items {
        Some(items) => Some(Projection::compile(&mut compiler, table, items)?),
        None => None,
    };
    let params = compiler.params.finish();
    let plan = ModifyPlan { target: Target::new(table.clone()), selection, assignments, returning };
    Ok(Compiled { plan: KeyPlan::Modify(plan), params })
}
