//! Identifiers as PostgreSQL reads them: folded to lower case unless quoted, and qualified by a schema. PURE.

use std::borrow::Cow;

use datafusion::sql::sqlparser::ast::{Ident, ObjectName};

use crate::{
    catalog::descriptor::PUBLIC_SCHEMA,
    error::{SqlError, SqlResult, SqlState},
    types::text::MAX_NAME_BYTES,
};

/// The name an identifier means: lower case unless quoted, cut at 63 bytes.
pub fn folded(ident: &Ident) -> String {
    let mut name = if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() };
    if name.len() > MAX_NAME_BYTES {
        let end = (0..=MAX_NAME_BYTES).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
        name.truncate(end);
    }
    name
}

/// A name as SQL writes it: in double quotes unless it consists of lower-case letters, digits and underscores.
pub fn quoted(name: &str) -> Cow<'_, str> {
    let plain = |at: usize, byte: u8| byte.is_ascii_lowercase() || byte == b'_' || (at > 0 && byte.is_ascii_digit());
    if !name.is_empty() && name.bytes().enumerate().all(|(at, byte)| plain(at, byte)) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// A relation's name with the schema that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationName {
    /// As said.
    pub schema: Option<String>,
    /// The name.
    pub name: String,
}

impl RelationName {
    /// From the parser's; a database in front must be ours, three parts at most.
    pub fn new(name: &ObjectName) -> SqlResult<Self> {
        let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
        match <[String; 1]>::try_from(parts) {
            Ok([name]) => Ok(RelationName { schema: None, name }),
            Err(mut parts) if parts.len() == 2 || parts.len() == 3 => {
                let name = parts.pop().unwrap_or_default();
                Ok(RelationName { schema: parts.pop(), name })
            }
            Err(_) => Err(SqlError::syntax(format!("improper qualified name (too many dotted names): {name}"))),
        }
    }
    /// The schema for a new object: `public`; 3F000 for one that does not exist, 42501 for a system schema.
    pub fn creation_schema(&self) -> SqlResult<&str> {
        match self.schema.as_deref() {
            None | Some(PUBLIC_SCHEMA) => Ok(PUBLIC_SCHEMA),
            Some(system @ ("pg_catalog" | "information_schema" | "flaredb")) => {
                Err(SqlError::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied for schema {system}")))
            }
            Some(other) => {
                Err(SqlError::new(SqlState::INVALID_SCHEMA_NAME, format!("schema \"{other}\" does not exist")))
            }
        }
    }
    /// As people write it.
    pub fn shown(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}.{}", self.name),
            None => self.name.clone(),
        }
    }
}
