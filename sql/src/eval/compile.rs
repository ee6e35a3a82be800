//! sqlparser's expressions to [`Scalar`]s: PostgreSQL's typing of the ones it knows. PURE.

use datafusion::sql::sqlparser::ast::{BinaryOperator, CastKind, Expr, FunctionArguments, Ident, UnaryOperator, Value};

use super::{Comparison, Scalar, arith, cast, common_number};
use crate::{
    catalog::{CatalogSnapshot, Sequence, TableDescriptor},
    ddl::column::next_value_of,
    error::{SqlError, SqlState},
    name::folded,
    query::{bind::type_names, catalog::oids},
    types::{ColumnType, Datum, Decimal, FormatSettings, PgType},
};

/// Deepest nesting of an expression that is compiled here; deeper ones go the general way.
const MAX_DEPTH: usize = 64;
/// Highest number of a parameter, as the protocol counts them in 16 bits.
pub const MAX_PARAMS: usize = u16::MAX as usize;

/// Why an expression was not compiled.
#[derive(Debug)]
pub enum Refusal {
    /// It is none of those known here: the general way may know it.
    Unknown,
    /// It is wrong on every way.
    Error(SqlError),
}

impl From<SqlError> for Refusal {
    fn from(error: SqlError) -> Self {
        Refusal::Error(error)
    }
}

/// A compiled expression and its type.
#[derive(Clone, Debug)]
pub struct Typed {
    /// The expression.
    pub scalar: Scalar,
    /// Its type; `Unknown` for a string literal or NULL that nothing has given a type.
    pub column_type: ColumnType,
}

/// Types of a statement's parameters: what the client said, and what their places say.
#[derive(Clone, Debug, Default)]
pub struct ParamTypes(Vec<PgType>);

impl ParamTypes {
    /// From what the client said; `Unknown` is "find out".
    pub fn new(declared: &[PgType]) -> Self {
        ParamTypes(declared.to_vec())
    }
    /// The type of a parameter so far.
    fn get(&mut self, at: usize) -> PgType {
        if self.0.len() <= at {
            self.0.resize(at + 1, PgType::Unknown);
        }
        self.0[at]
    }
    /// The types found; what is still unknown is text, as in PostgreSQL.
    pub fn finish(self) -> Vec<PgType> {
        self.0.into_iter().map(|t| if t == PgType::Unknown { PgType::Text } else { t }).collect()
    }
}

