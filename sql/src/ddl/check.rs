//! CHECK constraints: kept as text in the descriptor, compiled where rows are written. PURE.

use std::{collections::BTreeSet, ops::ControlFlow, sync::LazyLock};

use datafusion::sql::sqlparser::{
    ast::{BinaryOperator, Expr, Ident, UnaryOperator, visit_expressions},
    dialect::PostgreSqlDialect,
    parser::Parser,
};

use crate::{
    catalog::{CatalogSnapshot, TableDescriptor, descriptor::CheckDescriptor},
    error::{SqlError, SqlResult, SqlState},
    eval::{Compiler, Env, ParamTypes, Refusal, Scalar},
    name::folded,
    types::{Datum, FormatSettings, PgType},
};

/// What expressions read that depend on no session.
static SETTINGS: LazyLock<FormatSettings> = LazyLock::new(FormatSettings::default);

/// A CHECK as it was said.
pub struct Said {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What must not be false.
    pub expr: Expr,
}

/// A compiled constraint.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name.
    pub name: String,
    scalar: Option<Scalar>,
}

impl Check {
    /// For rows of `table`.
    pub fn new(table: &TableDescriptor, check: &CheckDescriptor) -> Self {
        let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&check.expr).and_then(|mut p| p.parse_expr());
        let scalar = parsed.ok().and_then(|expr| compile(&expr, table).ok());
        Check { name: check.name.clone(), scalar }
    }

    /// It is not false for the row.
    pub fn holds(&self, row: &[Datum]) -> SqlResult<bool> {
        let scalar = self.scalar.as_ref();
        let scalar = scalar.ok_or_else(|| SqlError::internal(format!("constraint {} does not compile", self.name)))?;
        let env = Env { row, params: &[], now_us: 0, settings: &SETTINGS };
        Ok(scalar.truth(&env)? != Some(false))
    }
}

/// The constraint of a new table; `taken` are names of others of it.
pub fn described(
    catalog: &CatalogSnapshot,
    table: &TableDescriptor,
    said: Said,
    id: u32,
    taken: &[String],
) -> SqlResult<CheckDescriptor> {
    let columns = columns_of(&said.expr);
    for name in &columns {
        if table.position(name).is_none_or(|at| table.columns[at].hidden) {
            return Err(SqlError::new(SqlState::UNDEFINED_COLUMN, format!("column \"{name}\" does not exist")));
        }
    }
    compile(&said.expr, table)?;
    let name = match said.name {
        Some(name) if taken.contains(&name) => {
            let message = format!("constraint \"{name}\" for relation \"{}\" already exists", table.name);
            return Err(SqlError::new(SqlState::DUPLICATE_OBJECT, message));
        }
        Some(name) => name,
        None => {
            let mut one = columns.iter();
            let column = one.next().filter(|_| one.next().is_none()).map_or("", String::as_str);
            catalog.free_name(&table.schema, [&table.name, column], "check", taken)
        }
    };
    Ok(CheckDescriptor { id, name, expr: said.expr.to_string() })
}

fn columns_of(expr: &Expr) -> BTreeSet<String> {
    let mut columns = BTreeSet::new();
    let _ = visit_expressions(expr, |part| {
        match part {
            Expr::Identifier(name) => drop(columns.insert(folded(name))),
            Expr::CompoundIdentifier(parts) => columns.extend(parts.last().map(|name: &Ident| folded(name))),
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    columns
}

/// 0A000 for an expression that is not known; 42804 for one that is no condition.
fn compile(expr: &Expr, table: &TableDescriptor) -> SqlResult<Scalar> {
    let unknown = || SqlError::unsupported(format!("the CHECK expression {expr}"));
    let mut compiler = Compiler::over(table, None, ParamTypes::default());
    match compiler.expr(&plain(expr)) {
        Ok(typed) if depends(&typed.scalar) => Err(unknown()),
        Ok(typed) if typed.column_type.pg_type == PgType::Bool => Ok(typed.scalar),
        Ok(typed) if typed.column_type.pg_type == PgType::Unknown => Err(unknown()),
        Ok(typed) => {
            let found = typed.column_type.pg_type.sql_name();
            let message = format!("argument of CHECK must be type boolean, not type {found}");
            Err(SqlError::new(SqlState::DATATYPE_MISMATCH, message))
        }
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Unknown) => Err(unknown()),
    }
}

/// It depends on when or in which time zone it is computed.
fn depends(scalar: &Scalar) -> bool {
    match scalar {
        Scalar::Now | Scalar::Param(_) => true,
        Scalar::Literal(_) | Scalar::Column(_) => false,
        Scalar::Cast { to, .. } if to.pg_type == PgType::TimestampTz => true,
        Scalar::Negate(a) | Scalar::Not(a) | Scalar::IsNull(a) | Scalar::Cast { input: a, .. } => depends(a),
        Scalar::Arithmetic(_, a, b) | Scalar::Compare(_, a, b) | Scalar::And(a, b) | Scalar::Or(a, b) => {
            depends(a) || depends(b)
        }
    }
}

/// The same with IN and NOT BETWEEN in words that the compiler knows.
fn plain(expr: &Expr) -> Expr {
    let boxed = |expr: &Expr| Box::new(plain(expr));
    let not = |expr: Expr| Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(expr) };
    match expr {
        Expr::Nested(inner) => Expr::Nested(boxed(inner)),
        Expr::UnaryOp { op, expr } => Expr::UnaryOp { op: *op, expr: boxed(expr) },
        Expr::BinaryOp { left, op, right } => Expr::BinaryOp { left: boxed(left), op: op.clone(), right: boxed(right) },
        Expr::InList { expr, list, negated } if !list.is_empty() => {
            let equal = |item: &Expr| Expr::BinaryOp {
                left: expr.clone(),
                op: BinaryOperator::Eq,
                right: Box::new(item.clone()),
            };
            let or = |left: Expr, right: Expr| Expr::BinaryOp {
                left: Box::new(left),
                op: BinaryOperator::Or,
                right: Box::new(right),
            };
            let any = list.iter().map(equal).reduce(or).unwrap_or_else(|| Expr::Nested(expr.clone()));
            if *negated { not(Expr::Nested(Box::new(any))) } else { Expr::Nested(Box::new(any)) }
        }
        Expr::Between { expr, negated: true, low, high } => {
            let between = Expr::Between { expr: expr.clone(), negated: false, low: low.clone(), high: high.clone() };
            not(Expr::Nested(Box::new(between)))
        }
        other => other.clone(),
    }
}
