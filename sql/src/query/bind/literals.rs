//! Takes a statement's literals out of its tree, so that PostgreSQL's rules type them and one plan serves many values.
//!
//! Every number, and every string whose type its surroundings decide, becomes a parameter behind the client's own ones.
//! Once the statement is bound, most of them come back as literals of the type they got (`Literal`); those that are
//! *lifted* stay parameters of the cached plan: values compared in WHERE and ON, assigned in SET, listed in VALUES.
//!
//! Left alone are strings that DataFusion wants to see: arguments of functions, patterns of LIKE, INTERVAL '…', and
//! numbers that are no values at all: LIMIT 10, ORDER BY 1, GROUP BY 1.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::ScalarValue,
    sql::sqlparser::{
        ast::{
            Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Insert, JoinConstraint, JoinOperator,
            LimitClause, OrderByKind, Query, Select, SetExpr, Statement, TableFactor, Value, ValueWithSpan, Visit,
            VisitMut, Visitor, VisitorMut,
        },
        tokenizer::{Location, Span},
    },
};

use crate::{
    error::SqlResult,
    query::{
        normalise::{Literal, LiteralKind, Shape, Slot, integer_type},
        types,
    },
    types::{ColumnType, Datum, Decimal, FormatSettings, PgType, arrow as mapping},
};

/// A literal that became a parameter.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Digits, or the text of a string.
    pub text: String,
    /// int4, int8, numeric or unknown.
    pub pg_type: PgType,
    /// The literal of the statement's [`Shape`] whose value may differ between uses of the plan.
    pub lifted: Option<usize>,
}

impl Taken {
    /// The type it has by its look; `None` when the surroundings decide.
    pub fn field(&self) -> Option<FieldRef> {
        match self.pg_type {
            PgType::Unknown => None,
            PgType::Numeric => Some(types::field(DataType::Decimal128(38, decimal_scale(&self.text)))),
            // Without metadata, or a VALUES list with NULLs among them would not be of one type.
            other => Some(types::field(mapping::data_type(other.plain()))),
        }
    }
}

/// Digits behind the point of a decimal literal; what doesn't fit 38 digits is refused when it is parsed.
pub fn decimal_scale(text: &str) -> i8 {
    Decimal::parse(text).map_or(0, |value| value.scale() as i8)
}

/// The literals of a statement.
#[derive(Clone, Debug, Default)]
pub struct Literals {
    /// How many parameters the client's statement has.
    pub client_parameters: usize,
    /// Parameters `client_parameters + 1` and on.
    pub taken: Vec<Taken>,
}

impl Literals {
    /// The literal behind parameter `index` (from 0), unless it is lifted or the client's.
    pub fn fixed(&self, index: usize) -> Option<&Taken> {
        self.taken.get(index.checked_sub(self.client_parameters)?).filter(|taken| taken.lifted.is_none())
    }

    /// Which literals of `shape` a plan for this statement serves with any value.
    pub fn slots(&self, sql: &str, shape: &Shape) -> Vec<Slot> {
        let lifted: HashSet<usize> = self.taken.iter().filter_map(|taken| taken.lifted).collect();
        let slot = |(at, literal): (usize, &Literal)| {
            if lifted.contains(&at) { Slot::any(literal, sql) } else { Slot::fixed(literal, sql) }
        };
        shape.literals.iter().enumerate().map(slot).collect()
    }
}

/// The value of a literal as `field` wants it; 22P02 and the like when a string is no such value.
pub fn scalar(text: &str, pg_type: PgType, field: &FieldRef) -> SqlResult<ScalarValue> {
    let from = match pg_type {
        PgType::Unknown => Datum::text(text),
        PgType::Numeric => Datum::Numeric(Decimal::parse(text)?),
        _ => Datum::text(text),
    };
    crate::query::parameters::scalar(from, field, &FormatSettings::default())
}

/// The type a literal of `text` has by its look.
pub fn look(kind: LiteralKind, text: &str) -> PgType {
    match kind {
        LiteralKind::Integer => integer_type(text),
        // Beyond what our numeric holds, a float is nearer to the value than an error.
        LiteralKind::Decimal if Decimal::parse(text).is_err() => PgType::Float8,
        LiteralKind::Decimal => PgType::Numeric,
        LiteralKind::String => PgType::Unknown,
    }
}

