//! Statements that differ only in their literals share a plan.
//!
//! ```text
//!   UPDATE t SET v = v + 7 WHERE k = 42          shape: UPDATE t SET v = v + ? WHERE k = ?
//!                                                literals: 7, 42
//! ```
//!
//! [`shape`] is a lexer, not a parser: on the hot way (pgbench in simple mode, drivers that paste values) a
//! statement costs one pass over its bytes before its plan is found. Which literals may really differ between
//! two uses of a plan is decided once, when the plan is made (see `bind::literals`): LIMIT, ORDER BY 1,
//! INTERVAL '1 day', a function's format string and the select list stay fixed and belong to the plan's key
//! ([`Slot::Fixed`]).
//!
//! Not here: what a literal's type is. PostgreSQL decides that by its look alone for numbers
//! ([`Literal::literal_type`]) and by the place it stands in for strings.

use std::borrow::Cow;

use crate::types::{Decimal, PgType};

/// Statements with more literals are planned afresh each time: such a statement is a bulk load written as one
/// INSERT, and its text would only fill the cache.
pub const MAX_LITERALS: usize = 256;

/// Longer statements are not looked up in the cache either, for the same reason.
pub const MAX_SHAPE_BYTES: usize = 16 * 1024;

/// What a literal looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiteralKind {
    /// Digits only.
    Integer,
    /// With a point or an exponent.
    Decimal,
    /// In single quotes, without escapes other than a doubled quote.
    String,
}

/// A literal of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Literal {
    /// Where it starts, in bytes.
    pub start: usize,
    /// Behind its last byte.
    pub end: usize,
    /// What it looks like.
    pub kind: LiteralKind,
}

impl Literal {
    /// Its value's text: digits as they stand, a string without its quotes.
    pub fn value<'a>(&self, sql: &'a str) -> Cow<'a, str> {
        let text = &sql[self.start..self.end];
        match self.kind {
            LiteralKind::Integer | LiteralKind::Decimal => Cow::Borrowed(text),
            LiteralKind::String => {
                let inner = &text[1..text.len() - 1];
                if inner.contains('\'') { Cow::Owned(inner.replace("''", "'")) } else { Cow::Borrowed(inner) }
            }
        }
    }

    /// The type PostgreSQL gives the literal for its look.
    pub fn literal_type(&self, sql: &str) -> PgType {
        match self.kind {
            LiteralKind::String => PgType::Unknown,
            LiteralKind::Decimal if Decimal::parse(&sql[self.start..self.end]).is_err() => PgType::Float8,
            LiteralKind::Decimal => PgType::Numeric,
            LiteralKind::Integer => integer_type(&sql[self.start..self.end]),
        }
    }
}

/// The smallest of integer, bigint and numeric that holds `digits`, as PostgreSQL types an integer literal.
pub fn integer_type(digits: &str) -> PgType {
    if digits.parse::<i32>().is_ok() {
        PgType::Int4
    } else if digits.parse::<i64>().is_ok() {
        PgType::Int8
    } else {
        PgType::Numeric
    }
}

/// A statement with `?` for every literal, and the literals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The text between the literals.
    pub text: String,
    /// In the order of the text.
    pub literals: Vec<Literal>,
}

/// Takes the literals out of `sql`. `None` where that is not worth it or not sure: too many literals, too
/// long, an unterminated string or comment, or a `?` of the statement's own.
pub fn shape(sql: &str) -> Option<Shape> {
    if sql.len() > MAX_SHAPE_BYTES {
        return None;
    }
    let mut scanner = Scanner { bytes: sql.as_bytes(), at: 0 };
    let mut shape = Shape { text: String::with_capacity(sql.len()), literals: Vec::new() };
    let mut copied = 0;
    while let Some(token) = scanner.next()? {
        let Some(kind) = token.literal else { continue };
        if shape.literals.len() == MAX_LITERALS {
            return None;
        }
        shape.text.push_str(&sql[copied..token.start]);
        shape.text.push('?');
        copied = token.end;
        shape.literals.push(Literal { start: token.start, end: token.end, kind });
    }
    shape.text.push_str(&sql[copied..]);
    Some(shape)
}

/// How a plan depends on one literal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Any value of this type, with so many digits behind the point.
    Any(PgType, u8),
    /// This value only.
    Fixed(String),
}

impl Slot {
    /// For a literal whose value may differ.
    pub fn any(literal: &Literal, sql: &str) -> Self {
        let pg_type = literal.literal_type(sql);
        let scale = match pg_type {
            PgType::Numeric => Decimal::parse(&sql[literal.start..literal.end]).map_or(0, |value| value.scale()),
            _ => 0,
        };
        Slot::Any(pg_type, scale)
    }

    /// For a literal the plan was made for.
    pub fn fixed(literal: &Literal, sql: &str) -> Self {
        Slot::Fixed(sql[literal.start..literal.end].to_owned())
    }
}

struct Token {
    start: usize,
    end: usize,
    literal: Option<LiteralKind>,
}

