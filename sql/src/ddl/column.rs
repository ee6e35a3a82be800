//! Column definitions of CREATE TABLE. PURE.

use datafusion::sql::sqlparser::ast::{
    self, ColumnDef, ColumnOption, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GeneratedAs, Ident, Value,
};

use super::{check::Said, default, foreign_key};
use crate::{
    catalog::{ColumnDescriptor, Identity, descriptor::ROW_ID_COLUMN, foreign_key::Deferral},
    error::{SqlError, SqlResult, SqlState},
    name::folded,
    query::bind::type_names,
    statement::sequence::{SequenceOptions, identity_options},
    types::{ColumnType, PgType, TypeRow},
};

/// A column and what else its definition asks for.
pub struct Definition {
    /// The column.
    pub column: ColumnDescriptor,
    /// PRIMARY KEY.
    pub key: Option<Key>,
    /// UNIQUE, each with its name if it has one.
    pub unique: Vec<Unique>,
    /// CHECK.
    pub checks: Vec<Said>,
    /// REFERENCES.
    pub references: Vec<foreign_key::Said>,
    /// Where its values come from.
    pub draws: Option<Draws>,
}

/// A UNIQUE constraint of one column.
pub struct Unique {
    /// As said.
    pub name: Option<String>,
    /// NULLS DISTINCT, which is the default.
    pub nulls_distinct: bool,
    /// When it is checked.
    pub deferral: Deferral,
}

/// PRIMARY KEY of one column.
pub struct Key {
    /// As said.
    pub name: Option<String>,
    /// When it is checked.
    pub deferral: Deferral,
}

/// From which sequence a column's default is drawn.
pub enum Draws {
    /// From one that is made with the table: serial, identity.
    New(SequenceOptions),
    /// From one that is there: `DEFAULT nextval('name')`.
    Named(String),
}

/// Reads a column's definition.
pub fn read(definition: &ColumnDef, id: u32) -> SqlResult<Definition> {
    let name = folded(&definition.name);
    if name == ROW_ID_COLUMN {
        return Err(SqlError::new(SqlState::RESERVED_NAME, format!("column name \"{name}\" is reserved")));
    }
    let serial = serial(definition);
    let column_type = match serial {
        Some(pg_type) => pg_type.plain(),
        None => type_names::column_type(&definition.data_type)?,
    };
    storable(column_type)?;
    let mut column = ColumnDescriptor::new(id, name, column_type);
    column.nullable = serial.is_none();
    let draws = serial.map(|_| Draws::New(SequenceOptions::default()));
    let mut read =
        Definition { column, key: None, unique: Vec::new(), checks: Vec::new(), references: Vec::new(), draws };
    for option in &definition.options {
        let named = option.name.as_ref().map(|name: &Ident| folded(name));
        read.take(&option.option, named)?;
    }
    Ok(read)
}

impl Definition {
    fn take(&mut self, option: &ColumnOption, named: Option<String>) -> SqlResult<()> {
        match option {
            ColumnOption::Null => {}
            ColumnOption::NotNull => self.column.nullable = false,
            ColumnOption::Default(expr) => self.default(expr)?,
            ColumnOption::PrimaryKey(primary) => {
                let deferral = foreign_key::deferral(primary.characteristics.as_ref())?;
                self.key = Some(Key { name: named, deferral });
            }
            ColumnOption::Unique(unique) => {
                let deferral = foreign_key::deferral(unique.characteristics.as_ref())?;
                let nulls_distinct = unique.nulls_distinct != ast::NullsDistinctOption::NotDistinct;
                self.unique.push(Unique { name: named, nulls_distinct, deferral });
            }
            ColumnOption::ForeignKey(key) => {
                self.references.push(foreign_key::read(key, Some(&self.column.name), named)?);
            }
            ColumnOption::Check(check) => self.checks.push(Said { name: named, expr: (*check.expr).clone() }),
            ColumnOption::Generated { generated_as, sequence_options, generation_expr: None, .. } => {
                self.identity(*generated_as, sequence_options.as_deref().unwrap_or_default())?;
            }
            ColumnOption::Generated { .. } => return Err(SqlError::unsupported("a generated column")),
            other => return Err(SqlError::unsupported(format!("the column option {other}"))),
        }
        Ok(())
    }

    fn default(&mut self, expr: &Expr) -> SqlResult<()> {
        if self.draws.is_some() || self.column.default.is_some() {
            let message = format!("multiple default values specified for column \"{}\"", self.column.name);
            return Err(SqlError::syntax(message));
        }
        if let Expr::Function(function) = expr
            && let Some(sequence) = next_value_of(function)
        {
            if !self.column.column_type.pg_type.is_integer() {
                return Err(SqlError::unsupported("nextval as the default of a column that is no integer"));
            }
            self.draws = Some(Draws::Named(sequence));
        } else {
            default::compile_expr(expr, &self.column)?;
        }
        self.column.default = Some(expr.to_string());
        Ok(())
    }

    fn identity(&mut self, generated_as: GeneratedAs, options: &[ast::SequenceOptions]) -> SqlResult<()> {
        self.column.identity = Some(match generated_as {
            GeneratedAs::Always => Identity::Always,
            GeneratedAs::ByDefault => Identity::ByDefault,
            GeneratedAs::ExpStored => return Err(SqlError::unsupported("a generated column")),
        });
        if self.draws.is_some() || self.column.default.is_some() {
            let message = format!("both default and identity specified for column \"{}\"", self.column.name);
            return Err(SqlError::syntax(message));
        }
        if !self.column.column_type.pg_type.is_integer() {
            let message = "identity column type must be smallint, integer, or bigint";
            return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        self.column.nullable = false;
        self.draws = Some(Draws::New(identity_options(options)?));
        Ok(())
    }
}

/// The sequence's name in `nextval('name')` or `nextval('name'::regclass)`.
pub fn next_value_of(function: &ast::Function) -> Option<String> {
    let name = function.name.0.last()?.as_ident().map(folded)?;
    let FunctionArguments::List(list) = &function.args else { return None };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = list.args.as_slice() else { return None };
    if name != "nextval" || function.over.is_some() {
        return None;
    }
    literal(argument)
}

fn literal(argument: &Expr) -> Option<String> {
    match argument {
        Expr::Cast { expr, data_type: ast::DataType::Regclass | ast::DataType::Text, .. } => literal(expr),
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn serial(definition: &ColumnDef) -> Option<PgType> {
    match definition.data_type.to_string().to_ascii_lowercase().as_str() {
        "smallserial" | "serial2" => Some(PgType::Int2),
        "serial" | "serial4" => Some(PgType::Int4),
        "bigserial" | "serial8" => Some(PgType::Int8),
        _ => None,
    }
}

fn storable(column_type: ColumnType) -> SqlResult<()> {
    let row: &TypeRow = column_type.pg_type.row();
    match row.pg_type {
        PgType::Unknown | PgType::Void => Err(SqlError::new(
            SqlState::INVALID_TABLE_DEFINITION,
            format!("a column cannot have pseudo-type {}", row.name),
        )),
        PgType::Regclass | PgType::Regtype | PgType::Char => {
            Err(SqlError::unsupported(format!("a column of type {}", row.name)))
        }
        PgType::Numeric if column_type.precision_scale().is_none() => {
            Err(SqlError::unsupported("a numeric column without precision")
                .with_hint("Write numeric(p, s), with p up to 38."))
        }
        _ => Ok(()),
    }
}