/// Compiles the expressions of one statement.
pub struct Compiler<'a> {
    /// The table whose columns may be named, and its alias.
    table: Option<(&'a TableDescriptor, String)>,
    /// Parameters.
    pub params: ParamTypes,
    /// Where nextval may be called: what is drawn for a row, in this order, stands in the place of the row.
    draws: Option<(&'a CatalogSnapshot, Vec<Sequence>)>,
    depth: usize,
}

type Compiled = Result<Typed, Refusal>;

fn typed(scalar: Scalar, column_type: impl Into<ColumnType>) -> Typed {
    Typed { scalar, column_type: column_type.into() }
}

impl<'a> Compiler<'a> {
    /// For expressions without columns.
    pub fn new(params: ParamTypes) -> Self {
        Compiler { table: None, params, draws: None, depth: 0 }
    }
    /// For expressions without columns that may draw from sequences.
    pub fn drawing(catalog: &'a CatalogSnapshot, params: ParamTypes) -> Self {
        Compiler { table: None, params, draws: Some((catalog, Vec::new())), depth: 0 }
    }
    /// What has been drawn since the last call.
    pub fn take_draws(&mut self) -> Vec<Sequence> {
        self.draws.as_mut().map(|(_, draws)| std::mem::take(draws)).unwrap_or_default()
    }
    /// The next value of a sequence, which belongs to the row.
    pub fn draw(&mut self, sequence: u32) -> Compiled {
        let Some((catalog, draws)) = &mut self.draws else { return Err(Refusal::Unknown) };
        let Some(sequence) = catalog.sequence(sequence) else {
            return Err(SqlError::undefined_table(&sequence.to_string()).into());
        };
        draws.push(Sequence::clone(sequence));
        Ok(typed(Scalar::Column(draws.len() - 1), PgType::Int8))
    }
    /// For expressions over rows of `table`, which the statement calls `alias`.
    pub fn over(table: &'a TableDescriptor, alias: Option<String>, params: ParamTypes) -> Self {
        let alias = alias.unwrap_or_else(|| table.name.clone());
        Compiler { table: Some((table, alias)), params, draws: None, depth: 0 }
    }

    /// An expression whose type is whatever it is.
    pub fn expr(&mut self, expr: &Expr) -> Compiled {
        if self.depth == MAX_DEPTH {
            return Err(Refusal::Unknown);
        }
        self.depth += 1;
        let compiled = self.any(expr);
        self.depth -= 1;
        compiled
    }

    fn any(&mut self, expr: &Expr) -> Compiled {
        match expr {
            Expr::Nested(inner) => self.expr(inner),
            Expr::Value(value) => self.value(&value.value),
            Expr::Identifier(name) => self.column(None, name),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, name] => self.column(Some(table), name),
                _ => Err(Refusal::Unknown),
            },
            Expr::UnaryOp { op, expr } => self.unary(op, expr),
            Expr::BinaryOp { left, op, right } => self.binary(left, op, right),
            Expr::IsNull(input) => {
                let input = self.expr(input)?;
                Ok(typed(Scalar::IsNull(Box::new(input.scalar)), PgType::Bool))
            }
            Expr::IsNotNull(input) => {
                let input = self.expr(input)?;
                let is_null = Scalar::IsNull(Box::new(input.scalar));
                Ok(typed(Scalar::Not(Box::new(is_null)), PgType::Bool))
            }
            Expr::Between { expr, negated: false, low, high } => {
                let above = self.binary(expr, &BinaryOperator::GtEq, low)?;
                let below = self.binary(expr, &BinaryOperator::LtEq, high)?;
                Ok(typed(Scalar::And(Box::new(above.scalar), Box::new(below.scalar)), PgType::Bool))
            }
            Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type,
                array: false,
                format: None,
            } => {
                let to = type_names::column_type(data_type)?;
                self.cast(expr, to)
            }
            Expr::Function(function) => self.function(function),
            _ => Err(Refusal::Unknown),
        }
    }

    /// An expression as it is stored into a column of type `to`. 42804 when that needs a written cast.
    pub fn assigned(&mut self, expr: &Expr, to: ColumnType, column: &str) -> Result<Scalar, Refusal> {
        let input = self.expected(expr, to.pg_type)?;
        self.assign(input, to, column)
    }

    /// The assignment's cast of an expression that is compiled already.
    pub fn assign(&mut self, input: Typed, to: ColumnType, column: &str) -> Result<Scalar, Refusal> {
        let from = input.column_type.pg_type;
        if !cast::assignable(from, to.pg_type) {
            return Err(cast::mismatch(column, to, from).into());
        }
        Ok(self.cast_scalar(input, to, false)?.scalar)
    }

    /// An expression where a value of type `to` is expected: a parameter or literal without a type gets it.
    fn expected(&mut self, expr: &Expr, to: PgType) -> Compiled {
        let input = self.expr(expr)?;
        Ok(self.adopt(input, to)?)
    }

    /// Gives `to` to what has no type yet.
    fn adopt(&mut self, input: Typed, to: PgType) -> Result<Typed, SqlError> {
        if input.column_type.pg_type != PgType::Unknown || to == PgType::Unknown {
            return Ok(input);
        }
        Ok(match input.scalar {
            Scalar::Param(at) => {
                self.params.get(at);
                self.params.0[at] = to;
                typed(Scalar::Param(at), to)
            }
            Scalar::Literal(Datum::Text(text)) if to != PgType::TimestampTz => {
                // Depends on no setting but, for timestamptz, the time zone: that one is read when it runs.
                let value = crate::types::text::parse_plain(&text, to, &FormatSettings::default())?;
                typed(Scalar::Literal(value), to)
            }
            Scalar::Literal(Datum::Null) => typed(Scalar::Literal(Datum::Null), to),
            other => typed(Scalar::Cast { input: Box::new(other), to: to.plain(), explicit: true }, to),
        })
    }

    fn cast(&mut self, expr: &Expr, to: ColumnType) -> Compiled {
        let input = self.expected(expr, to.pg_type)?;
        let from = input.column_type.pg_type;
        // Names of relations and types need the catalog; intervals of text need the general way.
        if to.pg_type.is_oid() || from.is_oid() || !cast::castable(from, to.pg_type) {
            return Err(Refusal::Unknown);
        }
        Ok(self.cast_scalar(input, to, true)?)
    }

    fn cast_scalar(&mut self, input: Typed, to: ColumnType, explicit: bool) -> Result<Typed, SqlError> {
        let modified = to.max_characters().is_some() || to.precision_scale().is_some();
        if input.column_type == to || (input.column_type.pg_type == to.pg_type && !modified) {
            return Ok(typed(input.scalar, to));
        }
        match input.scalar {
            // Literals are cast now, unless the result hangs on the session's time zone.
            Scalar::Literal(value) if !matches!(to.pg_type, PgType::Timestamp | PgType::TimestampTz | PgType::Date) => {
                let value = cast::cast(value, to, explicit, &FormatSettings::default())?;
                Ok(typed(Scalar::Literal(value), to))
            }
            input => Ok(typed(Scalar::Cast { input: Box::new(input), to, explicit }, to)),
        }
    }

    fn value(&mut self, value: &Value) -> Compiled {
        Ok(match value {
            Value::Number(digits, _) => number(digits)?,
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => {
                typed(Scalar::Literal(Datum::text(text.as_str())), PgType::Unknown)
            }
            Value::DollarQuotedString(text) => {
                typed(Scalar::Literal(Datum::text(text.value.as_str())), PgType::Unknown)
            }
            Value::Boolean(truth) => typed(Scalar::Literal(Datum::Bool(*truth)), PgType::Bool),
            Value::Null => typed(Scalar::Literal(Datum::Null), PgType::Unknown),
            Value::Placeholder(name) => {
                let at = param_index(name)?;
                let pg_type = self.params.get(at);
                typed(Scalar::Param(at), pg_type)
            }
            _ => return Err(Refusal::Unknown),
        })
    }

    fn column(&mut self, qualifier: Option<&Ident>, name: &Ident) -> Compiled {
        let Some((table, alias)) = &self.table else { return Err(Refusal::Unknown) };
        if qualifier.is_some_and(|qualifier| folded(qualifier) != *alias) {
            return Err(Refusal::Unknown);
        }
        let at = table.position(&folded(name)).ok_or(Refusal::Unknown)?;
        Ok(typed(Scalar::Column(at), table.columns[at].column_type))
    }

    fn unary(&mut self, op: &UnaryOperator, expr: &Expr) -> Compiled {
        let input = self.expr(expr)?;
        match op {
            UnaryOperator::Not => {
                let input = self.adopt(input, PgType::Bool)?;
                self.require(&input, PgType::Bool)?;
                Ok(typed(Scalar::Not(Box::new(input.scalar)), PgType::Bool))
            }
            UnaryOperator::Plus if input.column_type.pg_type.is_number() => Ok(input),
            UnaryOperator::Minus if input.column_type.pg_type.is_number() => {
                let plain = input.column_type.pg_type;
                Ok(match input.scalar {
                    Scalar::Literal(value) => typed(Scalar::Literal(arith::negate(&value)?), plain),
                    other => typed(Scalar::Negate(Box::new(other)), plain),
                })
            }
            _ => Err(Refusal::Unknown),
        }
    }

    fn require(&self, input: &Typed, pg_type: PgType) -> Result<(), Refusal> {
        if input.column_type.pg_type == pg_type { Ok(()) } else { Err(Refusal::Unknown) }
    }

    fn binary(&mut self, left: &Expr, op: &BinaryOperator, right: &Expr) -> Compiled {
        let (left, right) = (self.expr(left)?, self.expr(right)?);
        // What has no type takes the other side's.
        let left = self.adopt(left, right.column_type.pg_type)?;
        let right = self.adopt(right, left.column_type.pg_type)?;
        use BinaryOperator as B;
        match op {
            B::And | B::Or => {
                let (left, right) = (self.adopt(left, PgType::Bool)?, self.adopt(right, PgType::Bool)?);
                self.require(&left, PgType::Bool)?;
                self.require(&right, PgType::Bool)?;
                let (left, right) = (Box::new(left.scalar), Box::new(right.scalar));
                let scalar = if *op == B::And { Scalar::And(left, right) } else { Scalar::Or(left, right) };
                Ok(typed(scalar, PgType::Bool))
            }
            B::Plus => self.arithmetic(arith::Operator::Add, left, right),
            B::Minus => self.arithmetic(arith::Operator::Sub, left, right),
            B::Multiply => self.arithmetic(arith::Operator::Mul, left, right),
            B::Divide => self.arithmetic(arith::Operator::Div, left, right),
            B::Modulo => self.arithmetic(arith::Operator::Rem, left, right),
            B::Eq => self.compare(Comparison::Equal, left, right),
            B::NotEq => self.compare(Comparison::NotEqual, left, right),
            B::Lt => self.compare(Comparison::Less, left, right),
            B::LtEq => self.compare(Comparison::LessOrEqual, left, right),
            B::Gt => self.compare(Comparison::Greater, left, right),
            B::GtEq => self.compare(Comparison::GreaterOrEqual, left, right),
            _ => Err(Refusal::Unknown),
        }
    }

    fn arithmetic(&mut self, operator: arith::Operator, left: Typed, right: Typed) -> Compiled {
        let common = common_number(left.column_type.pg_type, right.column_type.pg_type).ok_or(Refusal::Unknown)?;
        let division = matches!(operator, arith::Operator::Div | arith::Operator::Rem);
        let float = matches!(common, PgType::Float4 | PgType::Float8);
        // The scale of a numeric quotient is the general way's affair; floats have no %.
        if (common == PgType::Numeric && division) || (float && operator == arith::Operator::Rem) {
            return Err(Refusal::Unknown);
        }
        let left = self.cast_scalar(left, common.plain(), true)?.scalar;
        let right = self.cast_scalar(right, common.plain(), true)?.scalar;
        Ok(typed(Scalar::Arithmetic(operator, Box::new(left), Box::new(right)), common))
    }

    fn compare(&mut self, comparison: Comparison, left: Typed, right: Typed) -> Compiled {
        let (a, b) = (left.column_type.pg_type, right.column_type.pg_type);
        let common = if a.is_text() && b.is_text() {
            // char(n) meets text as text once its blanks are gone, which they are.
            if a == PgType::Bpchar || b == PgType::Bpchar {
                if a != b && a != PgType::Unknown && b != PgType::Unknown {
                    return Err(Refusal::Unknown);
                }
                PgType::Bpchar
            } else {
                PgType::Text
            }
        } else if a == b {
            a
        } else {
            common_number(a, b).ok_or(Refusal::Unknown)?
        };
        let left = self.cast_scalar(left, common.plain(), true)?.scalar;
        let right = self.cast_scalar(right, common.plain(), true)?.scalar;
        Ok(typed(Scalar::Compare(comparison, Box::new(left), Box::new(right)), PgType::Bool))
    }

    fn function(&mut self, function: &datafusion::sql::sqlparser::ast::Function) -> Compiled {
        let [part] = function.name.0.as_slice() else { return Err(Refusal::Unknown) };
        let name = part.as_ident().map(folded).ok_or(Refusal::Unknown)?;
        if let (Some((catalog, _)), Some(sequence)) = (&self.draws, next_value_of(function)) {
            let id = oids::relation(catalog, &sequence)?;
            // What is no sequence is the general way's to say.
            let id = catalog.sequence(id).ok_or(Refusal::Unknown)?.id;
            return self.draw(id);
        }
        let bare = match &function.args {
            FunctionArguments::None => true,
            FunctionArguments::List(list) => list.args.is_empty() && list.clauses.is_empty(),
            FunctionArguments::Subquery(_) => false,
        };
        if !bare || function.over.is_some() || function.filter.is_some() {
            return Err(Refusal::Unknown);
        }
        let as_type = |to: PgType| {
            let input = Box::new(Scalar::Now);
            typed(Scalar::Cast { input, to: to.plain(), explicit: true }, to)
        };
        match name.as_str() {
            "now" | "current_timestamp" | "transaction_timestamp" => Ok(typed(Scalar::Now, PgType::TimestampTz)),
            "localtimestamp" => Ok(as_type(PgType::Timestamp)),
            "current_date" => Ok(as_type(PgType::Date)),
            _ => Err(Refusal::Unknown),
        }
    }
}

