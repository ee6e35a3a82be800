//! Functions that answer from the catalog: names and definitions of objects.

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use super::oids;
use crate::{
    catalog::{
        CatalogSnapshot, Sequence, TableDescriptor,
        descriptor::{IndexColumn, IndexDescriptor},
        sequence::Owner,
    },
    error::{SqlError, SqlResult, SqlState},
    query::functions::{
        scalar::{self, Declaration, Scope},
        standard::quote_ident,
    },
    types::{ColumnType, Datum, NO_TYPE_MOD, PgType},
};

/// The snapshot that a statement was planned against.
#[derive(Clone, Debug)]
pub struct Names(Arc<CatalogSnapshot>);

impl Scope for Names {
    fn identity(&self) -> u64 {
        self.0.version
    }
}

const fn plain(pg_type: PgType) -> ColumnType {
    ColumnType { pg_type, type_mod: NO_TYPE_MOD }
}

const fn declare(
    name: &'static str,
    arity: (usize, usize),
    returns: PgType,
    body: scalar::Body<Names>,
) -> Declaration<Names> {
    Declaration { name, arity, returns: plain(returns), strict: true, body }
}

const DECLARATIONS: [Declaration<Names>; 7] = [
    declare("pg_table_is_visible", (1, 1), PgType::Bool, |names, a| Ok(Datum::Bool(names.is_visible(&a[0])))),
    declare("regclass_name", (1, 1), PgType::Text, |names, a| Ok(names.relation_name(&a[0]))),
    declare("regnamespace_name", (1, 1), PgType::Text, |_, a| {
        Ok(number(&a[0]).and_then(oids::namespace_name).map_or_else(|| as_digits(&a[0]), Datum::text))
    }),
    declare("pg_get_constraintdef", (1, 2), PgType::Text, |names, a| Ok(names.constraint_definition(&a[0]))),
    declare("pg_get_indexdef", (1, 3), PgType::Text, |names, a| Ok(names.index_definition(&a[0], a.get(1)))),
    declare("pg_get_serial_sequence", (2, 2), PgType::Text, |names, a| names.serial_sequence(&a[0], &a[1])),
    declare("to_regclass", (1, 1), PgType::Oid, |names, a| names.to_regclass(&a[0])),
];

/// The function of that name over `snapshot`, if it is one of these.
pub fn function(name: &str, snapshot: &Arc<CatalogSnapshot>) -> Option<Arc<ScalarUDF>> {
    let declaration = DECLARATIONS.iter().find(|declaration| declaration.name == name)?;
    Some(Arc::new(scalar::build(*declaration, Names(Arc::clone(snapshot)))))
}

fn number(datum: &Datum) -> Option<u32> {
    datum.as_i64().and_then(|value| u32::try_from(value).ok())
}

fn as_digits(datum: &Datum) -> Datum {
    Datum::text(datum.as_i64().unwrap_or(0).to_string())
}

impl Names {
    fn table_of(&self, datum: &Datum) -> Option<&Arc<TableDescriptor>> {
        self.0.by_id(number(datum)?)
    }

    fn key_of(&self, datum: &Datum, id_of: fn(&TableDescriptor) -> u32) -> Option<&Arc<TableDescriptor>> {
        let id = number(datum)?;
        self.0.tables().find(|table| table.primary_key.is_some() && id_of(table) == id)
    }

    /// Relations of `public` and `pg_catalog` are found without a schema.
    fn is_visible(&self, datum: &Datum) -> bool {
        let relation = self.table_of(datum).or_else(|| self.key_of(datum, oids::primary_index));
        let relation = relation.or_else(|| self.index_of(datum).map(|(table, _)| table));
        let schema = match (relation, self.sequence_of(datum)) {
            (Some(table), _) => &table.schema,
            (None, Some(sequence)) => &sequence.schema,
            (None, None) => return false,
        };
        schema == crate::catalog::descriptor::PUBLIC_SCHEMA
    }

    fn relation_name(&self, datum: &Datum) -> Datum {
        if number(datum) == Some(0) {
            return Datum::text("-");
        }
        if let Some((name, _)) = oids::SYSTEM_RELATIONS.iter().find(|(_, oid)| Some(*oid) == number(datum)) {
            return Datum::text(*name);
        }
        let name = match self.table_of(datum) {
            Some(table) => Some(table.name.clone()),
            None => self
                .key_of(datum, oids::primary_index)
                .and_then(|table| table.primary_key.clone())
                .or_else(|| self.index_of(datum).map(|(_, index)| index.name.clone()))
                .or_else(|| self.sequence_of(datum).map(|sequence| sequence.name.clone())),
        };
        name.map_or_else(|| as_digits(datum), |name| Datum::text(quote_ident(&name)))
    }

    fn index_of(&self, datum: &Datum) -> Option<(&Arc<TableDescriptor>, &IndexDescriptor)> {
        let id = number(datum)?;
        self.0.tables().find_map(|table| Some((table, table.indexes.iter().find(|index| index.id == id)?)))
    }

    fn sequence_of(&self, datum: &Datum) -> Option<&Sequence> {
        self.0.sequence(number(datum)?)
    }