/// Takes the literals out of `statement`. With `source` (the text and its shape) those that may differ are lifted.
pub fn take(statement: &mut Statement, source: Option<(&str, &Shape)>) -> Literals {
    let mut survey = Survey::default();
    let _ = Visit::visit(&*statement, &mut survey);
    if let Statement::Insert(insert) = &*statement {
        survey.insert(insert);
    }
    if let Statement::Update(update) = &*statement {
        update.assignments.iter().for_each(|assignment| survey.lift(&assignment.value));
        update.selection.iter().for_each(|condition| survey.lift(condition));
    }
    if let Statement::Delete(delete) = &*statement {
        delete.selection.iter().for_each(|condition| survey.lift(condition));
    }
    let places = source.map(|(sql, shape)| places(sql, shape)).unwrap_or_default();
    let mut taker = Taker {
        survey,
        places,
        literals: Literals { client_parameters: client_parameters(statement), taken: Vec::new() },
    };
    let _ = VisitMut::visit(statement, &mut taker);
    taker.literals
}

/// Where the shape's literals start, as the parser counts: lines and columns from 1, in characters.
fn places(sql: &str, shape: &Shape) -> HashMap<(u64, u64), usize> {
    let mut found = HashMap::new();
    let (mut line, mut column, mut next) = (1, 1, 0);
    for (at, character) in sql.char_indices() {
        if shape.literals.get(next).is_some_and(|literal| literal.start == at) {
            found.insert((line, column), next);
            next += 1;
        }
        if character == '\n' {
            line += 1;
            column = 1;
        } else {
            column += 1;
        }
    }
    found
}

/// The highest `$n` of a statement.
pub fn client_parameters(statement: &Statement) -> usize {
    struct Highest(usize);
    impl Visitor for Highest {
        type Break = ();
        fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
            if let Value::Placeholder(id) = &value.value {
                self.0 = self.0.max(id.trim_start_matches('$').parse().unwrap_or(0));
            }
            ControlFlow::Continue(())
        }
    }
    let mut highest = Highest(0);
    let _ = Visit::visit(statement, &mut highest);
    highest.0
}

type Place = (u64, u64);

fn place(span: Span) -> Place {
    let Location { line, column } = span.start;
    (line, column)
}

/// Which literals stay, and which are lifted.
#[derive(Default)]
struct Survey {
    /// Never taken out.
    kept: HashSet<Place>,
    /// Taken out, and lifted when the shape knows them.
    lifted: HashSet<Place>,
}

impl Survey {
    /// Keeps all literals (or only strings) below `node`.
    fn keep(&mut self, node: &impl Visit, strings_only: bool) {
        let mut collector = Collector { places: Vec::new(), strings_only, depth: 0 };
        let _ = node.visit(&mut collector);
        self.kept.extend(collector.places);
    }

    /// Lifts the literals of a condition or value, but not those of subqueries in it.
    fn lift(&mut self, expr: &Expr) {
        let mut collector = Collector { places: Vec::new(), strings_only: false, depth: 0 };
        let _ = Visit::visit(expr, &mut collector);
        self.lifted.extend(collector.places);
    }

    fn insert(&mut self, insert: &Insert) {
        let Some(source) = &insert.source else { return };
        let SetExpr::Values(values) = source.body.as_ref() else { return };
        for expr in values.rows.iter().flat_map(|row| row.content.iter()) {
            self.lift(expr);
            // A bare string takes its column's type; the FROM-clause rule below kept it.
            if let Expr::Value(value) = expr {
                self.kept.remove(&place(value.span));
            }
        }
    }

    fn select(&mut self, select: &Select) {
        select.selection.iter().for_each(|condition| self.lift(condition));
        if let GroupByExpr::Expressions(groups, _) = &select.group_by {
            groups.iter().filter(|group| matches!(group, Expr::Value(_))).for_each(|group| self.keep(group, false));
        }
        for join in select.from.iter().flat_map(|from| from.joins.iter()) {
            let (JoinOperator::Join(JoinConstraint::On(on))
            | JoinOperator::Inner(JoinConstraint::On(on))
            | JoinOperator::Left(JoinConstraint::On(on))
            | JoinOperator::LeftOuter(JoinConstraint::On(on))) = &join.join_operator
            else {
                continue;
            };
            self.lift(on);
        }
    }
}

