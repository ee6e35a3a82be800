//! What is not in schemas: schemas themselves, databases, roles, access methods, collations, settings.

use super::{
    oids,
    table::{ColumnSpec, SystemTable, int4, oid, text, truth},
};
use crate::{
    catalog::CatalogSnapshot,
    query::functions::standard::UTF8_ENCODING,
    types::PgType::{Bool, Char, Int4, Name, Oid, Text, TimestampTz},
};

const PG_NAMESPACE: [ColumnSpec; 4] = [("oid", Oid), ("nspname", Name), ("nspowner", Oid), ("nspacl", Text)];

const PG_DATABASE: [ColumnSpec; 17] = [
    ("oid", Oid),
    ("datname", Name),
    ("datdba", Oid),
    ("encoding", Int4),
    ("datlocprovider", Char),
    ("datistemplate", Bool),
    ("datallowconn", Bool),
    ("datconnlimit", Int4),
    ("datfrozenxid", Text),
    ("datminmxid", Text),
    ("dattablespace", Oid),
    ("datcollate", Text),
    ("datctype", Text),
    ("daticulocale", Text),
    ("datcollversion", Text),
    ("datacl", Text),
    ("datlastsysoid", Oid),
];

const PG_ROLES: [ColumnSpec; 13] = [
    ("rolname", Name),
    ("rolsuper", Bool),
    ("rolinherit", Bool),
    ("rolcreaterole", Bool),
    ("rolcreatedb", Bool),
    ("rolcanlogin", Bool),
    ("rolreplication", Bool),
    ("rolconnlimit", Int4),
    ("rolpassword", Text),
    ("rolvaliduntil", TimestampTz),
    ("rolbypassrls", Bool),
    ("rolconfig", Text),
    ("oid", Oid),
];

const PG_USER: [ColumnSpec; 9] = [
    ("usename", Name),
    ("usesysid", Oid),
    ("usecreatedb", Bool),
    ("usesuper", Bool),
    ("userepl", Bool),
    ("usebypassrls", Bool),
    ("passwd", Text),
    ("valuntil", TimestampTz),
    ("useconfig", Text),
];

const PG_AM: [ColumnSpec; 4] = [("oid", Oid), ("amname", Name), ("amhandler", Text), ("amtype", Char)];

const PG_COLLATION: [ColumnSpec; 11] = [
    ("oid", Oid),
    ("collname", Name),
    ("collnamespace", Oid),
    ("collowner", Oid),
    ("collprovider", Char),
    ("collisdeterministic", Bool),
    ("collencoding", Int4),
    ("collcollate", Text),
    ("collctype", Text),
    ("colliculocale", Text),
    ("collversion", Text),
];

const PG_TABLESPACE: [ColumnSpec; 5] =
    [("oid", Oid), ("spcname", Name), ("spcowner", Oid), ("spcacl", Text), ("spcoptions", Text)];

const PG_LANGUAGE: [ColumnSpec; 9] = [
    ("oid", Oid),
    ("lanname", Name),
    ("lanowner", Oid),
    ("lanispl", Bool),
    ("lanpltrusted", Bool),
    ("lanplcallfoid", Oid),
    ("laninline", Oid),
    ("lanvalidator", Oid),
    ("lanacl", Text),
];

const PG_SETTINGS: [ColumnSpec; 7] = [
    ("name", Text),
    ("setting", Text),
    ("unit", Text),
    ("category", Text),
    ("short_desc", Text),
    ("context", Text),
    ("vartype", Text),
];

/// Settings that clients read and that are the same in every session.
const SETTINGS: [(&str, &str, &str); 8] = [
    ("server_version", crate::query::functions::standard::SERVER_VERSION, "string"),
    ("server_version_num", crate::query::functions::standard::SERVER_VERSION_NUM, "integer"),
    ("server_encoding", "UTF8", "string"),
    ("standard_conforming_strings", "on", "bool"),
    ("integer_datetimes", "on", "bool"),
    ("max_identifier_length", "63", "integer"),
    ("max_index_keys", "32", "integer"),
    ("block_size", "8192", "integer"),
];

/// One of the tables of this file.
pub fn build(_snapshot: &CatalogSnapshot, name: &str) -> Option<SystemTable> {
    Some(match name {
        "pg_namespace" => pg_namespace(),
        "pg_database" => pg_database(),
        "pg_roles" | "pg_authid" => pg_roles(),
        "pg_user" => pg_user(),
        "pg_am" => pg_am(),
        "pg_collation" => pg_collation(),
        "pg_tablespace" => pg_tablespace(),
        "pg_language" => pg_language(),
        "pg_settings" => pg_settings(),
        _ => return None,
    })
}

