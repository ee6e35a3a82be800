//! DEFERRABLE and NOT DEFERRABLE among the modes of a transaction. PURE.
//!
//! sqlparser does not know it. It asks that a read-only serializable transaction waits until it is safe; here one always is, from
//! its first moment on, so nothing follows from it.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};

/// Whether a statement that begins with this word, in capitals, may have the mode.
pub fn may_have(first_word: &str) -> bool {
    matches!(first_word, "BEGIN" | "START" | "SET")
}

/// The tokens of a statement without the mode, and without the comma that sets it apart.
pub fn left_out(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    if !tokens.iter().any(|token| is_word(&token.token, "DEFERRABLE")) {
        return tokens;
    }
    let mut rest: Vec<TokenWithSpan> = Vec::with_capacity(tokens.len());
    let mut comma_follows = false;
    for token in tokens {
        if is_word(&token.token, "DEFERRABLE") {
            pop_if(&mut rest, |token| is_word(token, "NOT"));
            comma_follows = !pop_if(&mut rest, |token| *token == Token::Comma);
        } else if !(comma_follows && token.token == Token::Comma) {
            comma_follows &= matches!(token.token, Token::Whitespace(_));
            rest.push(token);
        } else {
            comma_follows = false;
        }
    }
    rest
}

/// Takes the last token that is no blank off, if it is the one.
fn pop_if(tokens: &mut Vec<TokenWithSpan>, wanted: impl Fn(&Token) -> bool) -> bool {
    let last = tokens.iter().rposition(|token| !matches!(token.token, Token::Whitespace(_)));
    let Some(last) = last.filter(|at| wanted(&tokens[*at].token)) else { return false };
    tokens.truncate(last);
    true
}

fn is_word(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(Word { value, quote_style: None, .. }) if value.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::PostgreSqlDialect, tokenizer::Tokenizer};

    use super::*;

    #[test]
    fn it_goes_with_its_comma() {
        for (sql, rest) in [
            (
                "begin isolation level serializable, read only, deferrable",
                "begin isolation level serializable, read only",
            ),
            ("begin not deferrable, read only", "begin  read only"),
            ("START TRANSACTION READ ONLY NOT DEFERRABLE", "START TRANSACTION READ ONLY"),
            ("set transaction deferrable", "set transaction"),
            ("set x = 'deferrable'", "set x = 'deferrable'"),
        ] {
            let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().unwrap();
            let text: String = left_out(tokens).iter().map(|token| token.token.to_string()).collect();
            assert_eq!(text.trim_end(), rest);
        }
    }
}
