//! Cuts a query string at its semicolons. PURE.

/// The statements of a query string, without their semicolons; blank ones are left out.
pub fn split(sql: &str) -> Vec<&str> {
    let bytes = sql.as_bytes();
    let mut statements = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        if bytes[at] == b';' {
            push(&sql[start..at], &mut statements);
            at += 1;
            start = at;
        } else {
            at = token_end(bytes, at);
        }
    }
    push(&sql[start..], &mut statements);
    statements
}

fn push<'a>(statement: &'a str, statements: &mut Vec<&'a str>) {
    if !is_blank(statement) {
        statements.push(statement);
    }
}

/// Nothing but blanks and comments.
pub fn is_blank(sql: &str) -> bool {
    skip_blank(sql).is_empty()
}

/// The text behind leading blanks and comments.
pub fn skip_blank(sql: &str) -> &str {
    let bytes = sql.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at].is_ascii_whitespace() {
            at += 1;
        } else if bytes[at..].starts_with(b"--") || bytes[at..].starts_with(b"/*") {
            at = token_end(bytes, at);
        } else {
            break;
        }
    }
    &sql[at..]
}

/// The end of the token that starts at `at`, as far as it can hide a semicolon: quotes, comments, dollar quotes.
fn token_end(bytes: &[u8], at: usize) -> usize {
    let find = |from: usize, what: &[u8]| {
        let found = bytes.get(from..).and_then(|rest| rest.windows(what.len()).position(|window| window == what));
        found.map_or(bytes.len(), |found| from + found + what.len())
    };
    match bytes[at] {
        b'\'' => {
            let escapes = at > 0 && matches!(bytes[at - 1], b'e' | b'E') && (at < 2 || !is_word(bytes[at - 2]));
            quoted_end(bytes, at, escapes)
        }
        b'"' => find(at + 1, b"\""),
        b'-' if bytes[at..].starts_with(b"--") => find(at, b"\n"),
        b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
        b'$' if at == 0 || !is_word(bytes[at - 1]) => {
            let tag = bytes[at + 1..].iter().take_while(|byte| is_word(**byte)).count();
            let close = at + 1 + tag;
            let numbered = bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
            if bytes.get(close) == Some(&b'$') && !numbered {
                find(close + 1, &bytes[at..=close])
            } else {
                close.max(at + 1)
            }
        }
        _ => at + 1,
    }
}

fn quoted_end(bytes: &[u8], at: usize, escapes: bool) -> usize {
    let mut at = at + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if escapes => at += 2,
            b'\'' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut at, mut depth) = (at + 2, 1);
    while at < bytes.len() && depth > 0 {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else {
            at += 1;
        }
    }
    at.min(bytes.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_quotes_and_comments_do_not_count() {
        assert_eq!(split("a;b ; ;-- c;\n"), ["a", "b "]);
        assert_eq!(
            split("select ';', \";\", $x$;$x$, e'\\';' /* ; /* ; */ ; */; b"),
            ["select ';', \";\", $x$;$x$, e'\\';' /* ; /* ; */ ; */", " b"]
        );
        assert_eq!(split("select 'it''s;' where a=$1;x").len(), 2);
        assert_eq!(split("select 'open; ").len(), 1);
        assert_eq!(skip_blank(" /* x */ -- y\n z"), "z");
    }
}