/// Index of `$1`, …; 42P02 for a number out of range, refused when it is no number.
pub fn param_index(name: &str) -> Result<usize, Refusal> {
    let number = name.strip_prefix('$').ok_or(Refusal::Unknown)?;
    match number.parse::<usize>() {
        Ok(at) if (1..=MAX_PARAMS).contains(&at) => Ok(at - 1),
        Ok(_) => Err(SqlError::new(SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {name}")).into()),
        Err(_) => Err(Refusal::Unknown),
    }
}

/// A number as PostgreSQL types it: integer, bigint or numeric, whichever holds it.
fn number(digits: &str) -> Compiled {
    if let Ok(value) = digits.parse::<i32>() {
        return Ok(typed(Scalar::Literal(Datum::Int4(value)), PgType::Int4));
    }
    if let Ok(value) = digits.parse::<i64>() {
        return Ok(typed(Scalar::Literal(Datum::Int8(value)), PgType::Int8));
    }
    match Decimal::parse(digits) {
        Ok(value) => Ok(typed(Scalar::Literal(Datum::Numeric(value)), PgType::Numeric)),
        // Beyond what our numeric holds, a float is nearer to the value than an error.
        Err(error) => match digits.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(typed(Scalar::Literal(Datum::Float8(value)), PgType::Float8)),
            _ => Err(error.into()),
        },
    }
}
