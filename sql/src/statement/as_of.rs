//! `AS OF SYSTEM TIME` behind a query, BEGIN or SET TRANSACTION: what was so at a time of the past. PURE.
//!
//! ```text
//!   SELECT … FROM t AS OF SYSTEM TIME '-10s' WHERE …         so long ago
//!   BEGIN AS OF SYSTEM TIME '2026-01-31 12:00:00+00'         then; without a zone, in the session's
//!   … AS OF SYSTEM TIME INTERVAL '-1 hour 30 minutes'
//!   … AS OF SYSTEM TIME follower_read_timestamp()            what the nearest replica is sure to have, wherever that is
//!   … AS OF SYSTEM TIME 1767225600000.7                      a timestamp of the cluster: milliseconds since 1970, and a count
//! ```
//!
//! sqlparser does not know the clause there, so it is taken out of the tokens before they are parsed. A time is only turned
//! into a timestamp when the statement runs: by PD's clock.

use std::time::Duration;

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use proto::Timestamp;

use crate::{
    error::{SqlError, SqlResult, SqlState},
    types::{FormatSettings, datetime},
};

/// A time of the past, as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// In quotes: an interval, a time, or a timestamp of the cluster.
    Text(String),
    /// INTERVAL '…'.
    Interval(String),
    /// A timestamp of the cluster.
    Number(String),
    /// So long ago that replicas that do not lead have it, too.
    Nearby,
}

/// Whether `sql` may hold the clause: cheap.
pub fn may_look_back(sql: &str) -> bool {
    sql.as_bytes().windows(6).any(|word| word.eq_ignore_ascii_case(b"system"))
}

/// Takes the clause outside of all parentheses out of a statement's tokens.
pub fn take(tokens: Vec<TokenWithSpan>) -> SqlResult<(Vec<TokenWithSpan>, Option<Moment>)> {
    let (mut rest, mut moment) = (Vec::with_capacity(tokens.len()), None);
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(token) = tokens.get(at) {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ if depth == 0 => {
                if let Some(behind) = clause(&tokens, at) {
                    let (said, end) = parse_moment(&tokens, behind)?;
                    if moment.replace(said).is_some() {
                        return Err(SqlError::syntax("AS OF SYSTEM TIME is said twice"));
                    }
                    at = end;
                    continue;
                }
            }
            _ => {}
        }
        rest.push(token.clone());
        at += 1;
    }
    Ok((rest, moment))
}

/// The next token that is no blank, from `at` on, and where it is.
fn solid(tokens: &[TokenWithSpan], at: usize) -> Option<(usize, &Token)> {
    let rest = tokens.iter().enumerate().skip(at);
    rest.map(|(at, token)| (at, &token.token)).find(|(_, token)| !matches!(token, Token::Whitespace(_)))
}

fn word(tokens: &[TokenWithSpan], at: usize, wanted: &str) -> Option<usize> {
    match solid(tokens, at)? {
        (at, Token::Word(Word { value, quote_style: None, .. })) if value.eq_ignore_ascii_case(wanted) => Some(at + 1),
        _ => None,
    }
}

/// Where the time stands, if the clause begins at `at`.
fn clause(tokens: &[TokenWithSpan], at: usize) -> Option<usize> {
    // Not at the blanks before it: they are the statement's.
    if matches!(tokens.get(at)?.token, Token::Whitespace(_)) {
        return None;
    }
    ["AS", "OF", "SYSTEM", "TIME"].iter().try_fold(at, |at, wanted| word(tokens, at, wanted))
}

fn parse_moment(tokens: &[TokenWithSpan], at: usize) -> SqlResult<(Moment, usize)> {
    let quoted = |at: usize| match solid(tokens, at) {
        Some((at, Token::SingleQuotedString(text))) => Some((text.clone(), at + 1)),
        _ => None,
    };
    if let Some((text, end)) = quoted(at) {
        return Ok((Moment::Text(text), end));
    }
    if let Some((text, end)) = word(tokens, at, "INTERVAL").and_then(quoted) {
        return Ok((Moment::Interval(text), end));
    }
    if let Some(end) = nearby(tokens, at) {
        return Ok((Moment::Nearby, end));
    }
    match solid(tokens, at) {
        Some((at, Token::Number(text, _))) => Ok((Moment::Number(text.clone()), at + 1)),
        Some((_, Token::Placeholder(_))) => Err(SqlError::unsupported("a parameter behind AS OF SYSTEM TIME")),
        _ => {
            Err(SqlError::syntax("AS OF SYSTEM TIME needs a time in quotes, an INTERVAL or a timestamp of the cluster"))
        }
    }
}