/// Splits a statement into literals and the rest. Every method is O(bytes consumed).
struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// The next token; the outer `None` gives up.
    fn next(&mut self) -> Option<Option<Token>> {
        let start = self.at;
        if start == self.bytes.len() {
            return Some(None);
        }
        let byte = self.bytes[start];
        let literal = match byte {
            b'\'' => {
                self.quoted(b'\'')?;
                Some(LiteralKind::String)
            }
            b'"' => {
                self.quoted(b'"')?;
                None
            }
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() => self.number(),
            b'-' if self.peek(1) == b'-' => {
                self.skip_while(|byte| byte != b'\n');
                None
            }
            b'/' if self.peek(1) == b'*' => {
                self.block_comment()?;
                None
            }
            b'$' => {
                self.dollar()?;
                None
            }
            b'?' => return None,
            _ if is_word_start(byte) => {
                self.word()?;
                None
            }
            _ => {
                self.at += 1;
                None
            }
        };
        Some(Some(Token { start, end: self.at, literal }))
    }

    fn skip_while(&mut self, test: impl Fn(u8) -> bool) {
        while self.at < self.bytes.len() && test(self.bytes[self.at]) {
            self.at += 1;
        }
    }

    /// Over a quoted text whose quote is doubled inside.
    fn quoted(&mut self, quote: u8) -> Option<()> {
        self.at += 1;
        loop {
            self.skip_while(|byte| byte != quote);
            if self.at == self.bytes.len() {
                return None;
            }
            self.at += 1;
            if self.peek(0) != quote {
                return Some(());
            }
            self.at += 1;
        }
    }

    /// Over a number. What is no plain decimal one (`0x1F`, `1e`, `1_000`) is left in the text.
    fn number(&mut self) -> Option<LiteralKind> {
        let mut kind = LiteralKind::Integer;
        self.skip_while(|byte| byte.is_ascii_digit());
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            kind = LiteralKind::Decimal;
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        if matches!(self.peek(0), b'e' | b'E') {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                kind = LiteralKind::Decimal;
                self.at += 1 + sign;
                self.skip_while(|byte| byte.is_ascii_digit());
            }
        }
        if is_word(self.peek(0)) {
            self.skip_while(is_word);
            return None;
        }
        Some(kind)
    }

    fn block_comment(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Some(());
                    }
                }
                _ if self.at >= self.bytes.len() => return None,
                _ => self.at += 1,
            }
        }
    }

    /// `$1`, or a dollar-quoted text, which stays in the shape.
    fn dollar(&mut self) -> Option<()> {
        let start = self.at;
        self.at += 1;
        self.skip_while(is_word);
        let tag = &self.bytes[start..self.at];
        if tag.get(1).is_some_and(u8::is_ascii_digit) || self.peek(0) != b'$' {
            return Some(());
        }
        self.at += 1;
        let quote = &self.bytes[start..self.at];
        let found = self.bytes[self.at..].windows(quote.len()).position(|window| window == quote)?;
        self.at += found + quote.len();
        Some(())
    }

    /// An identifier or keyword, or a string with a prefix (`E'…'`, `B'…'`, `X'…'`, `U&'…'`, `N'…'`), which stays in the shape.
    fn word(&mut self) -> Option<()> {
        let start = self.at;
        self.skip_while(is_word);
        let prefix = &self.bytes[start..self.at];
        let escapes = prefix.eq_ignore_ascii_case(b"e");
        if self.peek(0) == b'\'' && (escapes || [b"b", b"x", b"n"].iter().any(|p| prefix.eq_ignore_ascii_case(*p))) {
            return if escapes { self.escaped() } else { self.quoted(b'\'') };
        }
        if prefix.eq_ignore_ascii_case(b"u") && self.peek(0) == b'&' && self.peek(1) == b'\'' {
            self.at += 1;
            return self.quoted(b'\'');
        }
        Some(())
    }

    /// Over `'…'` with backslash escapes.
    fn escaped(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                _ if self.at >= self.bytes.len() => return None,
                (b'\\', _) | (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }
}

fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sql: &str) -> (String, Vec<String>) {
        let shape = shape(sql).expect("a shape");
        let values = shape.literals.iter().map(|literal| literal.value(sql).into_owned()).collect();
        (shape.text, values)
    }

    #[test]
    fn literals_leave_and_names_stay() {
        let (text, values) = texts("SELECT a1, \"b 2\" FROM t3 WHERE k=42 AND s = 'it''s' -- 5\n OR f > 1.5e3");
        assert_eq!(text, "SELECT a1, \"b 2\" FROM t3 WHERE k=? AND s = ? -- 5\n OR f > ?");
        assert_eq!(values, ["42", "it's", "1.5e3"]);
    }

    #[test]
    fn parameters_and_prefixed_strings_stay() {
        let (text, values) = texts("select $1, e'a\\'1', $x$ 7 $x$, b'101', /* 1 /* 2 */ */ .5");
        assert_eq!(text, "select $1, e'a\\'1', $x$ 7 $x$, b'101', /* 1 /* 2 */ */ ?");
        assert_eq!(values, [".5"]);
    }

    #[test]
    fn what_is_not_sure_has_no_shape() {
        for sql in ["select 'open", "select \"open", "select /* open", "select $a$ open", "select a ? b", "select e'\\"]
        {
            assert_eq!(shape(sql), None, "{sql}");
        }
        assert!(shape(&format!("select {}", "1,".repeat(MAX_LITERALS + 1))).is_none());
    }

    #[test]
    fn integers_are_typed_by_size() {
        assert_eq!(integer_type("2147483647"), PgType::Int4);
        assert_eq!(integer_type("2147483648"), PgType::Int8);
        assert_eq!(integer_type("9223372036854775808"), PgType::Numeric);
    }

    #[test]
    fn slots_hold_fixed_values_and_types_of_lifted_ones() {
        let sql = "select v from t where k = 7.50 limit 3";
        let shape = shape(sql).expect("a shape");
        assert_eq!(Slot::any(&shape.literals[0], sql), Slot::Any(PgType::Numeric, 2));
        assert_eq!(Slot::fixed(&shape.literals[1], sql), Slot::Fixed("3".into()));
    }
}
