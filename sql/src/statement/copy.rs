//! COPY's syntax. PURE.

use datafusion::sql::sqlparser::{
    ast::{Ident, ObjectName, Query},
    dialect::PostgreSqlDialect,
    keywords::Keyword,
    parser::{IsOptional, Parser, ParserError},
    tokenizer::Token,
};

use super::parse::syntax;
use crate::error::{SqlError, SqlResult, SqlState};

/// What is copied.
#[derive(Clone, Debug)]
pub enum CopySource {
    /// A table's rows; all columns when none is named.
    Table {
        /// The table.
        name: ObjectName,
        /// Its columns.
        columns: Vec<Ident>,
    },
    /// A query's rows; only out.
    Query(Box<Query>),
}

/// COPY … FROM STDIN or TO STDOUT in text format.
#[derive(Clone, Debug)]
pub struct CopyStatement {
    /// What.
    pub source: CopySource,
    /// TO STDOUT.
    pub out: bool,
    /// Between columns; one byte.
    pub delimiter: u8,
    /// What stands for NULL.
    pub null: String,
    /// The first line names the columns.
    pub header: bool,
}

/// Parses a COPY statement.
pub fn parse(sql: &str) -> SqlResult<CopyStatement> {
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).try_with_sql(sql).map_err(|e| syntax(e, sql))?;
    let (mut copy, binary) = head(&mut parser).map_err(|e| syntax(e, sql))?;
    if binary {
        return Err(SqlError::unsupported("COPY in binary format"));
    }
    if matches!(copy.source, CopySource::Query(_)) && !copy.out {
        return Err(SqlError::syntax("syntax error: COPY FROM needs a table"));
    }
    options(&mut parser, &mut copy).map_err(|fault| match fault {
        Fault::Parser(error) => syntax(error, sql),
        Fault::Sql(error) => error,
    })?;
    if copy.null.contains(['\n', '\r', copy.delimiter as char]) {
        return Err(SqlError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            "COPY null representation cannot use newline, carriage return or the delimiter",
        ));
    }
    Ok(copy)
}

enum Fault {
    Parser(ParserError),
    Sql(SqlError),
}

impl From<ParserError> for Fault {
    fn from(error: ParserError) -> Self {
        Fault::Parser(error)
    }
}

fn head(parser: &mut Parser<'_>) -> Result<(CopyStatement, bool), ParserError> {
    parser.expect_keyword(Keyword::COPY)?;
    let binary = parser.parse_keyword(Keyword::BINARY);
    let source = if parser.consume_token(&Token::LParen) {
        let query = parser.parse_query()?;
        parser.expect_token(&Token::RParen)?;
        CopySource::Query(query)
    } else {
        let name = parser.parse_object_name(false)?;
        let columns = parser.parse_parenthesized_column_list(IsOptional::Optional, false)?;
        CopySource::Table { name, columns }
    };
    let out = if parser.parse_keyword(Keyword::TO) {
        true
    } else {
        parser.expect_keyword(Keyword::FROM)?;
        false
    };
    parser.expect_keyword(if out { Keyword::STDOUT } else { Keyword::STDIN })?;
    Ok((CopyStatement { source, out, delimiter: b'\t', null: "\\N".into(), header: false }, binary))
}

fn options(parser: &mut Parser<'_>, copy: &mut CopyStatement) -> Result<(), Fault> {
    let _ = parser.parse_keyword(Keyword::WITH);
    if parser.consume_token(&Token::LParen) {
        loop {
            let name = parser.parse_identifier()?.value.to_ascii_lowercase();
            option(parser, copy, &name)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    } else {
        while !matches!(parser.peek_token().token, Token::EOF | Token::SemiColon) {
            let name = parser.parse_identifier()?.value.to_ascii_lowercase();
            if matches!(name.as_str(), "delimiter" | "null") {
                let _ = parser.parse_keyword(Keyword::AS);
            }
            option(parser, copy, &name)?;
        }
    }
    let _ = parser.consume_token(&Token::SemiColon);
    parser.expect_token(&Token::EOF)?;
    Ok(())
}

fn option(parser: &mut Parser<'_>, copy: &mut CopyStatement, name: &str) -> Result<(), Fault> {
    match name {
        "format" => match parser.parse_identifier()?.value.to_ascii_lowercase().as_str() {
            "text" => {}
            other @ ("csv" | "binary") => {
                return Err(Fault::Sql(SqlError::unsupported(format!("COPY in {other} format"))));
            }
            other => {
                return Err(Fault::Sql(SqlError::new(
                    SqlState::INVALID_PARAMETER_VALUE,
                    format!("COPY format \"{other}\" not recognized"),
                )));
            }
        },
        "csv" | "binary" => return Err(Fault::Sql(SqlError::unsupported(format!("COPY in {name} format")))),
        // A promise about visibility that rows of a new table keep anyway.
        "freeze" => {
            flag(parser)?;
        }
        "header" => copy.header = flag(parser)?,
        "delimiter" => {
            let text = parser.parse_literal_string()?;
            match text.as_bytes() {
                [one] if !one.is_ascii_alphanumeric() && !matches!(one, b'\\' | b'\r' | b'\n' | b'.') => {
                    copy.delimiter = *one;
                }
                [_] => {
                    return Err(Fault::Sql(SqlError::new(
                        SqlState::INVALID_PARAMETER_VALUE,
                        format!("COPY delimiter cannot be \"{text}\""),
                    )));
                }
                _ => {
                    return Err(Fault::Sql(SqlError::unsupported("a COPY delimiter that is not a single byte")));
                }
            }
        }
        "null" => copy.null = parser.parse_literal_string()?,
        "encoding" => {
            let encoding = parser.parse_literal_string()?;
            if !matches!(encoding.to_ascii_lowercase().as_str(), "utf8" | "utf-8" | "unicode") {
                return Err(Fault::Sql(SqlError::unsupported(format!("COPY in encoding {encoding}"))));
            }
        }
        other => {
            return Err(Fault::Sql(SqlError::syntax(format!("option \"{other}\" not recognized"))));
        }
    }
    Ok(())
}

/// An optional boolean: nothing is true.
fn flag(parser: &mut Parser<'_>) -> Result<bool, ParserError> {
    if matches!(parser.peek_token().token, Token::Comma | Token::RParen | Token::EOF | Token::SemiColon) {
        return Ok(true);
    }
    let token = parser.next_token();
    match token.token.to_string().to_ascii_lowercase().trim_matches('\'') {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => parser.expected("a boolean", token),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_is_understood() {
        let copy = parse("copy pgbench_accounts from stdin with (freeze on)").unwrap();
        assert!(!copy.out && copy.delimiter == b'\t' && copy.null == "\\N");
        let copy = parse("COPY t (a, \"B\") TO STDOUT (DELIMITER '|', NULL '')").unwrap();
        assert!(copy.out && copy.delimiter == b'|' && copy.null.is_empty());
        assert!(parse("COPY (SELECT 1) TO STDOUT").is_ok());
        assert!(parse("COPY t FROM STDIN NULL AS 'x' DELIMITER ','").is_ok());
        assert_eq!(parse("COPY t FROM STDIN CSV").unwrap_err().sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
        assert_eq!(parse("COPY t FROM STDIN (nonsense)").unwrap_err().sqlstate, SqlState::SYNTAX_ERROR);
        assert_eq!(parse("COPY t FROM").unwrap_err().sqlstate, SqlState::SYNTAX_ERROR);
    }
}
