//! INSERT, UPDATE and DELETE as queries whose rows feed a sink.
//!
//! | statement | the source's columns |
//! | --- | --- |
//! | INSERT | the new row: all visible columns, in the table's order |
//! | UPDATE | the old row: all columns, the row id too; then the new values of the assigned columns |
//! | DELETE | the old row: all columns, the row id too |
//!
//! Values are cast to their columns as an assignment does. The sink (not here) checks NOT NULL, writes, and hands the rows to
//! RETURNING, whose expressions see one row of the table.

use std::sync::Arc;

use datafusion::{
    common::{Column, DFSchema, DFSchemaRef},
    logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, builder::project},
    sql::{
        planner::{PlannerContext, SqlToRel},
        sqlparser::{
            ast::{
                AssignmentTarget, Delete, Expr as Ast, FromTable, Ident, Insert, ObjectName, Query, Select, SelectItem,
                SelectItemQualifiedWildcardKind, SetExpr, Statement, TableAlias, TableFactor, TableObject,
                TableWithJoins, Update, UpdateTableFromKind, Value, WildcardAdditionalOptions,
            },
            dialect::PostgreSqlDialect,
            parser::Parser,
        },
    },
};

use super::{
    Binder, Conflict, ConflictUpdate, Literals, OutputColumn, conflict, folded, legalise, names, parser_options,
};
use crate::{
    catalog::{Table, TableDescriptor, descriptor::PUBLIC_SCHEMA},
    dml::identity,
    error::{SqlError, SqlResult, SqlState},
    query::{failure::from_datafusion, functions::cast, run::HoleSource, types, values::ValueRows},
    statement::sequence::Overriding,
    types::{PgType, arrow as mapping},
};

/// What happens to the rows of a DML statement's source.
#[derive(Clone, Debug)]
pub enum Change {
    /// Rows are added.
    Insert {
        /// To this table.
        table: Table,
        /// ON CONFLICT; without it a key that exists is an error.
        conflict: Option<Conflict>,
        /// RETURNING.
        returning: Option<Returning>,
    },
    /// Rows are replaced.
    Update {
        /// Of this table.
        table: Table,
        /// Positions of the assigned columns; their new values stand behind the old row, in this order.
        assigned: Vec<usize>,
        /// RETURNING.
        returning: Option<Returning>,
    },
    /// Rows are removed.
    Delete {
        /// From this table.
        table: Table,
        /// RETURNING.
        returning: Option<Returning>,
    },
}

impl Change {
    /// The table that changes.
    pub fn table(&self) -> &Table {
        match self {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => table,
        }
    }
    /// DO UPDATE of ON CONFLICT.
    pub fn conflict_update(&self) -> Option<&ConflictUpdate> {
        match self {
            Change::Insert { conflict: Some(conflict), .. } => conflict.update.as_ref(),
            _ => None,
        }
    }
    /// RETURNING.
    pub fn returning(&self) -> Option<&Returning> {
        match self {
            Change::Insert { returning, .. } | Change::Update { returning, .. } | Change::Delete { returning, .. } => {
                returning.as_ref()
            }
        }
    }
}

/// RETURNING: expressions over a row of the table, hidden columns included.
#[derive(Clone, Debug)]
pub struct Returning {
    /// One for each column.
    pub exprs: Vec<Expr>,
    /// Names and types.
    pub columns: Vec<OutputColumn>,
    /// What the expressions see: all columns of the table.
    pub schema: DFSchemaRef,
}

/// Refuses clauses that have to wait, before anything else looks at the statement.
pub fn check(statement: &Statement) -> SqlResult<()> {
    match statement {
        Statement::Insert(insert) if insert.overwrite || insert.replace_into || insert.ignore => {
            Err(SqlError::syntax("syntax error in INSERT"))
        }
        Statement::Delete(delete)
            if delete.tables.len() > 1 || !delete.order_by.is_empty() || delete.limit.is_some() =>
        {
            Err(SqlError::syntax("syntax error in DELETE"))
        }
        _ => Ok(()),
    }
}

type Source = (LogicalPlan, Option<Change>);