    fn constraint_definition(&self, datum: &Datum) -> Datum {
        if let Some(table) = self.key_of(datum, oids::primary_constraint) {
            return Datum::text(format!("PRIMARY KEY ({})", key_columns(table).join(", ")));
        }
        let check = self.0.tables().find_map(|table| table.checks.iter().find(|check| Some(check.id) == number(datum)));
        if let Some(check) = check {
            return Datum::text(format!("CHECK (({}))", check.expr));
        }
        if let Some(definition) = self.foreign_key_definition(datum) {
            return definition;
        }
        let unique = self.0.tables().find_map(|table| {
            let is = |index: &&IndexDescriptor| Some(oids::unique_constraint(index)) == number(datum);
            table.indexes.iter().filter(|index| index.constraint).find(is).map(|index| (table, index))
        });
        unique.map_or(Datum::Null, |(table, index)| {
            let columns = index.columns.iter().map(|column| quote_ident(&table.columns[column.at].name));
            let kind = match (index.primary, index.nulls_distinct) {
                (true, _) => "PRIMARY KEY",
                (false, true) => "UNIQUE",
                (false, false) => "UNIQUE NULLS NOT DISTINCT",
            };
            let columns = columns.collect::<Vec<_>>().join(", ");
            Datum::text(format!("{kind} ({columns}){}", index.deferral.words()))
        })
    }

    fn foreign_key_definition(&self, datum: &Datum) -> Option<Datum> {
        let id = number(datum)?;
        let found = |table: &Arc<TableDescriptor>| {
            Some((Arc::clone(table), table.foreign_keys.iter().find(|key| key.id == id)?.clone()))
        };
        let (child, key) = self.0.tables().find_map(found)?;
        let parent = self.0.by_id(key.parent)?;
        Some(Datum::text(key.definition(&child, parent)))
    }

    /// The whole index, or with a column number that column's name.
    fn index_definition(&self, datum: &Datum, column: Option<&Datum>) -> Datum {
        let (columns, definition) = match (self.key_of(datum, oids::primary_index), self.index_of(datum)) {
            (Some(table), _) => (key_columns(table), primary_index_definition(table)),
            (None, Some((table, index))) => {
                let name = |column: &IndexColumn| quote_ident(&table.columns[column.at].name);
                (index.columns.iter().map(name).collect(), index_definition(table, index))
            }
            (None, None) => return Datum::Null,
        };
        match column.and_then(Datum::as_i64) {
            Some(at) if at > 0 => columns.get(at as usize - 1).map_or(Datum::Null, |name| Datum::text(name.as_str())),
            _ => Datum::text(definition),
        }
    }

    fn serial_sequence(&self, table: &Datum, column: &Datum) -> SqlResult<Datum> {
        let (Datum::Text(table), Datum::Text(column)) = (table, column) else { return Ok(Datum::Null) };
        let found = self.0.by_id(oids::relation(&self.0, table.as_str())?);
        let found = found.ok_or_else(|| {
            SqlError::new(SqlState::WRONG_OBJECT_TYPE, format!("\"{}\" is not a table", table.as_str()))
        })?;
        let at =
            found.position(column.as_str()).ok_or_else(|| SqlError::undefined_column(column.as_str(), &found.name))?;
        let owner = Owner { table: found.id, column: found.columns[at].id };
        let owned = self.0.sequences().find(|sequence| sequence.owner == Some(owner));
        Ok(owned.map_or(Datum::Null, |sequence| {
            Datum::text(format!("{}.{}", quote_ident(&sequence.schema), quote_ident(&sequence.name)))
        }))
    }

    fn to_regclass(&self, datum: &Datum) -> SqlResult<Datum> {
        let Datum::Text(text) = datum else { return Ok(Datum::Null) };
        Ok(oids::relation(&self.0, text.as_str()).map_or(Datum::Null, Datum::Oid))
    }
}

fn key_columns(table: &TableDescriptor) -> Vec<String> {
    table.key.iter().map(|at| quote_ident(&table.columns[*at].name)).collect()
}

/// The CREATE INDEX that would make a primary key's index.
pub fn primary_index_definition(table: &TableDescriptor) -> String {
    definition(table, true, table.primary_key.as_deref().unwrap_or_default(), &key_columns(table), "")
}

/// The CREATE INDEX that makes an index.
pub fn index_definition(table: &TableDescriptor, index: &IndexDescriptor) -> String {
    let column = |column: &IndexColumn| {
        let name = quote_ident(&table.columns[column.at].name);
        let suffix = match (column.descending, column.nulls_first) {
            (false, false) => "",
            (false, true) => " NULLS FIRST",
            (true, true) => " DESC",
            (true, false) => " DESC NULLS LAST",
        };
        format!("{name}{suffix}")
    };
    let columns: Vec<String> = index.columns.iter().map(column).collect();
    let nulls = if index.unique && !index.nulls_distinct { " NULLS NOT DISTINCT" } else { "" };
    definition(table, index.unique, &index.name, &columns, nulls)
}

fn definition(table: &TableDescriptor, unique: bool, name: &str, columns: &[String], end: &str) -> String {
    format!(
        "CREATE {}INDEX {} ON {}.{} USING btree ({}){end}",
        if unique { "UNIQUE " } else { "" },
        quote_ident(name),
        quote_ident(&table.schema),
        quote_ident(&table.name),
        columns.join(", ")
    )
}
