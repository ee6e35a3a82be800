//! Where regions shall be cut: `ALTER TABLE|INDEX … SPLIT AT VALUES`, `CREATE TABLE … SPLIT INTO|AT`. PURE.
//!
//! ```text
//!   ALTER TABLE [IF EXISTS] t  SPLIT AT VALUES (1), (2, 'x')          beginnings of the primary key
//!   ALTER INDEX [IF EXISTS] t_pkey SPLIT AT VALUES (1)                a primary key's; no secondary index yet
//!   ALTER TABLE t              SPLIT INTO 8 [REGIONS] [BETWEEN 0 AND 999999]
//!   CREATE TABLE t (…) …       SPLIT …                                the same clauses
//! ```
//!
//! PostgreSQL has no such thing and the parser does not know it: the clause is cut off here, at the first word SPLIT outside
//! of parentheses that AT or INTO follows, and the parser gets the rest.

use std::sync::Arc;

use datafusion::sql::sqlparser::{
    ast::{self, Expr, ObjectName},
    dialect::{Dialect, PostgreSqlDialect, Precedence},
    keywords::Keyword,
    parser::{Parser, ParserError},
    tokenizer::{Token, TokenWithSpan, Tokenizer},
};

use super::parse::{MAX_DEPTH, syntax};
use crate::error::SqlResult;

/// A statement with a SPLIT clause.
#[derive(Clone, Debug)]
pub struct SplitStatement {
    /// What is cut.
    pub target: Target,
    /// Where.
    pub borders: Borders,
}

/// What is cut.
#[derive(Clone, Debug)]
pub enum Target {
    /// A table that is there.
    Table {
        /// Its name.
        name: ObjectName,
        /// A missing one is no error.
        if_exists: bool,
    },
    /// The table that an index belongs to.
    Index {
        /// The index's name.
        name: ObjectName,
        /// A missing one is no error.
        if_exists: bool,
    },
    /// A table that is created first.
    Create(Arc<ast::Statement>),
}

/// Where.
#[derive(Clone, Debug)]
pub enum Borders {
    /// At keys that begin with these values.
    Values(Vec<Vec<Expr>>),
    /// Into so many regions, each with as much of the first key column's values.
    Into {
        /// How many.
        regions: u64,
        /// The values that are spread; all of the type's when not said.
        between: Option<Box<(Expr, Expr)>>,
    },
}

/// The statement, if it has such a clause. `body`: the statement without leading blanks.
pub fn parse(sql: &str, body: &str) -> SqlResult<Option<SplitStatement>> {
    let says_split = |word: &str| word.eq_ignore_ascii_case("split");
    if !body.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(says_split) {
        return Ok(None);
    }
    // What does not even fall into tokens is reported by the usual way.
    let Ok(tokens) = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location() else { return Ok(None) };
    let Some(at) = clause(&tokens) else { return Ok(None) };
    let (head, tail) = tokens.split_at(at);
    let parsed = target(head).and_then(|target| Ok(SplitStatement { target, borders: borders(tail)? }));
    parsed.map(Some).map_err(|error| syntax(error, sql))
}

