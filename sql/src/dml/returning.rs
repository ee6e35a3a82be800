//! Select lists over one table's rows: RETURNING, and what key plans give back. PURE.

use datafusion::sql::sqlparser::ast::{Expr, SelectItem, SelectItemQualifiedWildcardKind, UnaryOperator};

use crate::{
    catalog::TableDescriptor,
    error::SqlResult,
    eval::{Compiler, Env, Refusal, Scalar},
    name::folded,
    session::step::Field,
    types::{ColumnType, Datum, PgType},
};

/// PostgreSQL's name for an expression without a better one.
const ANONYMOUS: &str = "?column?";

/// A compiled select list.
#[derive(Clone, Debug)]
pub struct Projection {
    /// The columns it makes.
    pub fields: Vec<Field>,
    scalars: Vec<Scalar>,
}

impl Projection {
    /// Compiles a select list over the compiler's table.
    pub fn compile(
        compiler: &mut Compiler<'_>,
        table: &TableDescriptor,
        items: &[SelectItem],
    ) -> Result<Self, Refusal> {
        let mut projection = Projection { fields: Vec::new(), scalars: Vec::new() };
        for item in items {
            match item {
                SelectItem::UnnamedExpr(expr) => projection.push(compiler, table, expr, name_of(expr)?)?,
                SelectItem::ExprWithAlias { expr, alias } => projection.push(compiler, table, expr, folded(alias))?,
                SelectItem::Wildcard(options) if options.opt_exclude.is_none() && options.opt_rename.is_none() => {
                    projection.push_all(table);
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _)
                    if name.0.len() == 1 =>
                {
                    // Whether the name is the table's alias is what compiling its first column tells.
                    let qualifier = name.0[0].as_ident().ok_or(Refusal::Unknown)?.clone();
                    let first = table.columns.iter().find(|column| !column.hidden).ok_or(Refusal::Unknown)?;
                    let column = datafusion::sql::sqlparser::ast::Ident::with_quote('"', first.name.clone());
                    compiler.expr(&Expr::CompoundIdentifier(vec![qualifier, column]))?;
                    projection.push_all(table);
                }
                _ => return Err(Refusal::Unknown),
            }
        }
        Ok(projection)
    }

    fn push(
        &mut self,
        compiler: &mut Compiler<'_>,
        table: &TableDescriptor,
        expr: &Expr,
        name: String,
    ) -> Result<(), Refusal> {
        let typed = compiler.expr(expr)?;
        if let Scalar::Column(at) = typed.scalar {
            self.fields.push(column_field(table, at, name));
        } else {
            let column_type =
                if typed.column_type.pg_type == PgType::Unknown { PgType::Text.plain() } else { typed.column_type };
            self.fields.push(Field::computed(name, column_type));
        }
        self.scalars.push(typed.scalar);
        Ok(())
    }

    fn push_all(&mut self, table: &TableDescriptor) {
        for (at, column) in table.visible() {
            self.fields.push(column_field(table, at, column.name.clone()));
            self.scalars.push(Scalar::Column(at));
        }
    }

    /// Types of the columns.
    pub fn types(&self) -> Vec<ColumnType> {
        self.fields.iter().map(|field| field.column_type).collect()
    }

    /// Marks the columns of the table that are read.
    pub fn mark_columns(&self, wanted: &mut [bool]) {
        self.scalars.iter().for_each(|scalar| mark(scalar, wanted));
    }

    /// Appends the list's values for a row.
    pub fn eval(&self, env: &Env<'_>, out: &mut Vec<Datum>) -> SqlResult<()> {
        for scalar in &self.scalars {
            out.push(scalar.eval(env)?);
        }
        Ok(())
    }
}

/// Marks the columns that an expression reads.
pub fn mark(scalar: &Scalar, wanted: &mut [bool]) {
    match scalar {
        Scalar::Column(at) => wanted[*at] = true,
        Scalar::Literal(_) | Scalar::Param(_) | Scalar::Now => {}
        Scalar::Negate(a) | Scalar::Not(a) | Scalar::IsNull(a) | Scalar::Cast { input: a, .. } => mark(a, wanted),
        Scalar::Arithmetic(_, a, b) | Scalar::Compare(_, a, b) | Scalar::And(a, b) | Scalar::Or(a, b) => {
            mark(a, wanted);
            mark(b, wanted);
        }
    }
}

/// The field of a table's column.
pub fn column_field(table: &TableDescriptor, at: usize, name: String) -> Field {
    let column = &table.columns[at];
    Field {
        name,
        table_oid: table.id,
        column_id: i16::try_from(column.id).unwrap_or(0),
        column_type: column.column_type,
        format: crate::types::Format::Text,
    }
}

/// The name PostgreSQL gives to an unnamed expression, where that is simple.
fn name_of(expr: &Expr) -> Result<String, Refusal> {
    Ok(match expr {
        Expr::Identifier(name) => folded(name),
        Expr::CompoundIdentifier(parts) => parts.last().map(folded).unwrap_or_default(),
        Expr::Nested(inner) => name_of(inner)?,
        Expr::BinaryOp { .. } | Expr::IsNull(_) | Expr::IsNotNull(_) => ANONYMOUS.to_owned(),
        Expr::Value(value) if !matches!(value.value, datafusion::sql::sqlparser::ast::Value::Boolean(_)) => {
            ANONYMOUS.to_owned()
        }
        Expr::UnaryOp { op: UnaryOperator::Minus | UnaryOperator::Not, .. } => ANONYMOUS.to_owned(),
        _ => return Err(Refusal::Unknown),
    })
}
