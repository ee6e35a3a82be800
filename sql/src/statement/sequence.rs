//! CREATE SEQUENCE, ALTER SEQUENCE, the options of identity columns, and INSERT's OVERRIDING. PURE.
//!
//! The parser knows no ALTER SEQUENCE and no OVERRIDING, and wants options in one order; PostgreSQL takes them in any. So the two
//! statements are parsed here, the options of an identity column are put in the parser's order, and OVERRIDING is
//! taken out of the text and kept in a part of the parsed INSERT that PostgreSQL's grammar has no use for.

use datafusion::sql::sqlparser::{
    ast::{self, Ident, ObjectName},
    dialect::PostgreSqlDialect,
    parser::{Parser, ParserError},
    tokenizer::{Token, TokenWithSpan, Tokenizer},
};

use super::parse::{MAX_DEPTH, syntax};
use crate::{
    error::{SqlError, SqlResult},
    query::bind::type_names,
    types::ColumnType,
};

/// CREATE or ALTER SEQUENCE.
#[derive(Clone, Debug)]
pub struct SequenceStatement {
    /// Its name.
    pub name: ObjectName,
    /// What happens to it.
    pub action: Action,
    /// IF NOT EXISTS, or IF EXISTS.
    pub lenient: bool,
    /// What was said about it.
    pub options: SequenceOptions,
}

/// What happens to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// CREATE
    Create,
    /// ALTER
    Alter,
}

/// Options as they were said; `None` where nothing was.
#[derive(Clone, Debug, Default)]
pub struct SequenceOptions {
    /// AS
    pub column_type: Option<ColumnType>,
    /// INCREMENT
    pub increment: Option<i64>,
    /// MINVALUE; inside `None` for NO MINVALUE.
    pub min: Option<Option<i64>>,
    /// MAXVALUE; inside `None` for NO MAXVALUE.
    pub max: Option<Option<i64>>,
    /// START
    pub start: Option<i64>,
    /// RESTART; inside `None` without a value.
    pub restart: Option<Option<i64>>,
    /// CACHE
    pub cache: Option<i64>,
    /// CYCLE
    pub cycle: Option<bool>,
    /// OWNED BY; inside `None` for NONE.
    pub owner: Option<Option<ObjectName>>,
}

/// The statement, if it is one of these. `body`: the statement without leading blanks.
pub fn parse(sql: &str, body: &str) -> SqlResult<Option<SequenceStatement>> {
    let mut words = body.split_ascii_whitespace();
    let action = match words.next().map(str::to_ascii_uppercase).as_deref() {
        Some("CREATE") => Action::Create,
        Some("ALTER") => Action::Alter,
        _ => return Ok(None),
    };
    if !words.next().is_some_and(|word| word.eq_ignore_ascii_case("sequence")) {
        return Ok(None);
    }
    let dialect = PostgreSqlDialect {};
    let mut parser =
        Parser::new(&dialect).with_recursion_limit(MAX_DEPTH).try_with_sql(sql).map_err(|e| syntax(e, sql))?;
    let parsed = statement(&mut parser, action).map_err(|error| match error {
        Refused::Syntax(error) => syntax(error, sql),
        Refused::Other(error) => error,
    });
    parsed.map(Some)
}

enum Refused {
    Syntax(ParserError),
    Other(SqlError),
}

impl From<ParserError> for Refused {
    fn from(error: ParserError) -> Self {
        Refused::Syntax(error)
    }
}

impl From<SqlError> for Refused {
    fn from(error: SqlError) -> Self {
        Refused::Other(error)
    }
}

/// Takes these words when they come next.
fn words(parser: &mut Parser<'_>, wanted: &[&str]) -> bool {
    let is = |(at, word): (usize, &&str)| match parser.peek_nth_token(at).token {
        Token::Word(found) => found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word),
        _ => false,
    };
    let all = wanted.iter().enumerate().all(is);
    if all {
        wanted.iter().for_each(|_| drop(parser.next_token()));
    }
    all
}

fn number(parser: &mut Parser<'_>) -> Result<i64, Refused> {
    let negative = parser.consume_token(&Token::Minus);
    if !negative {
        let _ = parser.consume_token(&Token::Plus);
    }
    let token = parser.next_token();
    let Token::Number(digits, _) = &token.token else {
        return Ok(parser.expected("a number", token)?);
    };
    let digits = if negative { format!("-{digits}") } else { digits.clone() };
    digits.parse().map_err(|_| Refused::Other(SqlError::value_out_of_range("bigint", &digits)))
}

fn statement(parser: &mut Parser<'_>, action: Action) -> Result<SequenceStatement, Refused> {
    parser.next_token();
    parser.next_token();
    let lenient = match action {
        Action::Create => words(parser, &["if", "not", "exists"]),
        Action::Alter => words(parser, &["if", "exists"]),
    };
    let name = parser.parse_object_name(false)?;
    let mut options = SequenceOptions::default();
    loop {
        let next = parser.peek_token();
        if matches!(next.token, Token::EOF | Token::SemiColon) {
            break;
        }
        if !option(parser, action, &mut options)? {
            return Ok(parser.expected("an option of a sequence", next)?);
        }
    }
    Ok(SequenceStatement { name, action, lenient, options })
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), Refused> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(SqlError::syntax("conflicting or redundant options").into()),
    }
}