/// Behind `follower_read_timestamp()`.
fn nearby(tokens: &[TokenWithSpan], at: usize) -> Option<usize> {
    let (open, parenthesis) = solid(tokens, word(tokens, at, "follower_read_timestamp")?)?;
    let (close, end) = solid(tokens, open + 1)?;
    (matches!(parenthesis, Token::LParen) && matches!(end, Token::RParen)).then_some(close + 1)
}

fn bad(text: &str) -> SqlError {
    SqlError::new(SqlState::INVALID_PARAMETER_VALUE, format!("AS OF SYSTEM TIME: \"{text}\" is no time of the past"))
        .with_hint("Say how long ago ('-10s'), when ('2026-01-31 12:00:00+00'), or a timestamp of the cluster.")
}

impl Moment {
    /// The timestamp that is meant at PD's time `now`. 22023 when it lies in the future, or is no time.
    pub fn resolve(&self, now: Timestamp, settings: &FormatSettings) -> SqlResult<Timestamp> {
        let ago = |micros: i64| -> Option<Timestamp> {
            let ms = u64::try_from(-i128::from(micros)).ok()?.div_ceil(1_000);
            Some(Timestamp::new(now.physical_ms().checked_sub(ms)?, 0))
        };
        let (text, at) = match self {
            Moment::Interval(text) => (text, interval_micros(text).and_then(ago)),
            Moment::Number(text) => (text, cluster_timestamp(text)),
            Moment::Nearby => return ago(-(NEARBY.as_micros() as i64)).ok_or_else(|| bad("follower_read_timestamp()")),
            Moment::Text(text) if text.trim_start().starts_with(['-', '+']) => {
                (text, interval_micros(text).and_then(ago))
            }
            Moment::Text(text) => match cluster_timestamp(text.trim()) {
                Some(at) => (text, Some(at)),
                None => {
                    let micros = datetime::parse_timestamptz(text, settings.time_zone)?;
                    let ms = u64::try_from(micros / 1_000).ok().filter(|ms| *ms < 1 << MS_BITS);
                    (text, ms.map(|ms| Timestamp::new(ms, 0)))
                }
            },
        };
        let at = at.filter(|at| *at != Timestamp::ZERO).ok_or_else(|| bad(text))?;
        if at > now {
            let message = format!("AS OF SYSTEM TIME: \"{text}\" lies in the future");
            return Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        }
        Ok(at)
    }
}

/// How far behind now `follower_read_timestamp()` is: what leaders say of the past is one second behind, and said every half
/// second.
pub const NEARBY: Duration = Duration::from_secs(3);

/// Bits of a timestamp's milliseconds.
const MS_BITS: u32 = u64::BITS - proto::timestamp::LOGICAL_BITS;

/// `1767225600000.7`.
fn cluster_timestamp(text: &str) -> Option<Timestamp> {
    let (ms, logical) = text.split_once('.').unwrap_or((text, "0"));
    let digits =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (ms, logical) = (digits(ms)?, digits(logical)?);
    (ms < 1 << MS_BITS && logical < 1 << proto::timestamp::LOGICAL_BITS).then(|| Timestamp::new(ms, logical))
}

