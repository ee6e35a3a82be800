//! DEFAULT expressions: kept as text in the descriptor, compiled where a plan needs them. PURE.

use datafusion::sql::sqlparser::{ast::Expr, dialect::PostgreSqlDialect, parser::Parser};

use crate::{
    catalog::ColumnDescriptor,
    error::{SqlError, SqlResult, SqlState},
    eval::{Compiler, ParamTypes, Refusal, Scalar},
};

/// Compiles a column's DEFAULT; 0A000 for an expression that needs more than literals, operators and the current time.
pub fn compile(text: &str, column: &ColumnDescriptor) -> SqlResult<Scalar> {
    let expr = Parser::new(&PostgreSqlDialect {})
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_expr())
        .map_err(|e| SqlError::internal(format!("the default of column {} does not parse: {e}", column.name)))?;
    compile_expr(&expr, column)
}

/// The same for an expression that is parsed already.
pub fn compile_expr(expr: &Expr, column: &ColumnDescriptor) -> SqlResult<Scalar> {
    match Compiler::new(ParamTypes::default()).assigned(expr, column.column_type, &column.name) {
        Ok(scalar) => Ok(scalar),
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Unknown) if is_column(expr) => {
            Err(SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, "cannot use column reference in DEFAULT expression"))
        }
        Err(Refusal::Unknown) => Err(SqlError::unsupported(format!("the DEFAULT expression {expr}"))),
    }
}

fn is_column(expr: &Expr) -> bool {
    match expr {
        Expr::Nested(inner) => is_column(inner),
        Expr::Identifier(_) | Expr::CompoundIdentifier(_) => true,
        _ => false,
    }
}