fn option(parser: &mut Parser<'_>, action: Action, options: &mut SequenceOptions) -> Result<bool, Refused> {
    if words(parser, &["as"]) {
        let data_type = parser.parse_data_type()?;
        set(&mut options.column_type, type_names::column_type(&data_type)?)?;
    } else if words(parser, &["increment"]) {
        words(parser, &["by"]);
        set(&mut options.increment, number(parser)?)?;
    } else if words(parser, &["minvalue"]) {
        set(&mut options.min, Some(number(parser)?))?;
    } else if words(parser, &["maxvalue"]) {
        set(&mut options.max, Some(number(parser)?))?;
    } else if words(parser, &["no", "minvalue"]) {
        set(&mut options.min, None)?;
    } else if words(parser, &["no", "maxvalue"]) {
        set(&mut options.max, None)?;
    } else if words(parser, &["start"]) {
        words(parser, &["with"]);
        set(&mut options.start, number(parser)?)?;
    } else if action == Action::Alter && words(parser, &["restart"]) {
        let with = words(parser, &["with"]);
        let says_value = with || matches!(parser.peek_token().token, Token::Number(..) | Token::Minus | Token::Plus);
        let value = if says_value { Some(number(parser)?) } else { None };
        set(&mut options.restart, value)?;
    } else if words(parser, &["cache"]) {
        set(&mut options.cache, number(parser)?)?;
    } else if words(parser, &["cycle"]) {
        set(&mut options.cycle, true)?;
    } else if words(parser, &["no", "cycle"]) {
        set(&mut options.cycle, false)?;
    } else if words(parser, &["owned", "by"]) {
        let owner = if words(parser, &["none"]) { None } else { Some(parser.parse_object_name(false)?) };
        set(&mut options.owner, owner)?;
    } else if action == Action::Alter && (words(parser, &["rename"]) || words(parser, &["owner"])) {
        return Err(SqlError::unsupported("ALTER SEQUENCE … RENAME, OWNER TO").into());
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// The options in the parentheses of an identity column, as the parser left them.
pub fn identity_options(parsed: &[ast::SequenceOptions]) -> SqlResult<SequenceOptions> {
    use ast::SequenceOptions as O;
    let value = |expr: &ast::Expr| -> SqlResult<i64> {
        let digits = expr.to_string();
        digits.parse().map_err(|_| SqlError::value_out_of_range("bigint", &digits))
    };
    let mut options = SequenceOptions::default();
    for option in parsed {
        match option {
            O::IncrementBy(by, _) => options.increment = Some(value(by)?),
            O::MinValue(min) => options.min = Some(min.as_ref().map(value).transpose()?),
            O::MaxValue(max) => options.max = Some(max.as_ref().map(value).transpose()?),
            O::StartWith(start, _) => options.start = Some(value(start)?),
            O::Cache(cache) => options.cache = Some(value(cache)?),
            // It says whether NO was said.
            O::Cycle(no) => options.cycle = Some(!no),
        }
    }
    Ok(options)
}

/// The beginnings of an identity column's options, in the order in which the parser takes them.
const ORDER: [&[&str]; 6] = [&["increment"], &["minvalue"], &["maxvalue"], &["start"], &["cache"], &["cycle"]];

/// The tokens of a CREATE TABLE with the options of its identity columns in the parser's order; `None` when there are none.
pub fn ordered(sql: &str, tokens: &[TokenWithSpan]) -> Option<Vec<TokenWithSpan>> {
    if !contains_word(sql, "identity") {
        return None;
    }
    let solid = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_));
    let tokens: Vec<TokenWithSpan> = tokens.iter().filter(solid).cloned().collect();
    let (mut out, mut rest) = (Vec::with_capacity(tokens.len()), tokens.as_slice());
    while let Some((token, tail)) = rest.split_first() {
        out.push(token.clone());
        rest = tail;
        if is_word(&token.token, "identity")
            && let Some(open) = rest.first().filter(|token| token.token == Token::LParen)
        {
            let end = rest.iter().position(|token| token.token == Token::RParen)?;
            out.push(open.clone());
            out.extend(sorted(&rest[1..end]));
            rest = &rest[end..];
        }
    }
    Some(out)
}

fn is_word(token: &Token, word: &str) -> bool {
    matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
}

fn sorted(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    let place = |tokens: &[TokenWithSpan]| {
        let begins = |words: &&[&str]| tokens.first().is_some_and(|token| is_word(&token.token, words[0]));
        ORDER.iter().position(begins)
    };
    let mut options: Vec<(usize, Vec<TokenWithSpan>)> = Vec::new();
    let mut rest = tokens;
    while let Some((first, tail)) = rest.split_first() {
        let no = is_word(&first.token, "no");
        match place(if no { tail } else { rest }) {
            Some(at) => options.push((at, vec![first.clone()])),
            // Belongs to the option before; what is none at all stays first and is the parser's to refuse.
            None => match options.last_mut() {
                Some((_, option)) => option.push(first.clone()),
                None => options.push((0, vec![first.clone()])),
            },
        }
        rest = tail;
        if no && let Some((second, tail)) = rest.split_first() {
            if let Some((_, option)) = options.last_mut() {
                option.push(second.clone());
            }
            rest = tail;
        }
    }
    options.sort_by_key(|(at, _)| *at);
    options.into_iter().flat_map(|(_, option)| option).collect()
}

