//! One statement's text to a [`Command`], with PostgreSQL's syntax errors. PURE.

use std::sync::Arc;

use datafusion::sql::sqlparser::{
    ast,
    dialect::PostgreSqlDialect,
    parser::{Parser, ParserError},
};

use super::{Command, copy, split::skip_blank};
use crate::error::{SqlError, SqlResult, SqlState};

/// Deepest nesting of parentheses and subqueries that is parsed; deeper is 54001. What follows the parser recurses
/// too, on the 2 MiB stack of a runtime's thread.
const MAX_DEPTH: usize = 100;
/// Longest statement, in bytes; the parser needs many times as much memory.
pub const MAX_STATEMENT_BYTES: usize = 16 << 20;
/// Most operators in a row (`a + a + …`), which the parser makes as deep a tree of.
const MAX_TERMS: usize = 2000;

/// Parses one statement.
pub fn parse_one(sql: &str) -> SqlResult<Command> {
    if sql.len() > MAX_STATEMENT_BYTES {
        return Err(SqlError::new(
            SqlState::PROGRAM_LIMIT_EXCEEDED,
            format!("the statement has {} bytes, at most {MAX_STATEMENT_BYTES} are taken", sql.len()),
        ));
    }
    let body = skip_blank(sql);
    if body.is_empty() {
        return Ok(Command::Empty);
    }
    let word_len = body.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(body.len());
    match body[..word_len].to_ascii_uppercase().as_str() {
        "VACUUM" => return Ok(Command::Maintenance("VACUUM")),
        "ANALYZE" | "ANALYSE" => return Ok(Command::Maintenance("ANALYZE")),
        "CHECKPOINT" => return Ok(Command::Maintenance("CHECKPOINT")),
        "CLUSTER" => return Ok(Command::Maintenance("CLUSTER")),
        "REINDEX" => return Ok(Command::Maintenance("REINDEX")),
        "COPY" => return copy::parse(sql).map(|copy| Command::Copy(Arc::new(copy))),
        "ABORT" => return statement(&format!("ROLLBACK{}", &body[word_len..]), sql),
        "CREATE" => refuse_create(body)?,
        "DECLARE" | "FETCH" | "MOVE" | "CLOSE" => return Err(SqlError::unsupported("a cursor")),
        "LISTEN" | "NOTIFY" | "UNLISTEN" => return Err(SqlError::unsupported("LISTEN and NOTIFY")),
        "LOCK" => return Err(SqlError::unsupported("LOCK TABLE")),
        "CALL" | "DO" => return Err(SqlError::unsupported("a procedure")),
        _ => {}
    }
    statement(sql, sql)
}

/// Kinds of tables that the parser takes for something else.
fn refuse_create(body: &str) -> SqlResult<()> {
    let mut words = body.split_ascii_whitespace().skip(1).map(str::to_ascii_uppercase);
    match words.next().as_deref() {
        Some("UNLOGGED") => Err(SqlError::unsupported("an UNLOGGED table")),
        Some("TEMP" | "TEMPORARY" | "LOCAL" | "GLOBAL") => Err(SqlError::unsupported("a temporary table")),
        _ => Ok(()),
    }
}

/// `parsed` is what the parser reads, `sql` what the client wrote: positions are counted in it.
fn statement(parsed: &str, sql: &str) -> SqlResult<Command> {
    if terms(parsed) > MAX_TERMS {
        return Err(SqlError::too_complex());
    }
    let dialect = PostgreSqlDialect {};
    let statements = Parser::new(&dialect)
        .with_recursion_limit(MAX_DEPTH)
        .try_with_sql(parsed)
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| syntax(error, sql))?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (None, _) => Ok(Command::Empty),
        (Some(one), None) => Ok(Command::Sql(Arc::new(one))),
        (Some(_), Some(_)) => Err(SqlError::syntax("cannot insert multiple commands into a prepared statement")),
    }
}

/// An upper bound of the operators in one expression: longest run of operator characters and words between commas and parentheses.
fn terms(sql: &str) -> usize {
    let (mut longest, mut run) = (0, 0);
    let mut in_string = false;
    let mut previous = b' ';
    for byte in sql.bytes() {
        match byte {
            b'\'' => in_string = !in_string,
            _ if in_string => {}
            b',' => run = 0,
            b'+' | b'*' | b'/' | b'%' | b'|' | b'<' | b'>' | b'=' | b'-' => run += 1,
            // AND, OR, NOT.
            b'A' | b'a' | b'O' | b'o' | b'N' | b'n' if !previous.is_ascii_alphanumeric() && previous != b'_' => {
                run += 1
            }
            _ => {}
        }
        longest = longest.max(run);
        previous = byte;
    }
    longest
}

/// The parser's complaint in PostgreSQL's words, with the position its text names.
pub fn syntax(error: ParserError, sql: &str) -> SqlError {
    let text = match error {
        ParserError::RecursionLimitExceeded => return SqlError::too_complex(),
        ParserError::ParserError(text) | ParserError::TokenizerError(text) => text,
    };
    let (what, place) = text.rsplit_once(" at Line: ").unwrap_or((&text, ""));
    let position = position(place, sql);
    let error = match what.rsplit_once("found: ") {
        Some((expected, "EOF")) => {
            SqlError::syntax("syntax error at end of input").with_detail(expected.trim_end_matches(", ").to_owned())
        }
        Some((expected, found)) => SqlError::syntax(format!("syntax error at or near \"{found}\""))
            .with_detail(expected.trim_end_matches(", ").to_owned()),
        None => SqlError::syntax(format!("syntax error: {what}")),
    };
    match position {
        Some(position) => error.with_position(position),
        None => error,
    }
}

/// `3, Column: 7` as characters from 1.
fn position(place: &str, sql: &str) -> Option<u32> {
    let (line, column) = place.split_once(", Column: ")?;
    let (line, column): (usize, usize) = (line.trim().parse().ok()?, column.trim().parse().ok()?);
    let before: usize = sql.split('\n').take(line.checked_sub(1)?).map(|line| line.chars().count() + 1).sum();
    u32::try_from(before + column).ok()
}

/// The first word or two of a statement, for messages about what has to wait.
pub fn shown(statement: &ast::Statement) -> String {
    let text = statement.to_string();
    let words: Vec<&str> =
        text.split_whitespace().take(2).filter(|word| word.chars().all(char::is_uppercase)).collect();
    if words.is_empty() { "this statement".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_postgresqls() {
        let error = parse_one("select 1 +\n from t where )").unwrap_err();
        assert_eq!(error.sqlstate, SqlState::SYNTAX_ERROR);
        assert!(error.message.starts_with("syntax error at or near"), "{}", error.message);
        assert!(error.position.is_some());
        assert_eq!(parse_one("select (").unwrap_err().message, "syntax error at end of input");
        let deep = format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000));
        assert_eq!(parse_one(&deep).unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
        let long = format!("select 1{}", " + 1".repeat(100_000));
        assert_eq!(parse_one(&long).unwrap_err().sqlstate, SqlState::STATEMENT_TOO_COMPLEX);
        assert!(matches!(parse_one(" -- nothing").unwrap(), Command::Empty));
        assert!(matches!(parse_one("vacuum analyze t").unwrap(), Command::Maintenance("VACUUM")));
        assert!(matches!(parse_one("abort").unwrap(), Command::Sql(_)));
    }
}
