//! SELECT … FOR UPDATE and its kin: a query whose rows say which rows of its tables are to be locked.
//!
//! ```text
//!   SELECT v FROM t WHERE v > 3 ORDER BY v LIMIT 2 FOR UPDATE
//!   SELECT v, t.id AS #0, 2::bigint AS #1 FROM t WHERE v > 3 ORDER BY v        the key of t, and the limit
//! ```
//!
//! What stands behind the client's columns is for the sink (`dml::select_for`). The limit is counted there, behind the
//! locks: a row that is skipped does not count.

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    logical_expr::LogicalPlan,
    sql::sqlparser::ast::{
        Expr, GroupByExpr, Ident, LimitClause, ObjectName, Query, Select, SelectItem, SelectItemQualifiedWildcardKind,
        SetExpr, Statement, TableFactor,
    },
};
use kv::{OnLocked, RowLockMode};

use super::{folded, rewrite};
use crate::{
    catalog::{CatalogSnapshot, Table},
    error::{SqlError, SqlResult, SqlState},
    query::failure::from_datafusion,
    statement::row_lock::{self, RowLockClause},
};

/// The rows that a query locks.
#[derive(Clone, Debug)]
pub struct RowLocks {
    /// Of these tables; one may come twice.
    pub tables: Vec<LockedTable>,
    /// How many of the query's columns are the client's.
    pub visible: usize,
    /// The column that holds LIMIT's number.
    pub limit: Option<usize>,
    /// The column that holds OFFSET's number.
    pub offset: Option<usize>,
}

/// A table whose rows are locked.
#[derive(Clone, Debug)]
pub struct LockedTable {
    /// The table.
    pub table: Table,
    /// How.
    pub mode: RowLockMode,
    /// What happens at rows that others have locked.
    pub on_locked: OnLocked,
    /// The query's columns that hold its key.
    pub key: Vec<usize>,
}

/// What was asked for; the columns are numbered when the query is planned.
pub struct Wanted {
    tables: Vec<LockedTable>,
    limit: bool,
    offset: bool,
    clause: &'static str,
}

/// The tables whose hidden columns the query names.
pub fn hidden(wanted: &Option<Wanted>) -> Vec<u32> {
    wanted.iter().flat_map(|wanted| &wanted.tables).map(|locked| locked.table.id).collect()
}

fn words(mode: RowLockMode) -> &'static str {
    match mode {
        RowLockMode::Update => "FOR UPDATE",
        RowLockMode::NoKeyUpdate => "FOR NO KEY UPDATE",
        RowLockMode::Share => "FOR SHARE",
        RowLockMode::KeyShare => "FOR KEY SHARE",
    }
}

fn not_allowed(clause: &str, with: &str) -> SqlError {
    SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{clause} is not allowed with {with}"))
}

/// An aggregate query can't be planned with the keys of its rows.
pub fn explained(error: SqlError, wanted: &Option<Wanted>) -> SqlError {
    match wanted {
        Some(wanted) if error.sqlstate == SqlState::GROUPING_ERROR => not_allowed(wanted.clause, "aggregate functions"),
        _ => error,
    }
}

/// Takes the locking clauses out of a statement, and has the query say what is needed to lock its rows. `None`: no clauses.
pub fn take(statement: &mut Statement, snapshot: &CatalogSnapshot) -> SqlResult<Option<Wanted>> {
    let Statement::Query(query) = statement else { return Ok(None) };
    if query.locks.is_empty() {
        return Ok(None);
    }
    let clauses: Option<Vec<RowLockClause>> = query.locks.iter().map(row_lock::decoded).collect();
    let clauses = clauses.ok_or_else(|| SqlError::unsupported("SELECT FOR UPDATE/SHARE in parentheses"))?;
    query.locks.clear();
    rewrite::fetch_to_limit(query)?;
    let clause = words(clauses[0].mode);
    let select = locking_select(query, clause)?;
    let named = tables_of(select, snapshot)?;
    let mut tables: Vec<(Ident, LockedTable)> = Vec::new();
    for clause in &clauses {
        for (name, table) in named_by(clause, &named)? {
            let locked = LockedTable { table, mode: clause.mode, on_locked: clause.on_locked, key: Vec::new() };
            match tables.iter_mut().find(|(known, _)| known.value == name.value) {
                Some((_, known)) => {
                    known.mode = known.mode.max(locked.mode);
                    known.on_locked = stricter(known.on_locked, locked.on_locked);
                }
                None => tables.push((name, locked)),
            }
        }
    }
    spell_out(select, &named)?;
    for (name, locked) in &tables {
        for at in &locked.table.key {
            let column = Ident::with_quote('"', locked.table.columns[*at].name.clone());
            push(select, Expr::CompoundIdentifier(vec![name.clone(), column]));
        }
    }
    let (limit, offset) = take_limit(query)?;
    let SetExpr::Select(select) = query.body.as_mut() else { return Ok(None) };
    let wanted = Wanted {
        tables: tables.into_iter().map(|(_, locked)| locked).collect(),
        limit: limit.is_some(),
        offset: offset.is_some(),
        clause,
    };
    for number in [limit, offset].into_iter().flatten() {
        push(select, rewrite::cast_to(number, "int8"));
    }
    Ok(Some(wanted))
}

fn stricter(a: OnLocked, b: OnLocked) -> OnLocked {
    match (a, b) {
        (OnLocked::Refuse, _) | (_, OnLocked::Refuse) => OnLocked::Refuse,
        (OnLocked::Skip, _) | (_, OnLocked::Skip) => OnLocked::Skip,
        (other, _) => other,
    }
}