fn is_word(token: &TokenWithSpan, word: &str) -> bool {
    matches!(&token.token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
}

/// Where the clause begins.
fn clause(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            _ if depth == 0 && is_word(token, "split") => {
                let next = tokens[at + 1..].iter().find(|t| !matches!(t.token, Token::Whitespace(_)))?;
                if is_word(next, "at") || is_word(next, "into") {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn parser(tokens: &[TokenWithSpan]) -> Parser<'static> {
    Parser::new(&PostgreSqlDialect {}).with_recursion_limit(MAX_DEPTH).with_tokens_with_locations(tokens.to_vec())
}

fn end(parser: &mut Parser<'_>) -> Result<(), ParserError> {
    // One may be left of a prepared statement.
    let _ = parser.consume_token(&Token::SemiColon);
    parser.expect_token(&Token::EOF).map(drop)
}

fn target(head: &[TokenWithSpan]) -> Result<Target, ParserError> {
    let mut parser = parser(head);
    if !parser.parse_keyword(Keyword::ALTER) {
        let statement = parser.parse_statement()?;
        end(&mut parser)?;
        return match statement {
            ast::Statement::CreateTable(_) => Ok(Target::Create(Arc::new(statement))),
            _ => Err(ParserError::ParserError("SPLIT belongs to CREATE TABLE, ALTER TABLE or ALTER INDEX".into())),
        };
    }
    let table = parser.parse_keyword(Keyword::TABLE);
    if !table {
        parser.expect_keyword(Keyword::INDEX)?;
    }
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let name = parser.parse_object_name(false)?;
    end(&mut parser)?;
    Ok(if table { Target::Table { name, if_exists } } else { Target::Index { name, if_exists } })
}

fn borders(tail: &[TokenWithSpan]) -> Result<Borders, ParserError> {
    let mut parser = parser(tail);
    parser.next_token();
    let borders = if parser.parse_keyword(Keyword::AT) {
        parser.expect_keyword(Keyword::VALUES)?;
        let row = |p: &mut Parser<'_>| p.parse_parenthesized(|p| p.parse_comma_separated(Parser::parse_expr));
        Borders::Values(parser.parse_comma_separated(row)?)
    } else {
        parser.expect_keyword(Keyword::INTO)?;
        let regions = parser.parse_literal_uint()?;
        if is_word(&parser.peek_token(), "regions") {
            parser.next_token();
        }
        Borders::Into { regions, between: between(&mut parser)? }
    };
    end(&mut parser)?;
    Ok(borders)
}

fn between(parser: &mut Parser<'_>) -> Result<Option<Box<(Expr, Expr)>>, ParserError> {
    if !parser.parse_keyword(Keyword::BETWEEN) {
        return Ok(None);
    }
    let tighter = PostgreSqlDialect {}.prec_value(Precedence::Between);
    let low = parser.parse_subexpr(tighter)?;
    parser.expect_keyword(Keyword::AND)?;
    Ok(Some(Box::new((low, parser.parse_subexpr(tighter)?))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;

    fn one(sql: &str) -> SplitStatement {
        parse(sql, sql).expect("it parses").expect("it has a clause")
    }

    #[test]
    fn clauses_are_found_and_the_rest_is_a_statement() {
        let split = one("ALTER TABLE IF EXISTS s.t SPLIT AT VALUES (1), (-2, 'x')");
        assert!(matches!(&split.target, Target::Table { name, if_exists: true } if name.to_string() == "s.t"));
        assert!(matches!(&split.borders, Borders::Values(rows) if rows.len() == 2 && rows[1].len() == 2));
        let split = one("alter index t_pkey split at values (1);");
        assert!(matches!(split.target, Target::Index { if_exists: false, .. }));
        let split = one("CREATE TABLE t (split int PRIMARY KEY) SPLIT INTO 8 REGIONS BETWEEN 0 AND 10 + 5");
        assert!(matches!(split.target, Target::Create(_)));
        let Borders::Into { regions: 8, between: Some(between) } = split.borders else { panic!("no range") };
        let (low, high) = *between;
        assert_eq!((low.to_string(), high.to_string()), ("0".into(), "10 + 5".into()));
        assert!(matches!(one("ALTER TABLE t SPLIT INTO 4").borders, Borders::Into { regions: 4, between: None }));
        for other in ["CREATE TABLE split (at int)", "ALTER TABLE split ADD COLUMN at int", "SELECT 'split at' AS x"] {
            assert!(parse(other, other).expect("it parses").is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_wrong_has_a_position() {
        for sql in [
            "ALTER TABLE t SPLIT AT (1)",
            "ALTER TABLE t SPLIT AT VALUES 1",
            "ALTER TABLE t SPLIT AT VALUES ()",
            "ALTER VIEW t SPLIT AT VALUES (1)",
            "CREATE TABLE t (a int) SPLIT INTO many",
            "ALTER TABLE t SPLIT INTO 3 BETWEEN 1",
            "ALTER TABLE t SPLIT INTO 3 rest",
            "DROP TABLE t SPLIT INTO 3",
        ] {
            assert_eq!(parse(sql, sql).expect_err(sql).sqlstate, SqlState::SYNTAX_ERROR, "{sql}");
        }
    }
}