fn contains_word(sql: &str, word: &str) -> bool {
    sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|found| found.eq_ignore_ascii_case(word))
}

/// What INSERT says about identity columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overriding {
    /// Its values are taken even where the sequence should say.
    System,
    /// Its values for identity columns are left aside.
    User,
}

impl Overriding {
    fn word(self) -> &'static str {
        match self {
            Overriding::System => "OVERRIDING SYSTEM VALUE",
            Overriding::User => "OVERRIDING USER VALUE",
        }
    }

    /// What a parsed INSERT said.
    pub fn of(insert: &ast::Insert) -> Option<Overriding> {
        let said = insert.after_columns.first()?;
        [Overriding::System, Overriding::User].into_iter().find(|overriding| overriding.word() == said.value)
    }

    /// Keeps it in a parsed INSERT: in the columns behind Hive's PARTITION, which PostgreSQL has not.
    pub fn keep(self, insert: &mut ast::Insert) {
        insert.after_columns = vec![Ident::new(self.word())];
    }
}

/// The clause taken out of an INSERT: its text without it, as long as before.
pub fn overriding(sql: &str) -> Option<(Overriding, String)> {
    if !contains_word(sql, "overriding") {
        return None;
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().ok()?;
    let mut solid = tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_)));
    let first = solid.find(|token| is_word(&token.token, "overriding"))?;
    let (kind, last) = (solid.next()?, solid.next()?);
    let overriding = match () {
        () if is_word(&kind.token, "system") => Overriding::System,
        () if is_word(&kind.token, "user") => Overriding::User,
        () => return None,
    };
    if !is_word(&last.token, "value") {
        return None;
    }
    let offset = |line: u64, column: u64| {
        let begin: usize = sql.split_inclusive('\n').take(line as usize - 1).map(str::len).sum();
        let within = sql[begin..].char_indices().nth(column as usize - 1);
        begin + within.map_or(sql.len() - begin, |(at, _)| at)
    };
    let start = offset(first.span.start.line, first.span.start.column);
    let end = offset(last.span.end.line, last.span.end.column);
    let blanks = " ".repeat(sql[start..end].chars().count());
    Some((overriding, format!("{}{blanks}{}", &sql[..start], &sql[end..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::SqlState;

    fn parsed(sql: &str) -> SqlResult<SequenceStatement> {
        parse(sql, sql).map(|parsed| parsed.expect(sql))
    }

    #[test]
    fn options_come_in_any_order() {
        let all = parsed(
            "create sequence if not exists public.s cycle start -5 increment by -1 no minvalue maxvalue 9 as int2 cache 3 owned by t.a",
        );
        let SequenceStatement { lenient, options, action, .. } = all.unwrap();
        assert!(lenient && action == Action::Create && options.cycle == Some(true));
        assert_eq!((options.start, options.increment, options.cache), (Some(-5), Some(-1), Some(3)));
        assert_eq!((options.min, options.max), (Some(None), Some(Some(9))));
        assert_eq!(options.owner.unwrap().unwrap().to_string(), "t.a");
        let restarted = parsed("ALTER SEQUENCE s RESTART OWNED BY NONE;").unwrap().options;
        assert_eq!((restarted.restart, restarted.owner), (Some(None), Some(None)));
        assert_eq!(parsed("alter sequence s restart with 7").unwrap().options.restart, Some(Some(7)));
        for wrong in [
            "create sequence s restart",
            "create sequence s cycle no cycle",
            "create sequence s start",
            "alter sequence",
        ] {
            assert_eq!(parsed(wrong).unwrap_err().sqlstate, SqlState::SYNTAX_ERROR, "{wrong}");
        }
        assert!(parse("create table s", "create table s").unwrap().is_none());
    }

    #[test]
    fn identity_options_are_put_in_order() {
        let tokens = |sql: &str| {
            let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().unwrap();
            ordered(sql, &tokens)
        };
        let sorted = tokens("create table t (a int generated always as identity (start 5 no cycle increment by 2))");
        let shown: Vec<String> = sorted.unwrap().iter().map(|token| token.token.to_string()).collect();
        assert!(shown.join(" ").ends_with("identity ( increment by 2 start 5 no cycle ) )"), "{shown:?}");
        assert!(tokens("create table t (a int)").is_none());
    }

    #[test]
    fn overriding_is_taken_out() {
        let (kind, rest) = overriding("insert into t (a)\n Overriding  system value values ('overriding')").unwrap();
        assert_eq!(kind, Overriding::System);
        assert_eq!(rest, format!("insert into t (a)\n {} values ('overriding')", " ".repeat(24)));
        assert!(overriding("insert into t values ('overriding system value')").is_none());
    }
}
