//! SET CONSTRAINTS, which the parser does not know. PURE.

use datafusion::sql::sqlparser::{
    ast::ObjectName, dialect::PostgreSqlDialect, keywords::Keyword, parser::Parser, tokenizer::Token,
};

use super::parse::{MAX_DEPTH, syntax};
use crate::error::{SqlError, SqlResult};

/// SET CONSTRAINTS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConstraintsStatement {
    /// Which; `None` for ALL.
    pub names: Option<Vec<ObjectName>>,
    /// DEFERRED, or IMMEDIATE.
    pub deferred: bool,
}

/// Reads one; `None` for another statement. `body` is `sql` without what is blank before it.
pub fn parse(sql: &str, body: &str) -> SqlResult<Option<ConstraintsStatement>> {
    let second = body.split_ascii_whitespace().nth(1);
    if !second.is_some_and(|word| word.eq_ignore_ascii_case("constraints")) {
        return Ok(None);
    }
    let dialect = PostgreSqlDialect {};
    let parser = Parser::new(&dialect).with_recursion_limit(MAX_DEPTH).try_with_sql(sql);
    let mut parser = parser.map_err(|error| syntax(error, sql))?;
    // SET CONSTRAINTS
    parser.next_token();
    parser.next_token();
    let names = match parser.parse_keyword(Keyword::ALL) {
        true => None,
        false => {
            let names = parser.parse_comma_separated(|parser| parser.parse_object_name(false));
            Some(names.map_err(|error| syntax(error, sql))?)
        }
    };
    let deferred = parser.parse_keyword(Keyword::DEFERRED);
    if !deferred && !parser.parse_keyword(Keyword::IMMEDIATE) {
        return Err(unexpected(&parser));
    }
    let _ = parser.consume_token(&Token::SemiColon);
    match parser.peek_token().token {
        Token::EOF => Ok(Some(ConstraintsStatement { names, deferred })),
        _ => Err(unexpected(&parser)),
    }
}

fn unexpected(parser: &Parser<'_>) -> SqlError {
    match parser.peek_token().token {
        Token::EOF => SqlError::syntax("syntax error at end of input"),
        other => SqlError::syntax(format!("syntax error at or near \"{other}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart() {
        let read = |sql: &str| parse(sql, sql);
        assert_eq!(read("SET x = 1").unwrap(), None);
        assert_eq!(
            read("set constraints all deferred;").unwrap(),
            Some(ConstraintsStatement { names: None, deferred: true })
        );
        let named = read("SET CONSTRAINTS a, public.b IMMEDIATE").unwrap().unwrap();
        assert_eq!((named.names.map(|names| names.len()), named.deferred), (Some(2), false));
        for wrong in ["SET CONSTRAINTS", "SET CONSTRAINTS ALL", "SET CONSTRAINTS a NOW", "SET CONSTRAINTS a DEFERRED b"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
