//! Functions that answer from the catalog: names and definitions of objects.

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

use super::oids;
use crate::{
    catalog::{CatalogSnapshot, TableDescriptor},
    error::SqlResult,
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

const DECLARATIONS: [Declaration<Names>; 6] = [
    declare("pg_table_is_visible", (1, 1), PgType::Bool, |names, a| Ok(Datum::Bool(names.is_visible(&a[0])))),
    declare("regclass_name", (1, 1), PgType::Text, |names, a| Ok(names.relation_name(&a[0]))),
    declare("regnamespace_name", (1, 1), PgType::Text, |_, a| {
        Ok(number(&a[0]).and_then(oids::namespace_name).map_or_else(|| as_digits(&a[0]), Datum::text))
    }),
    declare("pg_get_constraintdef", (1, 2), PgType::Text, |names, a| Ok(names.constraint_definition(&a[0]))),
    declare("pg_get_indexdef", (1, 3), PgType::Text, |names, a| Ok(names.index_definition(&a[0], a.get(1)))),
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
        relation.is_some_and(|table| table.schema == crate::catalog::descriptor::PUBLIC_SCHEMA)
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
            None => self.key_of(datum, oids::primary_index).and_then(|table| table.primary_key.clone()),
        };
        name.map_or_else(|| as_digits(datum), |name| Datum::text(quote_ident(&name)))
    }

    fn constraint_definition(&self, datum: &Datum) -> Datum {
        self.key_of(datum, oids::primary_constraint)
            .map_or(Datum::Null, |table| Datum::text(format!("PRIMARY KEY ({})", key_columns(table).join(", "))))
    }

    /// The whole index, or with a column number that column's name.
    fn index_definition(&self, datum: &Datum, column: Option<&Datum>) -> Datum {
        let Some(table) = self.key_of(datum, oids::primary_index) else { return Datum::Null };
        let columns = key_columns(table);
        match column.and_then(Datum::as_i64) {
            Some(at) if at > 0 => columns.get(at as usize - 1).map_or(Datum::Null, |name| Datum::text(name.as_str())),
            _ => Datum::text(format!(
                "CREATE UNIQUE INDEX {} ON {}.{} USING btree ({})",
                quote_ident(table.primary_key.as_deref().unwrap_or_default()),
                quote_ident(&table.schema),
                quote_ident(&table.name),
                columns.join(", ")
            )),
        }
    }

    fn to_regclass(&self, datum: &Datum) -> SqlResult<Datum> {
        let Datum::Text(text) = datum else { return Ok(Datum::Null) };
        Ok(oids::relation(&self.0, text.as_str()).map_or(Datum::Null, Datum::Oid))
    }
}

fn key_columns(table: &TableDescriptor) -> Vec<String> {
    table.key.iter().map(|at| quote_ident(&table.columns[*at].name)).collect()
}
