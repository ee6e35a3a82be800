//! Oids of objects that have no descriptor: schemas, databases, owners, access methods. They are PostgreSQL's own.

use crate::{
    catalog::{
        CatalogSnapshot, Table, TableDescriptor,
        descriptor::{IndexDescriptor, PUBLIC_SCHEMA},
    },
    error::{SqlError, SqlResult, SqlState},
};

/// pg_catalog
pub const PG_CATALOG_NAMESPACE: u32 = 11;
/// public
pub const PUBLIC_NAMESPACE: u32 = 2200;
/// information_schema
pub const INFORMATION_NAMESPACE: u32 = 13_212;
/// The bootstrap superuser.
pub const OWNER: u32 = 10;
/// The access method of tables.
pub const HEAP: u32 = 2;
/// The access method of indexes.
pub const BTREE: u32 = 403;
/// The default collation.
pub const DEFAULT_COLLATION: u32 = 100;
/// The "C" collation.
pub const C_COLLATION: u32 = 950;
/// The database `postgres`.
pub const DATABASE: u32 = 5;
/// pg_default, the tablespace of everything.
pub const TABLESPACE: u32 = 1663;
/// `pg_class`, for columns that say which catalog an object is of.
pub const PG_CLASS: u32 = 1259;
/// Added to a table's id for its primary key's index, and twice for the constraint.
const PRIMARY_KEY_OFFSET: u32 = 1 << 29;

/// The index of a table's primary key.
pub fn primary_index(table: &TableDescriptor) -> u32 {
    table.id + PRIMARY_KEY_OFFSET
}

/// A table's primary key constraint.
pub fn primary_constraint(table: &TableDescriptor) -> u32 {
    table.id + 2 * PRIMARY_KEY_OFFSET
}

/// A UNIQUE constraint's.
pub fn unique_constraint(index: &IndexDescriptor) -> u32 {
    index.id + PRIMARY_KEY_OFFSET
}

/// A column's default.
pub fn default(table: &TableDescriptor, column_id: u32) -> u32 {
    // Tables have at most 1600 columns; the ids stay apart from all others.
    3 * PRIMARY_KEY_OFFSET + table.id.wrapping_mul(2048) + column_id
}

/// The oid of a schema by name.
pub fn namespace(name: &str) -> SqlResult<u32> {
    match name {
        "pg_catalog" => Ok(PG_CATALOG_NAMESPACE),
        PUBLIC_SCHEMA => Ok(PUBLIC_NAMESPACE),
        "information_schema" => Ok(INFORMATION_NAMESPACE),
        _ => Err(SqlError::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{name}\" does not exist"))),
    }
}

/// The schema of an oid.
pub fn namespace_name(oid: u32) -> Option<&'static str> {
    match oid {
        PG_CATALOG_NAMESPACE => Some("pg_catalog"),
        PUBLIC_NAMESPACE => Some(PUBLIC_SCHEMA),
        INFORMATION_NAMESPACE => Some("information_schema"),
        _ => None,
    }
}

/// System tables that statements name by `'…'::regclass`, with PostgreSQL's oids.
pub const SYSTEM_RELATIONS: [(&str, u32); 24] = [
    ("pg_class", PG_CLASS),
    ("pg_type", 1247),
    ("pg_attribute", 1249),
    ("pg_proc", 1255),
    ("pg_namespace", 2615),
    ("pg_constraint", 2606),
    ("pg_index", 2610),
    ("pg_attrdef", 2604),
    ("pg_database", 1262),
    ("pg_am", 2601),
    ("pg_authid", 1260),
    ("pg_tablespace", 1213),
    ("pg_cast", 2605),
    ("pg_conversion", 2607),
    ("pg_description", 2609),
    ("pg_language", 2612),
    ("pg_operator", 2617),
    ("pg_rewrite", 2618),
    ("pg_trigger", 2620),
    ("pg_extension", 3079),
    ("pg_collation", 3456),
    ("pg_event_trigger", 3466),
    ("pg_publication", 6104),
    ("pg_subscription", 6100),
];

/// The oid of a relation as `'schema.name'::regclass` writes it; 42P01 when there is none.
pub fn relation(snapshot: &CatalogSnapshot, text: &str) -> SqlResult<u32> {
    let parts = split_name(text);
    let (schema, name) = match parts.as_slice() {
        [name] => (None, name.as_str()),
        [schema, name] | [_, schema, name] => (Some(schema.as_str()), name.as_str()),
        _ => return Err(SqlError::new(SqlState::INVALID_NAME, "invalid name syntax")),
    };
    if schema.is_none_or(|schema| schema == "pg_catalog")
        && let Some((_, oid)) = SYSTEM_RELATIONS.iter().find(|(known, _)| *known == name)
    {
        return Ok(*oid);
    }
    if let Some(table) = snapshot.table(schema.unwrap_or(PUBLIC_SCHEMA), name) {
        return Ok(table.id);
    }
    if let Ok(sequence) = snapshot.resolve_sequence(schema, name) {
        return Ok(sequence.id);
    }
    let of = |table: &Table| {
        let index = table.indexes.iter().find(|index| index.name == name).map(|index| index.id);
        index.or_else(|| (table.primary_key.as_deref() == Some(name)).then(|| primary_index(table)))
    };
    snapshot.tables().find_map(of).ok_or_else(|| SqlError::undefined_table(text))
}

/// Splits `a."B c".d` at its dots; unquoted parts are folded.
pub fn split_name(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut().expect("never empty");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            other if quoted => part.push(other),
            other => part.extend(other.to_lowercase()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_dots_outside_of_quotes() {
        assert_eq!(split_name("Public.\"A.b\"\"c\""), ["public", "A.b\"c"]);
    }
}
