//! System tables of things FlareDB does not have: PostgreSQL's columns (those that psql and drivers name), no rows.

use super::table::{ColumnSpec, SystemTable};
use crate::types::PgType::{Bool, Char, Float4, Int2, Int4, Name, Oid, Text};

/// Name and columns of each.
const TABLES: [(&str, &[ColumnSpec]); 29] = [
    ("pg_inherits", &[("inhrelid", Oid), ("inhparent", Oid), ("inhseqno", Int4), ("inhdetachpending", Bool)]),
    ("pg_description", &[("objoid", Oid), ("classoid", Oid), ("objsubid", Int4), ("description", Text)]),
    ("pg_shdescription", &[("objoid", Oid), ("classoid", Oid), ("description", Text)]),
    (
        "pg_extension",
        &[
            ("oid", Oid),
            ("extname", Name),
            ("extowner", Oid),
            ("extnamespace", Oid),
            ("extrelocatable", Bool),
            ("extversion", Text),
        ],
    ),
    (
        "pg_proc",
        &[
            ("oid", Oid),
            ("proname", Name),
            ("pronamespace", Oid),
            ("proowner", Oid),
            ("prolang", Oid),
            ("prokind", Char),
            ("proisstrict", Bool),
            ("proretset", Bool),
            ("provolatile", Char),
            ("pronargs", Int2),
            ("prorettype", Oid),
            ("proargtypes", Text),
            ("prosrc", Text),
            ("proacl", Text),
        ],
    ),
    (
        "pg_trigger",
        &[
            ("oid", Oid),
            ("tgrelid", Oid),
            ("tgparentid", Oid),
            ("tgname", Name),
            ("tgfoid", Oid),
            ("tgtype", Int2),
            ("tgenabled", Char),
            ("tgisinternal", Bool),
            ("tgconstrrelid", Oid),
            ("tgconstrindid", Oid),
            ("tgconstraint", Oid),
            ("tgdeferrable", Bool),
            ("tginitdeferred", Bool),
            ("tgnargs", Int2),
        ],
    ),
    ("pg_rewrite", &[("oid", Oid), ("rulename", Name), ("ev_class", Oid), ("ev_type", Char), ("ev_enabled", Char)]),
    (
        "pg_policy",
        &[
            ("oid", Oid),
            ("polname", Name),
            ("polrelid", Oid),
            ("polcmd", Char),
            ("polpermissive", Bool),
            ("polroles", Text),
            ("polqual", Text),
            ("polwithcheck", Text),
        ],
    ),
    ("pg_policies", &[("schemaname", Name), ("tablename", Name), ("policyname", Name)]),
    (
        "pg_publication",
        &[
            ("oid", Oid),
            ("pubname", Name),
            ("pubowner", Oid),
            ("puballtables", Bool),
            ("pubinsert", Bool),
            ("pubupdate", Bool),
            ("pubdelete", Bool),
            ("pubtruncate", Bool),
            ("pubviaroot", Bool),
        ],
    ),
    ("pg_publication_rel", &[("oid", Oid), ("prpubid", Oid), ("prrelid", Oid), ("prqual", Text), ("prattrs", Text)]),
    ("pg_publication_namespace", &[("oid", Oid), ("pnpubid", Oid), ("pnnspid", Oid)]),
    ("pg_subscription", &[("oid", Oid), ("subdbid", Oid), ("subname", Name), ("subowner", Oid), ("subenabled", Bool)]),
    (
        "pg_statistic_ext",
        &[
            ("oid", Oid),
            ("stxrelid", Oid),
            ("stxname", Name),
            ("stxnamespace", Oid),
            ("stxowner", Oid),
            ("stxstattarget", Int4),
            ("stxkeys", Text),
            ("stxkind", Text),
            ("stxexprs", Text),
        ],
    ),
    ("pg_foreign_table", &[("ftrelid", Oid), ("ftserver", Oid), ("ftoptions", Text)]),
    ("pg_foreign_server", &[("oid", Oid), ("srvname", Name), ("srvowner", Oid), ("srvfdw", Oid), ("srvtype", Text)]),
    ("pg_foreign_data_wrapper", &[("oid", Oid), ("fdwname", Name), ("fdwowner", Oid)]),
    (
        "pg_partitioned_table",
        &[("partrelid", Oid), ("partstrat", Char), ("partnatts", Int2), ("partdefid", Oid), ("partattrs", Text)],
    ),
    ("pg_views", &[("schemaname", Name), ("viewname", Name), ("viewowner", Name), ("definition", Text)]),
    ("pg_matviews", &[("schemaname", Name), ("matviewname", Name), ("matviewowner", Name), ("definition", Text)]),
    ("pg_enum", &[("oid", Oid), ("enumtypid", Oid), ("enumsortorder", Float4), ("enumlabel", Name)]),
    (
        "pg_range",
        &[
            ("rngtypid", Oid),
            ("rngsubtype", Oid),
            ("rngmultitypid", Oid),
            ("rngcollation", Oid),
            ("rngsubopc", Oid),
            ("rngcanonical", Text),
            ("rngsubdiff", Text),
        ],
    ),
    ("pg_auth_members", &[("roleid", Oid), ("member", Oid), ("grantor", Oid), ("admin_option", Bool)]),
    ("pg_db_role_setting", &[("setdatabase", Oid), ("setrole", Oid), ("setconfig", Text)]),
    (
        "pg_event_trigger",
        &[("oid", Oid), ("evtname", Name), ("evtevent", Name), ("evtowner", Oid), ("evtenabled", Char)],
    ),
    ("pg_operator", &[("oid", Oid), ("oprname", Name), ("oprnamespace", Oid), ("oprleft", Oid), ("oprright", Oid)]),
    ("pg_opclass", &[("oid", Oid), ("opcmethod", Oid), ("opcname", Name), ("opcintype", Oid), ("opcdefault", Bool)]),
    ("pg_aggregate", &[("aggfnoid", Oid), ("aggkind", Char)]),
    ("pg_cast", &[("oid", Oid), ("castsource", Oid), ("casttarget", Oid), ("castfunc", Oid), ("castcontext", Char)]),
];

/// The empty table of that name.
pub fn build(name: &str) -> Option<SystemTable> {
    TABLES.iter().find(|(known, _)| *known == name).map(|(_, columns)| SystemTable::new(columns))
}