/// INSERT.
pub fn insert(binder: &Binder<'_>, insert: Insert) -> SqlResult<Source> {
    let TableObject::TableName(name) = &insert.table else {
        return Err(SqlError::unsupported("INSERT into a table function"));
    };
    let table = binder.table(name)?;
    let alias = insert.table_alias.as_ref().map(|alias| alias.alias.clone());
    let targets = insert_targets(&table, &insert.columns)?;
    let overriding = Overriding::of(&insert);
    let source = match insert.source {
        Some(query) => {
            identity::check_source(&query, &table, &targets, overriding)?;
            binder.insert_source(*query, &table, &targets)?
        }
        None => LogicalPlanBuilder::empty(true).build().map_err(from_datafusion)?,
    };
    let given = source.schema().fields().len();
    if given > targets.len() {
        return Err(SqlError::syntax("INSERT has more expressions than target columns"));
    }
    if given < targets.len() && !insert.columns.is_empty() {
        return Err(SqlError::syntax("INSERT has more target columns than expressions"));
    }
    let schema = Arc::clone(source.schema());
    let mut exprs = Vec::with_capacity(table.columns.len());
    for (at, column) in table.visible() {
        let value = match targets[..given].iter().position(|target| *target == at) {
            Some(position) if !identity::is_left_aside(column, overriding) => {
                let (qualifier, field) = schema.qualified_field(position);
                binder.assigned(Expr::Column(Column::from((qualifier, field))), &table, at, &schema)?
            }
            _ => binder.default(&table, at)?,
        };
        exprs.push(value.alias(&column.name));
    }
    let plan = project(source, exprs).map_err(from_datafusion)?;
    let conflict = insert.on.map(|on| conflict::bind(binder, on, &table, alias.as_ref())).transpose()?;
    let returning = binder.returning(insert.returning, &table, alias)?;
    Ok((plan, Some(Change::Insert { table, conflict, returning })))
}

fn insert_targets(table: &Table, columns: &[ObjectName]) -> SqlResult<Vec<usize>> {
    if columns.is_empty() {
        return Ok(table.visible().map(|(at, _)| at).collect());
    }
    let mut targets = Vec::with_capacity(columns.len());
    for name in columns {
        let name = name.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        let at = visible_position(table, &name)?;
        if targets.contains(&at) {
            return Err(SqlError::new(
                SqlState::DUPLICATE_COLUMN,
                format!("column \"{name}\" specified more than once"),
            ));
        }
        targets.push(at);
    }
    Ok(targets)
}

pub(super) fn visible_position(table: &TableDescriptor, name: &str) -> SqlResult<usize> {
    let found = table.position(name).filter(|at| !table.columns[*at].hidden);
    found.ok_or_else(|| SqlError::undefined_column(name, &table.name))
}

/// UPDATE.
pub fn update(binder: &Binder<'_>, update: Update) -> SqlResult<Source> {
    if !update.table.joins.is_empty() {
        return Err(SqlError::syntax("syntax error in UPDATE"));
    }
    let (name, alias) = target_of(&update.table.relation)?;
    let table = binder.table(&name)?;
    let mut assigned = Vec::with_capacity(update.assignments.len());
    let mut values = Vec::with_capacity(update.assignments.len());
    for assignment in update.assignments {
        let AssignmentTarget::ColumnName(column) = &assignment.target else {
            return Err(SqlError::unsupported("UPDATE with a list of columns in SET"));
        };
        let column = column.0.last().and_then(|part| part.as_ident()).map(folded).unwrap_or_default();
        let at = visible_position(&table, &column)?;
        if assigned.contains(&at) {
            return Err(SqlError::syntax(format!("multiple assignments to same column \"{column}\"")));
        }
        identity::check_assigned(&table, at, &assignment.value)?;
        assigned.push(at);
        values.push(assignment.value);
    }
    let mut from = vec![update.table];
    match update.from {
        Some(UpdateTableFromKind::AfterSet(more) | UpdateTableFromKind::BeforeSet(more)) => from.extend(more),
        None => {}
    }
    let news = values.into_iter().enumerate().map(|(at, value)| (format!("\u{1}new{at}"), value));
    // DEFAULT is no expression: a NULL holds its place.
    let (mut defaults, mut items) = (Vec::new(), Vec::new());
    for (at, (name, value)) in news.enumerate() {
        let default = is_default(&value);
        if default {
            defaults.push(at);
        }
        let expr = if default { Ast::value(Value::Null) } else { binder.typed(value, &table, assigned[at])? };
        items.push(SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) });
    }
    let source = binder.old_rows(&name, alias.as_ref(), &table, from, update.selection, items)?;
    let plan = binder.with_new_values(source, &table, &assigned, &defaults)?;
    let returning = binder.returning(update.returning, &table, alias.map(|alias| alias.name))?;
    Ok((plan, Some(Change::Update { table, assigned, returning })))
}

