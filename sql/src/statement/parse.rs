//! One statement's text to a [`Command`], with PostgreSQL's syntax errors. PURE.

use std::sync::Arc;

use datafusion::sql::sqlparser::{
    ast,
    dialect::PostgreSqlDialect,
    parser::{Parser, ParserError},
    tokenizer::Tokenizer,
};

use super::{Command, as_of, borders, constraints, copy, deferrable, row_lock, sequence, split::skip_blank};
use crate::error::{SqlError, SqlResult, SqlState};

/// Stack that a thread needs which runs sessions: parser, planner and expressions recurse as deep as a statement is nested, and
/// the two bounds below are what this much stack holds in a debug build.
pub const THREAD_STACK_BYTES: usize = 8 << 20;
/// Deepest nesting of parentheses and subqueries that is parsed; deeper is 54001.
pub(super) const MAX_DEPTH: usize = 100;
/// Longest statement, in bytes; the parser needs many times as much memory.
pub const MAX_STATEMENT_BYTES: usize = 16 << 20;
/// Most arithmetic operators in a row (`a + a + …`): the parser makes as deep a tree of them, and DataFusion's
/// planner takes time cubic in its depth.
const MAX_TERMS: usize = 100;
/// Most comparisons and ANDs in a row, which are cheaper.
const MAX_CONDITIONS: usize = 1000;

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
        "CREATE" => {
            refuse_create(body)?;
            if let Some(sequence) = sequence::parse(sql, body)? {
                return Ok(Command::Sequence(Arc::new(sequence)));
            }
            if let Some(split) = borders::parse(sql, body)? {
                return Ok(Command::Split(Arc::new(split)));
            }
        }
        "ALTER" => {
            if let Some(sequence) = sequence::parse(sql, body)? {
                return Ok(Command::Sequence(Arc::new(sequence)));
            }
            if let Some(split) = borders::parse(sql, body)? {
                return Ok(Command::Split(Arc::new(split)));
            }
        }
        "INSERT" => {
            if let Some((overriding, rest)) = sequence::overriding(sql) {
                return Ok(overridden(statement(&rest, sql)?, overriding));
            }
        }
        "SET" => {
            if let Some(constraints) = constraints::parse(sql, body)? {
                return Ok(Command::Constraints(constraints));
            }
        }
        "PREPARE" | "COMMIT" | "ROLLBACK" => refuse_two_phase(body)?,
        "MOVE" => return Err(SqlError::unsupported("MOVE")),
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

/// What a transaction manager over several databases says.
fn refuse_two_phase(body: &str) -> SqlResult<()> {
    let mut words = body.split_ascii_whitespace().map(str::to_ascii_uppercase);
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let named = words.next().is_some_and(|third| third.starts_with('\''));
    match (first.as_str(), second.as_str()) {
        ("PREPARE", "TRANSACTION") if named => Err(SqlError::unsupported("PREPARE TRANSACTION")),
        ("COMMIT" | "ROLLBACK", "PREPARED") if named => Err(SqlError::unsupported(format!("{first} PREPARED"))),
        _ => Ok(()),
    }
}

fn overridden(command: Command, overriding: sequence::Overriding) -> Command {
    let Command::Sql(mut statement) = command else { return command };
    if let ast::Statement::Insert(insert) = Arc::make_mut(&mut statement) {
        overriding.keep(insert);
    }
    Command::Sql(statement)
}