fn pg_namespace() -> SystemTable {
    let mut rows = SystemTable::new(&PG_NAMESPACE);
    for id in [oids::PG_CATALOG_NAMESPACE, oids::PUBLIC_NAMESPACE, oids::INFORMATION_NAMESPACE] {
        let name = oids::namespace_name(id).unwrap_or_default();
        rows.push(&[("oid", oid(id)), ("nspname", text(name)), ("nspowner", oid(oids::OWNER))]);
    }
    rows
}

fn pg_database() -> SystemTable {
    let mut rows = SystemTable::new(&PG_DATABASE);
    rows.push(&[
        ("oid", oid(oids::DATABASE)),
        ("datname", text("postgres")),
        ("datdba", oid(oids::OWNER)),
        ("encoding", int4(UTF8_ENCODING as i32)),
        ("datlocprovider", text("c")),
        ("datistemplate", truth(false)),
        ("datallowconn", truth(true)),
        ("datconnlimit", int4(-1)),
        ("datfrozenxid", text("0")),
        ("datminmxid", text("0")),
        ("dattablespace", oid(oids::TABLESPACE)),
        ("datcollate", text("C")),
        ("datctype", text("C")),
        ("datlastsysoid", oid(0)),
    ]);
    rows
}

fn pg_roles() -> SystemTable {
    let mut rows = SystemTable::new(&PG_ROLES);
    rows.push(&[
        ("rolname", text("postgres")),
        ("rolsuper", truth(true)),
        ("rolinherit", truth(true)),
        ("rolcreaterole", truth(true)),
        ("rolcreatedb", truth(true)),
        ("rolcanlogin", truth(true)),
        ("rolreplication", truth(true)),
        ("rolconnlimit", int4(-1)),
        ("rolpassword", text("********")),
        ("rolbypassrls", truth(true)),
        ("oid", oid(oids::OWNER)),
    ]);
    rows
}

fn pg_user() -> SystemTable {
    let mut rows = SystemTable::new(&PG_USER);
    rows.push(&[
        ("usename", text("postgres")),
        ("usesysid", oid(oids::OWNER)),
        ("usecreatedb", truth(true)),
        ("usesuper", truth(true)),
        ("userepl", truth(true)),
        ("usebypassrls", truth(true)),
        ("passwd", text("********")),
    ]);
    rows
}

fn pg_am() -> SystemTable {
    let mut rows = SystemTable::new(&PG_AM);
    for (id, name, handler, kind) in
        [(oids::HEAP, "heap", "heap_tableam_handler", "t"), (oids::BTREE, "btree", "bthandler", "i")]
    {
        rows.push(&[("oid", oid(id)), ("amname", text(name)), ("amhandler", text(handler)), ("amtype", text(kind))]);
    }
    rows
}

fn pg_collation() -> SystemTable {
    let mut rows = SystemTable::new(&PG_COLLATION);
    for (id, name, provider) in
        [(oids::DEFAULT_COLLATION, "default", "d"), (oids::C_COLLATION, "C", "c"), (951, "POSIX", "c")]
    {
        rows.push(&[
            ("oid", oid(id)),
            ("collname", text(name)),
            ("collnamespace", oid(oids::PG_CATALOG_NAMESPACE)),
            ("collowner", oid(oids::OWNER)),
            ("collprovider", text(provider)),
            ("collisdeterministic", truth(true)),
            ("collencoding", int4(-1)),
            ("collcollate", text(name)),
            ("collctype", text(name)),
        ]);
    }
    rows
}

fn pg_tablespace() -> SystemTable {
    let mut rows = SystemTable::new(&PG_TABLESPACE);
    rows.push(&[("oid", oid(oids::TABLESPACE)), ("spcname", text("pg_default")), ("spcowner", oid(oids::OWNER))]);
    rows
}

fn pg_language() -> SystemTable {
    let mut rows = SystemTable::new(&PG_LANGUAGE);
    rows.push(&[
        ("oid", oid(14)),
        ("lanname", text("sql")),
        ("lanowner", oid(oids::OWNER)),
        ("lanispl", truth(false)),
        ("lanpltrusted", truth(true)),
        ("lanplcallfoid", oid(0)),
        ("laninline", oid(0)),
        ("lanvalidator", oid(0)),
    ]);
    rows
}

fn pg_settings() -> SystemTable {
    let mut rows = SystemTable::new(&PG_SETTINGS);
    for (name, setting, kind) in SETTINGS {
        rows.push(&[
            ("name", text(name)),
            ("setting", text(setting)),
            ("category", text("Preset Options")),
            ("short_desc", text("")),
            ("context", text("internal")),
            ("vartype", text(kind)),
        ]);
    }
    rows
}
