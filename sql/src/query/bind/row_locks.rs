//! SELECT … FOR UPDATE and its kin: a query whose rows say which rows of its tables are to be locked.
//!
//! ```text
//!   SELECT v FROM t WHERE v > 3 ORDER BY v LIMIT 2 FOR UPDATE
//!   SELECT v, t.id AS #0, 2::bigint AS #1 FROM t WHERE v > 3 ORDER BY v        the key of t, and the limit
//! ```
//!
//! What stands behind the client's columns is for the sink (`dml::select_for`). The limit is counted there, behind the
//! locks: a row that is skipped does not count.
//!
//! A locking query inside a statement (a subquery, a WITH query, INSERT's source) is a plan of its own, run before the rest and
//! once; the rest reads its rows like a table's:
//!
//! ```text
//!   DELETE FROM q WHERE id = (SELECT id FROM q ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
//!   DELETE FROM q WHERE id = (SELECT * FROM "#locked0")         #locked0: SELECT id, id AS #0, 1 AS #1 FROM q ORDER BY id
//! ```
//!
//! So it can't name columns of the query around it.

use std::{collections::BTreeMap, ops::ControlFlow};

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    logical_expr::LogicalPlan,
    sql::sqlparser::{
        ast::{
            Expr, FormatClause, GroupByExpr, Ident, LimitClause, ObjectName, Query, Select, SelectItem,
            SelectItemQualifiedWildcardKind, SetExpr, Statement, TableFactor, VisitMut, VisitorMut,
        },
        dialect::PostgreSqlDialect,
        parser::Parser,
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

/// Takes the locking clauses out of a statement's own query, and has it say what is needed to lock its rows. `None`: no clauses.
pub fn take(statement: &mut Statement, snapshot: &CatalogSnapshot) -> SqlResult<Option<Wanted>> {
    match statement {
        Statement::Query(query) => take_of(query, snapshot),
        _ => Ok(None),
    }
}

fn take_of(query: &mut Query, snapshot: &CatalogSnapshot) -> SqlResult<Option<Wanted>> {
    if query.locks.is_empty() {
        return Ok(None);
    }
    let clauses: Option<Vec<RowLockClause>> = query.locks.iter().map(row_lock::decoded).collect();
    let clauses = clauses.ok_or_else(|| SqlError::internal("a locking clause that was not decoded"))?;
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

/// Does the same to the locking queries inside a statement, and marks them for [`cut_out`].
pub fn mark(statement: &mut Statement, snapshot: &CatalogSnapshot) -> SqlResult<Vec<Wanted>> {
    struct Marker<'a> {
        snapshot: &'a CatalogSnapshot,
        found: Vec<Wanted>,
        /// Of the queries around.
        marked: Vec<bool>,
    }
    impl VisitorMut for Marker<'_> {
        type Break = SqlError;
        fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
            let wanted = match take_of(query, self.snapshot) {
                Ok(wanted) => wanted,
                Err(error) => return ControlFlow::Break(error),
            };
            if wanted.is_some() && self.marked.contains(&true) {
                return ControlFlow::Break(SqlError::unsupported(
                    "a locking clause inside of a query with another one",
                ));
            }
            self.marked.push(wanted.is_some());
            if let Some(wanted) = wanted {
                query.format_clause = Some(FormatClause::Identifier(Ident::new(locked_name(self.found.len()))));
                self.found.push(wanted);
            }
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<SqlError> {
            self.marked.pop();
            ControlFlow::Continue(())
        }
    }
    let mut marker = Marker { snapshot, found: Vec::new(), marked: Vec::new() };
    match statement.visit(&mut marker) {
        ControlFlow::Continue(()) => Ok(marker.found),
        ControlFlow::Break(error) => Err(error),
    }
}

/// Puts `SELECT * FROM "…"` where marked queries stand, from the rows that they have when the statement runs; and gives them back
/// in the order of their marks.
pub fn cut_out(statement: &mut Statement) -> SqlResult<Vec<Query>> {
    struct Cutter(BTreeMap<String, Query>);
    impl VisitorMut for Cutter {
        type Break = SqlError;
        fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<SqlError> {
            let Some(FormatClause::Identifier(name)) = query.format_clause.take() else {
                return ControlFlow::Continue(());
            };
            let select = format!("SELECT * FROM {}", Ident::with_quote('"', name.value.clone()));
            let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&select);
            match parsed.and_then(|mut parser| parser.parse_query()) {
                Ok(rows) => self.0.insert(name.value, std::mem::replace(query, *rows)),
                Err(error) => return ControlFlow::Break(SqlError::internal(error.to_string())),
            };
            ControlFlow::Continue(())
        }
    }
    let mut cutter = Cutter(BTreeMap::new());
    match statement.visit(&mut cutter) {
        ControlFlow::Continue(()) => {}
        ControlFlow::Break(error) => return Err(error),
    }
    let Cutter(mut cut) = cutter;
    let in_order = (0..cut.len()).map(|at| cut.remove(&locked_name(at)));
    in_order.collect::<Option<_>>().ok_or_else(|| SqlError::internal("a locking query was lost"))
}

/// How a statement calls the rows of the locking query at `at` inside it.
fn locked_name(at: usize) -> String {
    format!("\u{1}locked{at}")
}

/// The reverse.
pub fn locked_at(name: &str) -> Option<usize> {
    name.strip_prefix("\u{1}locked")?.parse().ok()
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