/// DELETE.
pub fn delete(binder: &Binder<'_>, delete: Delete) -> SqlResult<Source> {
    let (FromTable::WithFromKeyword(mut from) | FromTable::WithoutKeyword(mut from)) = delete.from;
    if from.len() != 1 || !from[0].joins.is_empty() {
        return Err(SqlError::syntax("syntax error in DELETE"));
    }
    let (name, alias) = target_of(&from[0].relation)?;
    let table = binder.table(&name)?;
    from.extend(delete.using.unwrap_or_default());
    let plan = binder.old_rows(&name, alias.as_ref(), &table, from, delete.selection, Vec::new())?;
    let returning = binder.returning(delete.returning, &table, alias.map(|alias| alias.name))?;
    Ok((plan, Some(Change::Delete { table, returning })))
}

fn target_of(relation: &TableFactor) -> SqlResult<(ObjectName, Option<TableAlias>)> {
    match relation {
        TableFactor::Table { name, alias, args: None, .. } => Ok((name.clone(), alias.clone())),
        _ => Err(SqlError::syntax("UPDATE and DELETE need a table's name")),
    }
}

pub(super) fn is_default(value: &Ast) -> bool {
    matches!(value, Ast::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

/// Rows as SELECTs without FROM: functions that wait can't stand in VALUES.
fn selected(rows: Vec<Vec<Expr>>) -> SqlResult<LogicalPlan> {
    let select = |cells: Vec<Expr>| {
        let named = cells.into_iter().enumerate().map(|(at, cell)| cell.alias(format!("column{}", at + 1)));
        LogicalPlanBuilder::empty(true).project(named.collect::<Vec<_>>())?.build()
    };
    let mut plans =
        rows.into_iter().map(select).collect::<datafusion::common::Result<Vec<_>>>().map_err(from_datafusion)?;
    let first = plans.remove(0);
    let union = |plan: LogicalPlan, next: LogicalPlan| LogicalPlanBuilder::from(plan).union(next)?.build();
    plans.into_iter().try_fold(first, union).map_err(from_datafusion)
}

fn take(value: &mut Ast) -> Ast {
    std::mem::replace(value, Ast::value(Value::Null))
}

/// A column's DEFAULT, parsed.
fn default_expr(text: &str) -> SqlResult<Ast> {
    let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).and_then(|mut parser| parser.parse_expr());
    parsed.map_err(|error| SqlError::internal(format!("the default {text} does not parse: {error}")))
}

fn select(from: Vec<TableWithJoins>, selection: Option<Ast>, projection: Vec<SelectItem>) -> SqlResult<Query> {
    let mut query = parsed_query("SELECT 1")?;
    if let SetExpr::Select(select) = query.body.as_mut() {
        let select: &mut Select = select;
        select.from = from;
        select.selection = selection;
        select.projection = projection;
    }
    Ok(query)
}

pub(super) fn parsed_query(sql: &str) -> SqlResult<Query> {
    let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(sql).and_then(|mut parser| parser.parse_query());
    parsed.map(|query| *query).map_err(|error| SqlError::syntax(error.to_string()))
}

impl Binder<'_> {
    /// The table a statement changes. 42P01, and 42809 for a system view.
    fn table(&self, name: &ObjectName) -> SqlResult<Table> {
        let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
        let (schema, table) = match parts.as_slice() {
            [table] => (None, table),
            [schema, table] | [_, schema, table] => (Some(schema.as_str()), table),
            _ => return Err(SqlError::syntax(format!("improper qualified name: {name}"))),
        };
        if crate::query::catalog::virtual_table(self.snapshot, schema, table).is_some()
            && self.snapshot.table(schema.unwrap_or(PUBLIC_SCHEMA), table).is_none()
        {
            return Err(SqlError::new(SqlState::WRONG_OBJECT_TYPE, format!("cannot change system view \"{table}\"")));
        }
        self.snapshot.resolve(schema, table).cloned()
    }

    /// `SELECT t.*, items FROM … WHERE …`, the hidden columns of `t` included.
    fn old_rows(
        &self,
        name: &ObjectName,
        alias: Option<&TableAlias>,
        table: &Table,
        from: Vec<TableWithJoins>,
        selection: Option<Ast>,
        items: Vec<SelectItem>,
    ) -> SqlResult<LogicalPlan> {
        let qualifier = alias.map_or_else(|| name.clone(), |alias| ObjectName::from(vec![alias.name.clone()]));
        let all = SelectItem::QualifiedWildcard(
            SelectItemQualifiedWildcardKind::ObjectName(qualifier),
            WildcardAdditionalOptions::default(),
        );
        let mut projection = vec![all];
        projection.extend(items);
        self.query(select(from, selection, projection)?, &[table.id])
    }

    /// Casts the new values behind an old row to their columns; `defaults` are the ones that said DEFAULT.
    fn with_new_values(
        &self,
        source: LogicalPlan,
        table: &Table,
        assigned: &[usize],
        defaults: &[usize],
    ) -> SqlResult<LogicalPlan> {
        let schema = Arc::clone(source.schema());
        let old = schema.fields().len() - assigned.len();
        let mut exprs = Vec::with_capacity(schema.fields().len());
        for at in 0..schema.fields().len() {
            let (qualifier, field) = schema.qualified_field(at);
            let column = Expr::Column(Column::from((qualifier, field)));
            exprs.push(match at.checked_sub(old) {
                None => column,
                Some(new) if defaults.contains(&new) => self.default(table, assigned[new])?.alias(field.name()),
                Some(new) => self.assigned(column, table, assigned[new], &schema)?.alias(field.name()),
            });
        }
        project(source, exprs).map_err(from_datafusion)
    }

    /// `value` as column `at` takes it; 42804 when it never can.
    pub(super) fn assigned(&self, value: Expr, table: &Table, at: usize, schema: &DFSchema) -> SqlResult<Expr> {
        let column = &table.columns[at];
        let field = value.to_field(schema).map_err(from_datafusion)?.1;
        let from = mapping::column_type(&field).unwrap_or(types::text_type());
        let has_limit = column.column_type.type_mod >= 0;
        if field.data_type() == &mapping::data_type(column.column_type) && (from == column.column_type || !has_limit) {
            return Ok(value);
        }
        let text_source = types::family(field.data_type()) == types::Family::Text;
        // PostgreSQL assigns anything to text, but text to nothing else.
        let mismatch = text_source && !column.column_type.pg_type.is_text();
        if mismatch || cast::check(field.data_type(), column.column_type).is_err() {
            return Err(SqlError::new(
                SqlState::DATATYPE_MISMATCH,
                format!(
                    "column \"{}\" is of type {} but expression is of type {}",
                    column.name,
                    column.column_type.pg_type.sql_name(),
                    types::sql_name(field.data_type())
                ),
            )
            .with_hint("You will need to rewrite or cast the expression."));
        }
        Ok(cast::assign(value, field.data_type(), column.column_type))
    }

    /// The source of an INSERT; literals and parameters of unknown type take their column's.
    fn insert_source(&self, mut query: Query, table: &Table, targets: &[usize]) -> SqlResult<LogicalPlan> {
        let bare = query.with.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
        match query.body.as_mut() {
            SetExpr::Values(values) if bare => {
                let rows = values.rows.iter_mut().map(|row| row.content.iter_mut().map(take).collect()).collect();
                return self.value_rows(rows, table, targets);
            }
            SetExpr::Select(select) => {
                for (item, at) in select.projection.iter_mut().zip(targets) {
                    match item {
                        SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. } => {
                            *value = self.typed(take(value), table, *at)?;
                        }
                        _ => break,
                    }
                }
            }
            _ => {}
        }
        self.query(query, &[])
    }

    /// The rows of INSERT … VALUES, each value of its column's type.
    fn value_rows(&self, rows: Vec<Vec<Ast>>, table: &Table, targets: &[usize]) -> SqlResult<LogicalPlan> {
        let width = rows.first().map_or(0, Vec::len);
        if rows.iter().any(|row| row.len() != width) {
            return Err(SqlError::syntax("VALUES lists must all be the same length"));
        }
        if width > targets.len() {
            return Err(SqlError::syntax("INSERT has more expressions than target columns"));
        }
        let provider = self.provider(&[]);
        let planner = SqlToRel::new_with_options(&provider, parser_options());
        let fields = self.literals.fields(self.parameter_types);
        let mut context = PlannerContext::new().with_prepare_param_data_types(fields);
        let empty = DFSchema::empty();
        let mut planned = Vec::with_capacity(rows.len());
        for row in rows {
            let mut cells = Vec::with_capacity(width);
            for (value, at) in row.into_iter().zip(targets) {
                let value = self.typed(value, table, *at)?;
                let expr = planner
                    .sql_to_expr(value, &empty, &mut context)
                    .and_then(|expr| legalise::legalise_expr(expr, &empty, self.literals))
                    .map_err(from_datafusion)?;
                cells.push(self.assigned(expr, table, *at, &empty)?);
            }
            planned.push(cells);
        }
        if planned.iter().flatten().any(Expr::is_volatile) {
            return selected(planned);
        }
        let schema = crate::query::scan::schema_of(table, &targets[..width]);
        let schema = DFSchema::try_from(schema).map_err(from_datafusion)?;
        Ok(ValueRows::plan(Arc::new(schema), planned))
    }

    /// A value for column `at`: what has no type yet is cast to the column's, DEFAULT is replaced.
    pub(super) fn typed(&self, value: Ast, table: &Table, at: usize) -> SqlResult<Ast> {
        let column = &table.columns[at];
        let value = match value {
            value if is_default(&value) => match (&column.default, column.sequence) {
                (_, Some(sequence)) => self.next_value(sequence),
                (Some(text), None) => default_expr(text)?,
                (None, None) => Ast::value(Value::Null),
            },
            value @ Ast::Value(_) if self.is_unknown(&value) => value,
            value => return Ok(value),
        };
        Ok(super::rewrite::cast_to(value, column.column_type.pg_type.row().name))
    }

    fn is_unknown(&self, value: &Ast) -> bool {
        let Ast::Value(value) = value else { return false };
        if value.value == Value::Null {
            return true;
        }
        let Value::Placeholder(id) = &value.value else { return false };
        let Some(HoleSource::Parameter(at)) = HoleSource::parse(id) else { return false };
        match at.checked_sub(self.literals.client_parameters) {
            Some(taken) => self.literals.taken.get(taken).is_some_and(|taken| taken.pg_type == PgType::Unknown),
            None => self.parameter_types.get(at).copied().flatten().is_none_or(|said| said.pg_type == PgType::Unknown),
        }
    }

    /// A call of nextval.
    fn next_value(&self, sequence: u32) -> Ast {
        let id = Ast::value(Value::Number(sequence.to_string(), false));
        super::rewrite::call("nextval", vec![super::rewrite::cast_to(id, "oid")])
    }

    /// DEFAULT of a column.
    pub(super) fn default(&self, table: &Table, at: usize) -> SqlResult<Expr> {
        let column = &table.columns[at];
        let empty = DFSchema::empty();
        let ast = match (&column.default, column.sequence) {
            (_, Some(sequence)) => self.next_value(sequence),
            (Some(text), None) => default_expr(text)?,
            (None, None) => {
                let null = datafusion::common::ScalarValue::try_from(&mapping::data_type(column.column_type));
                return Ok(Expr::Literal(null.map_err(from_datafusion)?, None));
            }
        };
        let mut ast = super::rewrite::cast_to(ast, column.column_type.pg_type.row().name);
        super::rewrite::rewrite_expr(&mut ast, self.snapshot)?;
        let provider = self.provider(&[]);
        let planner = SqlToRel::new_with_options(&provider, parser_options());
        let expr = planner
            .sql_to_expr(ast, &empty, &mut PlannerContext::new())
            .and_then(|expr| legalise::legalise_expr(expr, &empty, &Literals::default()))
            .map_err(from_datafusion)?;
        self.assigned(expr, table, at, &empty)
    }

    /// RETURNING: bound as the select list of a query over the table.
    fn returning(
        &self,
        items: Option<Vec<SelectItem>>,
        table: &Table,
        alias: Option<Ident>,
    ) -> SqlResult<Option<Returning>> {
        let Some(mut items) = items else { return Ok(None) };
        names::name_items(&mut items);
        let text = match &alias {
            Some(alias) => format!("SELECT 1 FROM \"{}\".\"{}\" AS {alias}", table.schema, table.name),
            None if table.schema == PUBLIC_SCHEMA => format!("SELECT 1 FROM \"{}\"", table.name),
            None => format!("SELECT 1 FROM \"{}\".\"{}\"", table.schema, table.name),
        };
        let mut query = parsed_query(&text)?;
        if let SetExpr::Select(select) = query.body.as_mut() {
            select.projection = items;
        }
        let plan = self.query(query, &[])?;
        let columns = super::output_columns(&plan)?;
        let LogicalPlan::Projection(projection) = plan else {
            return Err(SqlError::unsupported("this form of RETURNING"));
        };
        let qualifier = projection.input.schema().iter().next().and_then(|(qualifier, _)| qualifier.cloned());
        let positions: Vec<usize> = (0..table.columns.len()).collect();
        let whole = crate::query::scan::schema_of(table, &positions);
        let schema = match qualifier {
            Some(qualifier) => DFSchema::try_from_qualified_schema(qualifier, &whole),
            None => DFSchema::try_from(whole),
        };
        let schema = Arc::new(schema.map_err(from_datafusion)?);
        let exprs = projection.expr.into_iter().map(Expr::unalias).collect();
        Ok(Some(Returning { exprs, columns, schema }))
    }
}