/// `-10s`, `-1h30m`, `-1 hour 30 minutes`; a sign holds until the next one.
fn interval_micros(text: &str) -> Option<i64> {
    const UNITS: &[(&[&str], i64)] = &[
        (&["us", "microsecond", "microseconds"], 1),
        (&["ms", "millisecond", "milliseconds"], 1_000),
        (&["s", "sec", "secs", "second", "seconds"], 1_000_000),
        (&["m", "min", "mins", "minute", "minutes"], 60_000_000),
        (&["h", "hour", "hours"], 3_600_000_000),
        (&["d", "day", "days"], 86_400_000_000),
    ];
    let (mut rest, mut sign, mut sum, mut any) = (text.trim(), 1_i64, 0_i64, false);
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix(['-', '+']) {
            sign = if rest.starts_with('-') { -1 } else { 1 };
            rest = behind.trim_start();
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].trim_start();
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let name = unit[..end].to_ascii_lowercase();
        let (_, micros) = UNITS.iter().find(|(names, _)| names.contains(&name.as_str()))?;
        sum = sum.checked_add(sign.checked_mul(number)?.checked_mul(*micros)?)?;
        (rest, any) = (unit[end..].trim_start(), true);
    }
    any.then_some(sum)
}

#[cfg(test)]
mod tests {
    use crate::statement::{Command, parse_one};

    use super::*;

    fn moment(sql: &str) -> Moment {
        match parse_one(sql) {
            Ok(Command::AsOf(moment, _)) => (*moment).clone(),
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn resolved(text: &str) -> SqlResult<Timestamp> {
        let now = Timestamp::new(1_767_225_600_000, 5);
        Moment::Text(text.into()).resolve(now, &FormatSettings::default())
    }

    #[test]
    fn the_clause_is_taken_out_wherever_it_may_stand() {
        assert_eq!(moment("SELECT * FROM t AS OF SYSTEM TIME '-10s' WHERE a = 1"), Moment::Text("-10s".into()));
        assert_eq!(moment("begin as of system time interval '-1 h'"), Moment::Interval("-1 h".into()));
        assert_eq!(
            moment("SET TRANSACTION AS OF SYSTEM TIME 1767225600000.7"),
            Moment::Number("1767225600000.7".into())
        );
        assert!(matches!(parse_one("SELECT system AS of FROM t"), Ok(Command::Sql(_))));
        assert_eq!(moment("SELECT 1 AS OF SYSTEM TIME follower_read_timestamp ( )"), Moment::Nearby);
        for wrong in [
            "SELECT 1 AS OF SYSTEM TIME follower_read_timestamp",
            "SELECT 1 AS OF SYSTEM TIME",
            "SELECT 1 AS OF SYSTEM TIME now()",
            "SELECT 1 AS OF SYSTEM TIME '-1s' AS OF SYSTEM TIME '-1s'",
            "SELECT * FROM (SELECT 1 FROM t AS OF SYSTEM TIME '-1s') s",
            "INSERT INTO t VALUES (1) AS OF SYSTEM TIME '-1s'",
            "DELETE FROM t AS OF SYSTEM TIME '-1s'",
        ] {
            assert_eq!(parse_one(wrong).unwrap_err().sqlstate, SqlState::SYNTAX_ERROR, "{wrong}");
        }
    }

    #[test]
    fn times_of_the_past_are_understood_and_others_refused() {
        let ms = |text| resolved(text).unwrap().physical_ms();
        assert_eq!(ms("-10s"), 1_767_225_590_000);
        let (now, settings) = (Timestamp::new(1_767_225_600_000, 5), FormatSettings::default());
        assert_eq!(Moment::Nearby.resolve(now, &settings).unwrap().physical_ms(), 1_767_225_597_000);
        assert_eq!(ms("-1h30m"), 1_767_225_600_000 - 5_400_000);
        assert_eq!(ms("-1 day 2 hours"), 1_767_225_600_000 - 93_600_000);
        assert_eq!(ms("-1500us"), 1_767_225_599_998);
        assert_eq!(ms("2025-12-31 23:59:59+00"), 1_767_225_599_000);
        assert_eq!(resolved("1767225600000.4").unwrap(), Timestamp::new(1_767_225_600_000, 4));
        for wrong in
            ["+10s", "10 s ago", "-10", "-10 parsecs", "-99999999999 days", "0", "1767225600000.6", "2027-01-01", "-"]
        {
            let state = resolved(wrong).unwrap_err().sqlstate;
            assert!([SqlState::INVALID_PARAMETER_VALUE, SqlState::INVALID_DATETIME_FORMAT].contains(&state), "{wrong}");
        }
    }
}