impl Visitor for Survey {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(order_by) = &query.order_by
            && let OrderByKind::Expressions(keys) = &order_by.kind
        {
            keys.iter().filter(|key| matches!(key.expr, Expr::Value(_))).for_each(|key| self.keep(&key.expr, false));
        }
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
            limit.iter().for_each(|limit| self.keep(limit, false));
            offset.iter().for_each(|offset| self.keep(&offset.value, false));
        }
        if let Some(fetch) = &query.fetch {
            fetch.quantity.iter().for_each(|quantity| self.keep(quantity, false));
        }
        if let SetExpr::Values(values) = query.body.as_ref() {
            values.rows.iter().flat_map(|row| row.content.iter()).for_each(|value| self.keep(value, true));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.select(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { args: Some(arguments), .. } => self.keep(&arguments.args, false),
            TableFactor::Function { args, .. } => self.keep(args, false),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => {
                if let FunctionArguments::List(list) = &function.args {
                    for argument in &list.args {
                        if let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = argument {
                            self.keep(value, true);
                        }
                    }
                }
            }
            Expr::Like { pattern, .. } | Expr::ILike { pattern, .. } | Expr::SimilarTo { pattern, .. } => {
                self.keep(pattern.as_ref(), true);
            }
            Expr::Trim { trim_what, trim_characters, .. } => {
                trim_what.iter().for_each(|what| self.keep(what.as_ref(), true));
                trim_characters.iter().for_each(|characters| self.keep(characters, true));
            }
            Expr::Position { expr, r#in } => {
                self.keep(expr.as_ref(), true);
                self.keep(r#in.as_ref(), true);
            }
            Expr::Substring { expr, .. } => self.keep(expr.as_ref(), true),
            Expr::Interval(interval) => self.keep(interval.value.as_ref(), false),
            Expr::AtTimeZone { time_zone, .. } => self.keep(time_zone.as_ref(), false),
            Expr::Array(array) => self.keep(array, false),
            Expr::TypedString(typed) => self.keep(typed, false),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Collects the places of literals outside of subqueries.
struct Collector {
    places: Vec<Place>,
    strings_only: bool,
    depth: usize,
}

impl Visitor for Collector {
    type Break = ();

    fn pre_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }
    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        let wanted = match value.value {
            Value::Number(..) => !self.strings_only,
            Value::SingleQuotedString(_) => true,
            _ => false,
        };
        if wanted && self.depth == 0 {
            self.places.push(place(value.span));
        }
        ControlFlow::Continue(())
    }
}

/// Replaces what the survey does not keep.
struct Taker {
    survey: Survey,
    places: HashMap<Place, usize>,
    literals: Literals,
}

impl VisitorMut for Taker {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let Expr::Value(value) = expr else { return ControlFlow::Continue(()) };
        let (text, kind) = match &value.value {
            Value::Number(digits, false) => {
                let integer = digits.bytes().all(|byte| byte.is_ascii_digit());
                (digits.clone(), if integer { LiteralKind::Integer } else { LiteralKind::Decimal })
            }
            Value::SingleQuotedString(text) => (text.clone(), LiteralKind::String),
            _ => return ControlFlow::Continue(()),
        };
        let at = place(value.span);
        if self.survey.kept.contains(&at) {
            return ControlFlow::Continue(());
        }
        let lifted = if self.survey.lifted.contains(&at) { self.places.get(&at).copied() } else { None };
        let taken = Taken { pg_type: look(kind, &text), text, lifted };
        let index = self.literals.index_of(taken);
        value.value = Value::Placeholder(format!("${}", index + 1));
        ControlFlow::Continue(())
    }
}

impl Literals {
    /// The parameter of a taken literal; equal fixed literals share one, so that `GROUP BY a + 1` finds `a + 1`.
    fn index_of(&mut self, taken: Taken) -> usize {
        let same = |known: &Taken| {
            known.lifted.is_none()
                && taken.lifted.is_none()
                && known.pg_type == taken.pg_type
                && known.text == taken.text
        };
        let at = self.taken.iter().position(same).unwrap_or_else(|| {
            self.taken.push(taken);
            self.taken.len() - 1
        });
        self.client_parameters + at
    }

    /// Fields of all parameters, given the client's types.
    pub fn fields(&self, client: &[Option<ColumnType>]) -> Vec<Option<FieldRef>> {
        let own = (0..self.client_parameters).map(|at| {
            let known = client.get(at).copied().flatten().filter(|known| known.pg_type != PgType::Unknown);
            known.map(|column_type| std::sync::Arc::new(mapping::field("", column_type, true)))
        });
        own.chain(self.taken.iter().map(Taken::field)).collect()
    }
}
