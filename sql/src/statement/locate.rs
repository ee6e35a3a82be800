//! Where in a statement's text an error belongs: the position of the name that is not known. PURE.
//!
//! Whoever finds out that a column or table does not exist has no text at hand. The error says the name; here the statement's
//! tokens are searched for it, at the places where such a name can stand.

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    tokenizer::{Token, TokenWithSpan, Tokenizer, Word},
};

use crate::error::{SqlError, SqlState};

/// The error with its position in `sql`, where its name is found there.
pub fn locate(error: SqlError, sql: &str) -> SqlError {
    if error.position.is_some() {
        return error;
    }
    let found = match error.sqlstate {
        SqlState::UNDEFINED_COLUMN | SqlState::AMBIGUOUS_COLUMN => column(&error.message, sql),
        SqlState::UNDEFINED_TABLE => table(&error.message, sql),
        SqlState::UNDEFINED_FUNCTION => function(&error.message, sql),
        _ => None,
    };
    match found {
        Some(position) => error.with_position(position),
        None => error,
    }
}

/// `column "x" …`, `column t.x …`, `column reference "x" …`
fn column(message: &str, sql: &str) -> Option<u32> {
    let rest = message.strip_prefix("column ")?;
    match quoted(rest.strip_prefix("reference ").unwrap_or(rest)) {
        Some(name) => search(sql, |tokens, at| {
            is(tokens, at, name) && !tokens.follows(at, &Token::Period) && !tokens.precedes(at, &Token::Period)
        }),
        None => {
            let (table, name) = rest.split_once(' ')?.0.split_once('.')?;
            search(sql, |tokens, at| {
                is(tokens, at, table) && tokens.precedes(at, &Token::Period) && is(tokens, at + 2, name)
            })
        }
    }
}

/// `relation "t" …`, `missing FROM-clause entry for table "t"`
fn table(message: &str, sql: &str) -> Option<u32> {
    if let Some(rest) = message.strip_prefix("missing FROM-clause entry for table ") {
        let name = quoted(rest)?;
        return search(sql, |tokens, at| is(tokens, at, name) && tokens.precedes(at, &Token::Period));
    }
    let name = quoted(message.strip_prefix("relation ")?)?;
    match name.split_once('.') {
        Some((schema, name)) => search(sql, |tokens, at| {
            is(tokens, at, schema) && tokens.precedes(at, &Token::Period) && is(tokens, at + 2, name)
        }),
        None => search(sql, |tokens, at| is(tokens, at, name) && tokens.begins_relation(at)),
    }
}

/// `function f…`
fn function(message: &str, sql: &str) -> Option<u32> {
    let name = message.strip_prefix("function ")?.split(['(', ' ']).next()?;
    search(sql, |tokens, at| is(tokens, at, name) && tokens.precedes(at, &Token::LParen))
}

fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.split('"').next()
}

/// A statement's tokens without blanks.
struct Tokens(Vec<TokenWithSpan>);

impl Tokens {
    fn token(&self, at: usize) -> Option<&Token> {
        self.0.get(at).map(|token| &token.token)
    }
    fn follows(&self, at: usize, token: &Token) -> bool {
        at.checked_sub(1).and_then(|before| self.token(before)) == Some(token)
    }
    fn precedes(&self, at: usize, token: &Token) -> bool {
        self.token(at + 1) == Some(token)
    }
    /// A relation's name stands behind one of these.
    fn begins_relation(&self, at: usize) -> bool {
        match at.checked_sub(1).and_then(|before| self.token(before)) {
            Some(Token::Comma | Token::LParen) => true,
            Some(Token::Word(word)) => ["FROM", "JOIN", "INTO", "UPDATE", "TABLE", "ONLY", "USING"]
                .iter()
                .any(|keyword| word.quote_style.is_none() && word.value.eq_ignore_ascii_case(keyword)),
            _ => false,
        }
    }
}

/// The identifier at `at` is `name`, whose letters are as the catalog has them.
fn is(tokens: &Tokens, at: usize, name: &str) -> bool {
    match tokens.token(at) {
        Some(Token::Word(Word { value, quote_style: Some(_), .. })) => value == name,
        Some(Token::Word(Word { value, .. })) => value.to_lowercase() == name,
        _ => false,
    }
}

/// Characters from 1 to the first token that `fits`.
fn search(sql: &str, fits: impl Fn(&Tokens, usize) -> bool) -> Option<u32> {
    let mut tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().ok()?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_)));
    let tokens = Tokens(tokens);
    let at = (0..tokens.0.len()).find(|at| fits(&tokens, *at))?;
    let start = tokens.0[at].span.start;
    super::parse::characters(sql, start.line as usize, start.column as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(error: SqlError, sql: &str) -> Option<u32> {
        locate(error, sql).position
    }

    #[test]
    fn names_are_found_where_they_can_stand() {
        let column = |message: &str| SqlError::new(SqlState::UNDEFINED_COLUMN, message);
        let sql = "SELECT a, t.b,\n  nope FROM t WHERE 'nope' = x";
        assert_eq!(position(column("column \"nope\" does not exist"), sql), Some(18));
        assert_eq!(position(column("column t.b does not exist"), sql), Some(11));
        assert_eq!(position(column("column \"b\" does not exist"), sql), None);
        assert_eq!(position(column("column \"A b\" does not exist"), "SELECT \"A b\""), Some(8));
        let table = |message: &str| SqlError::new(SqlState::UNDEFINED_TABLE, message);
        assert_eq!(position(table("relation \"t\" does not exist"), "SELECT t FROM T"), Some(15));
        assert_eq!(position(table("relation \"s.t\" does not exist"), "SELECT 1 FROM a JOIN s.t ON true"), Some(22));
        assert_eq!(position(table("missing FROM-clause entry for table \"x\""), "SELECT x, x.a FROM t"), Some(11));
        let function = SqlError::new(SqlState::UNDEFINED_FUNCTION, "function nofunc does not exist");
        assert_eq!(position(function, "SELECT nofunc, nofunc(1)"), Some(16));
    }
}