/// `parsed` is what the parser reads, `sql` what the client wrote: positions are counted in it.
fn statement(parsed: &str, sql: &str) -> SqlResult<Command> {
    check_length(parsed)?;
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, parsed).tokenize_with_location();
    let mut tokens = tokens.map_err(|error| syntax(error.into(), sql))?;
    let mut moment = None;
    if as_of::may_look_back(parsed) {
        (tokens, moment) = as_of::take(tokens)?;
    }
    let first_word: String = skip_blank(parsed).chars().take_while(char::is_ascii_alphabetic).collect();
    if deferrable::may_have(&first_word.to_ascii_uppercase()) {
        tokens = deferrable::left_out(tokens);
    }
    let mut locks = Vec::new();
    if row_lock::may_lock(parsed) {
        (tokens, locks) = row_lock::take(tokens)?;
    }
    if let Some(ordered) = sequence::ordered(parsed, &tokens) {
        tokens = ordered;
    }
    let statements = Parser::new(&dialect)
        .with_recursion_limit(MAX_DEPTH)
        .with_tokens_with_locations(tokens)
        .parse_statements()
        .map_err(|error| syntax(error, sql))?;
    let mut statements = statements.into_iter();
    match (statements.next(), statements.next()) {
        (None, _) => Ok(Command::Empty),
        (Some(mut one), None) => {
            if let ast::Statement::Update(update) = &mut one {
                update.assignments = single_assignments(std::mem::take(&mut update.assignments));
            }
            if !locks.is_empty() {
                let query = row_lock::query_of(&mut one);
                let query = query.ok_or_else(|| SqlError::syntax("syntax error at or near \"FOR\""))?;
                query.locks = locks.into_iter().map(row_lock::encoded).collect();
            }
            match moment {
                None => Ok(Command::Sql(Arc::new(one))),
                Some(moment) if may_be_past(&one) => Ok(Command::AsOf(Arc::new(moment), Arc::new(one))),
                Some(_) => {
                    Err(SqlError::syntax("syntax error: AS OF SYSTEM TIME is for SELECT, BEGIN and SET TRANSACTION")
                        .with_hint("Other statements are run behind BEGIN AS OF SYSTEM TIME."))
                }
            }
        }
        (Some(_), Some(_)) => Err(SqlError::syntax("cannot insert multiple commands into a prepared statement")),
    }
}

/// What AS OF SYSTEM TIME may stand behind.
fn may_be_past(statement: &ast::Statement) -> bool {
    matches!(
        statement,
        ast::Statement::Query(_)
            | ast::Statement::StartTransaction { .. }
            | ast::Statement::Set(ast::Set::SetTransaction { session: false, .. })
    )
}

/// `SET (a, b) = (x, y)` is `SET a = x, b = y`; what has no such form stays.
fn single_assignments(assignments: Vec<ast::Assignment>) -> Vec<ast::Assignment> {
    let single = |assignment: ast::Assignment| match (assignment.target, assignment.value) {
        (ast::AssignmentTarget::Tuple(names), ast::Expr::Tuple(values)) if names.len() == values.len() => {
            let pairs = names.into_iter().zip(values);
            pairs
                .map(|(name, value)| ast::Assignment { target: ast::AssignmentTarget::ColumnName(name), value })
                .collect()
        }
        (target, value) => vec![ast::Assignment { target, value }],
    };
    assignments.into_iter().flat_map(single).collect()
}

/// 54001 for an expression that is too long, by a count of operators between commas that errs on the high side.
fn check_length(sql: &str) -> SqlResult<()> {
    let (mut terms, mut conditions) = (0, 0);
    let mut in_string = false;
    let mut previous = b' ';
    for byte in sql.bytes() {
        match byte {
            b'\'' => in_string = !in_string,
            _ if in_string => {}
            b',' => (terms, conditions) = (0, 0),
            b'+' | b'*' | b'/' | b'%' | b'|' => terms += 1,
            b'-' if previous != b'-' => terms += 1,
            b'<' | b'>' | b'=' => conditions += 1,
            _ => {}
        }
        if terms > MAX_TERMS || conditions > MAX_CONDITIONS {
            return Err(SqlError::too_complex());
        }
        previous = byte;
    }
    Ok(())
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
    characters(sql, line.trim().parse().ok()?, column.trim().parse().ok()?)
}

/// A line and a column, both from 1, as characters from 1.
pub fn characters(sql: &str, line: usize, column: usize) -> Option<u32> {
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
        for two_phase in ["prepare transaction 'x'", "COMMIT PREPARED 'x'", "rollback prepared 'x'"] {
            assert_eq!(parse_one(two_phase).unwrap_err().sqlstate, SqlState::FEATURE_NOT_SUPPORTED);
        }
        assert!(parse_one("prepare transaction as select 1").is_ok());
    }
}