fn locking_select<'q>(query: &'q mut Query, clause: &str) -> SqlResult<&'q mut Select> {
    let SetExpr::Select(select) = query.body.as_mut() else {
        return Err(not_allowed(clause, "UNION/INTERSECT/EXCEPT"));
    };
    if select.distinct.is_some() {
        return Err(not_allowed(clause, "DISTINCT clause"));
    }
    if !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty()) {
        return Err(not_allowed(clause, "GROUP BY clause"));
    }
    if select.having.is_some() {
        return Err(not_allowed(clause, "HAVING clause"));
    }
    Ok(select)
}

/// The tables of FROM by the names that the query has for them. 0A000 for what is no table of ours.
fn tables_of(select: &Select, snapshot: &CatalogSnapshot) -> SqlResult<Vec<(Ident, Table)>> {
    let mut found = Vec::new();
    let joined = |from: &'_ datafusion::sql::sqlparser::ast::TableWithJoins| -> Vec<TableFactor> {
        std::iter::once(from.relation.clone()).chain(from.joins.iter().map(|join| join.relation.clone())).collect()
    };
    for factor in select.from.iter().flat_map(joined) {
        let TableFactor::Table { name, alias, args: None, .. } = &factor else {
            return Err(SqlError::unsupported("a locking clause over a subquery or function in FROM"));
        };
        let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
        let (schema, table) = match parts.as_slice() {
            [table] => (None, table),
            [schema, table] | [_, schema, table] => (Some(schema.as_str()), table),
            _ => return Err(SqlError::syntax(format!("improper qualified name: {name}"))),
        };
        let descriptor = snapshot.resolve(schema, table)?.clone();
        let name = match alias {
            Some(alias) => alias.name.clone(),
            None => Ident::with_quote('"', table.clone()),
        };
        found.push((name, descriptor));
    }
    Ok(found)
}

/// The tables of a clause. 42P01 for a name that FROM does not have.
fn named_by(clause: &RowLockClause, named: &[(Ident, Table)]) -> SqlResult<Vec<(Ident, Table)>> {
    if clause.of.is_empty() {
        return Ok(named.to_vec());
    }
    let find = |wanted: &Ident| {
        let found = named.iter().find(|(name, _)| folded(name) == folded(wanted)).cloned();
        found.ok_or_else(|| {
            let (name, clause) = (folded(wanted), words(clause.mode));
            let message = format!("relation \"{name}\" in {clause} clause not found in FROM clause");
            SqlError::new(SqlState::UNDEFINED_TABLE, message)
        })
    };
    clause.of.iter().map(find).collect()
}

/// `*` would show the hidden columns that are needed for the keys.
fn spell_out(select: &mut Select, named: &[(Ident, Table)]) -> SqlResult<()> {
    if named.iter().all(|(_, table)| table.columns.iter().all(|column| !column.hidden)) {
        return Ok(());
    }
    let columns_of = |(name, table): &(Ident, Table)| -> Vec<SelectItem> {
        let column = |column: &str| {
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(vec![name.clone(), Ident::with_quote('"', column)]))
        };
        table.visible().map(|(_, visible)| column(&visible.name)).collect()
    };
    let mut items = Vec::with_capacity(select.projection.len());
    for item in std::mem::take(&mut select.projection) {
        match &item {
            SelectItem::Wildcard(_) => items.extend(named.iter().flat_map(columns_of)),
            SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(ObjectName(parts)), _) => {
                let wanted = parts.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
                let found = named.iter().find(|(name, _)| folded(name) == wanted);
                items.extend(found.map(columns_of).ok_or_else(|| SqlError::undefined_table(&wanted))?);
            }
            _ => items.push(item),
        }
    }
    select.projection = items;
    Ok(())
}

fn push(select: &mut Select, expr: Expr) {
    let alias = Ident::with_quote('"', format!("\u{1}lock{}", select.projection.len()));
    select.projection.push(SelectItem::ExprWithAlias { expr, alias });
}

fn take_limit(query: &mut Query) -> SqlResult<(Option<Expr>, Option<Expr>)> {
    match query.limit_clause.take() {
        None => Ok((None, None)),
        Some(LimitClause::LimitOffset { limit, offset, .. }) => Ok((limit, offset.map(|offset| offset.value))),
        Some(LimitClause::OffsetCommaLimit { .. }) => Err(SqlError::syntax("LIMIT #,# syntax is not supported")),
    }
}

impl Wanted {
    /// Numbers the columns of the planned query. 0A000 when its rows are not rows of tables.
    pub fn bound(mut self, plan: &LogicalPlan) -> SqlResult<RowLocks> {
        let mut with = None;
        plan.apply(|node| {
            match node {
                LogicalPlan::Aggregate(_) => with = Some("aggregate functions"),
                LogicalPlan::Window(_) => with = Some("window functions"),
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .map_err(from_datafusion)?;
        if let Some(with) = with {
            return Err(not_allowed(self.clause, with));
        }
        let keys: usize = self.tables.iter().map(|locked| locked.table.key.len()).sum();
        let numbers = usize::from(self.limit) + usize::from(self.offset);
        let visible = plan.schema().fields().len() - keys - numbers;
        let mut next = visible..;
        for locked in &mut self.tables {
            locked.key = next.by_ref().take(locked.table.key.len()).collect();
        }
        let limit = self.limit.then(|| next.next()).flatten();
        let offset = self.offset.then(|| next.next()).flatten();
        Ok(RowLocks { tables: self.tables, visible, limit, offset })
    }
}
