//! Dates and timestamps: PostgreSQL's text (DateStyle ISO) in and out.
//!
//! Read: `2024-02-29`, `20240229`, `2024-02-29 13:05:59.123456`, `…T…`, a zone behind it (`Z`, `+02`, `+05:30`,
//! `Europe/Vienna`), `BC`, `epoch`, `infinity`, `-infinity`. PostgreSQL's other spellings (`Feb 29 2024`, `now`)
//! are refused with 22007.

use chrono::{Offset, TimeZone};
use chrono_tz::Tz;

use crate::error::{SqlError, SqlResult, SqlState};

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;
/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL's binary forms start.
pub const POSTGRES_EPOCH_DAYS: i32 = 10_957;
/// First day PostgreSQL knows, 4713-01-01 BC (Julian day 0 is a little earlier).
const MIN_DATE: i64 = -2_440_588;
/// 5874898-01-01, the first day PostgreSQL does not know any more.
const END_DATE: i64 = 2_145_042_541;
/// Day of 294247-01-01: timestamps in microseconds since 1970 end in that year.
const END_TIMESTAMP_DATE: i64 = 106_751_617;

/// Days since 1970-01-01 of a proleptic Gregorian date; year 0 is 1 BC.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The reverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// What a date/time text says.
struct Parsed {
    days: i64,
    time_us: i64,
    zone: Option<Zone>,
}

enum Zone {
    Offset(i64),
    Named(Tz),
}

enum Fault {
    Syntax,
    Range,
    UnknownZone(String),
}

enum Special {
    Epoch,
    Infinity,
    MinusInfinity,
}

fn special(word: &str) -> Option<Special> {
    if word.eq_ignore_ascii_case("epoch") {
        Some(Special::Epoch)
    } else if word.eq_ignore_ascii_case("infinity") || word.eq_ignore_ascii_case("+infinity") {
        Some(Special::Infinity)
    } else if word.eq_ignore_ascii_case("-infinity") {
        Some(Special::MinusInfinity)
    } else {
        None
    }
}

fn number(text: &str) -> Result<i64, Fault> {
    if text.is_empty() || text.len() > 9 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::Syntax);
    }
    text.parse().map_err(|_| Fault::Syntax)
}

fn parse_date_part(text: &str, before_christ: bool) -> Result<i64, Fault> {
    let (year, month, day) = if text.len() == 8 && !text.contains('-') {
        if !text.is_ascii() {
            return Err(Fault::Syntax);
        }
        (number(&text[..4])?, number(&text[4..6])?, number(&text[6..])?)
    } else {
        let mut parts = text.split('-');
        let (Some(y), Some(m), Some(d), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Fault::Syntax);
        };
        if y.len() < 3 || m.len() > 2 || d.len() > 2 {
            return Err(Fault::Syntax);
        }
        (number(y)?, number(m)?, number(d)?)
    };
    let year = match (before_christ, year) {
        (_, 0) => return Err(Fault::Range),
        (true, year) => 1 - year,
        (false, year) => year,
    };
    if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
        return Err(Fault::Range);
    }
    Ok(days_from_civil(year, month, day))
}

/// `13:05`, `13:05:59`, `13:05:59.123456`; more digits are rounded. 24:00:00 is allowed as in PostgreSQL.
fn parse_time_part(text: &str) -> Result<i64, Fault> {
    let mut parts = text.split(':');
    let (Some(hour), Some(minute)) = (parts.next(), parts.next()) else { return Err(Fault::Syntax) };
    let second = parts.next().unwrap_or("0");
    if parts.next().is_some() {
        return Err(Fault::Syntax);
    }
    let (second, fraction) = second.split_once('.').unwrap_or((second, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Fault::Syntax);
    }
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    let mut micros = 0;
    for at in 0..6 {
        micros = micros * 10 + fraction.as_bytes().get(at).map_or(0, |b| i64::from(b - b'0'));
    }
    if fraction.as_bytes().get(6).is_some_and(|b| *b >= b'5') {
        micros += 1;
    }
    let total = ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros;
    if minute > 59 || second > 60 || total > DAY_US {
        return Err(Fault::Range);
    }
    Ok(total)
}

/// `Z`, `UTC`, `+02`, `-05:30`, `+0530`, a zone of the IANA database.
fn parse_zone(text: &str) -> Result<Zone, Fault> {
    let (sign, digits) = match text.as_bytes().first() {
        Some(b'+') => (1, &text[1..]),
        Some(b'-') => (-1, &text[1..]),
        _ if text.eq_ignore_ascii_case("z") => return Ok(Zone::Offset(0)),
        _ => {
            let zone = time_zone(text).ok_or_else(|| Fault::UnknownZone(text.to_owned()))?;
            return Ok(Zone::Named(zone));
        }
    };
    if !digits.is_ascii() {
        return Err(Fault::Syntax);
    }
    let parts: Vec<&str> = if digits.contains(':') {
        digits.split(':').collect()
    } else if digits.len() == 4 {
        vec![&digits[..2], &digits[2..]]
    } else {
        vec![digits]
    };
    let mut seconds = 0;
    for (at, unit) in [3600, 60, 1].into_iter().enumerate() {
        seconds += parts.get(at).map_or(Ok(0), |part| number(part))? * unit;
    }
    if parts.len() > 3 || seconds >= 16 * 3600 {
        return Err(Fault::Range);
    }
    Ok(Zone::Offset(sign * seconds))
}

/// A zone of the IANA database by its name, in any case.
pub fn time_zone(name: &str) -> Option<Tz> {
    name.parse()
        .ok()
        .or_else(|| chrono_tz::TZ_VARIANTS.iter().copied().find(|zone| zone.name().eq_ignore_ascii_case(name)))
}

fn parse(text: &str) -> Result<Parsed, Fault> {
    let mut rest = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let mut before_christ = false;
    if rest.len() > 3 && rest.is_char_boundary(rest.len() - 3) && rest[rest.len() - 3..].eq_ignore_ascii_case(" bc") {
        before_christ = true;
        rest = rest[..rest.len() - 3].trim_end();
    }
    let date_end = rest.find([' ', 'T', 't']).unwrap_or(rest.len());
    let days = parse_date_part(&rest[..date_end], before_christ)?;
    let rest = rest.get(date_end + 1..).unwrap_or("").trim_start();
    if rest.is_empty() {
        return Ok(Parsed { days, time_us: 0, zone: None });
    }
    let time_end = rest.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.').unwrap_or(rest.len());
    let time_us = parse_time_part(&rest[..time_end])?;
    let zone = rest[time_end..].trim();
    let zone = if zone.is_empty() { None } else { Some(parse_zone(zone)?) };
    Ok(Parsed { days, time_us, zone })
}

fn refuse(fault: Fault, type_name: &str, text: &str) -> SqlError {
    match fault {
        Fault::Syntax => SqlError::new(
            SqlState::INVALID_DATETIME_FORMAT,
            format!("invalid input syntax for type {type_name}: \"{text}\""),
        ),
        Fault::Range => {
            SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("date/time field value out of range: \"{text}\""))
        }
        Fault::UnknownZone(zone) => {
            SqlError::new(SqlState::INVALID_PARAMETER_VALUE, format!("time zone \"{zone}\" not recognized"))
        }
    }
}

/// `date_in`: days since 1970-01-01.
pub fn parse_date(text: &str) -> SqlResult<i32> {
    match special(text.trim()) {
        Some(Special::Epoch) => return Ok(0),
        Some(Special::Infinity) => return Ok(i32::MAX),
        Some(Special::MinusInfinity) => return Ok(i32::MIN),
        None => {}
    }
    let parsed = parse(text).map_err(|fault| refuse(fault, "date", text))?;
    if !(MIN_DATE..END_DATE).contains(&parsed.days) {
        return Err(SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("date out of range: \"{text}\"")));
    }
    Ok(parsed.days as i32)
}

fn micros(parsed: &Parsed, text: &str) -> SqlResult<i64> {
    if !(MIN_DATE..END_TIMESTAMP_DATE).contains(&parsed.days) {
        return Err(SqlError::new(SqlState::DATETIME_FIELD_OVERFLOW, format!("timestamp out of range: \"{text}\"")));
    }
    Ok(parsed.days * DAY_US + parsed.time_us)
}

fn special_timestamp(text: &str) -> Option<i64> {
    special(text.trim()).map(|special| match special {
        Special::Epoch => 0,
        Special::Infinity => i64::MAX,
        Special::MinusInfinity => i64::MIN,
    })
}

/// `timestamp_in`: microseconds since 1970-01-01 00:00. A zone in the text is read and ignored, as PostgreSQL does.
pub fn parse_timestamp(text: &str) -> SqlResult<i64> {
    if let Some(value) = special_timestamp(text) {
        return Ok(value);
    }
    let parsed = parse(text).map_err(|fault| refuse(fault, "timestamp", text))?;
    micros(&parsed, text)
}

/// `timestamptz_in`: microseconds since 1970-01-01 00:00 UTC. Without a zone the text is in `zone`.
pub fn parse_timestamptz(text: &str, zone: Tz) -> SqlResult<i64> {
    if let Some(value) = special_timestamp(text) {
        return Ok(value);
    }
    let type_name = "timestamp with time zone";
    let parsed = parse(text).map_err(|fault| refuse(fault, type_name, text))?;
    let local = micros(&parsed, text)?;
    Ok(match parsed.zone {
        Some(Zone::Offset(seconds)) => local - seconds * 1_000_000,
        Some(Zone::Named(named)) => local_to_utc(local, named),
        None => local_to_utc(local, zone),
    })
}

/// A wall clock's time in `zone` as UTC. In a gap, and of two readings, PostgreSQL takes standard time: the later one.
pub fn local_to_utc(local: i64, zone: Tz) -> i64 {
    if zone == Tz::UTC {
        return local;
    }
    let Some(naive) = chrono::DateTime::from_timestamp_micros(local).map(|at| at.naive_utc()) else { return local };
    let offset = match zone.offset_from_local_datetime(&naive) {
        chrono::LocalResult::Single(offset) => offset.fix(),
        chrono::LocalResult::Ambiguous(_, later) => later.fix(),
        chrono::LocalResult::None => {
            // The gap has no offset of its own; the one before the gap is standard time.
            zone.offset_from_utc_datetime(&(naive - chrono::TimeDelta::days(1))).fix()
        }
    };
    local - i64::from(offset.local_minus_utc()) * 1_000_000
}

/// Seconds east of UTC in `zone` at an instant.
pub fn offset_seconds(utc: i64, zone: Tz) -> i32 {
    if zone == Tz::UTC {
        return 0;
    }
    chrono::DateTime::from_timestamp_micros(utc)
        .map_or(0, |at| zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc())
}

fn push_date(days: i64, out: &mut String) -> bool {
    use std::fmt::Write;
    let (year, month, day) = civil_from_days(days);
    let (shown, before_christ) = if year > 0 { (year, false) } else { (1 - year, true) };
    write!(out, "{shown:04}-{month:02}-{day:02}").expect("a String takes everything");
    before_christ
}

/// `date_out`.
pub fn format_date(days: i32, out: &mut String) {
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        _ => {
            if push_date(i64::from(days), out) {
                out.push_str(" BC");
            }
        }
    }
}

/// `timestamp_out`.
pub fn format_timestamp(micros: i64, out: &mut String) {
    format_with_offset(micros, None, out);
}

/// `timestamptz_out` in `zone`.
pub fn format_timestamptz(utc: i64, zone: Tz, out: &mut String) {
    if utc == i64::MAX || utc == i64::MIN {
        return format_with_offset(utc, None, out);
    }
    let offset = offset_seconds(utc, zone);
    format_with_offset(utc.saturating_add(i64::from(offset) * 1_000_000), Some(offset), out);
}

fn format_with_offset(local: i64, offset: Option<i32>, out: &mut String) {
    use std::fmt::Write;
    if local == i64::MAX || local == i64::MIN {
        return out.push_str(if local > 0 { "infinity" } else { "-infinity" });
    }
    let before_christ = push_date(local.div_euclid(DAY_US), out);
    let time = local.rem_euclid(DAY_US);
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    write!(out, " {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        .expect("a String takes everything");
    if fraction != 0 {
        write!(out, ".{fraction:06}").expect("a String takes everything");
        out.truncate(out.trim_end_matches('0').len());
    }
    if let Some(offset) = offset {
        let (sign, absolute) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
        write!(out, "{sign}{:02}", absolute / 3600).expect("a String takes everything");
        if absolute % 3600 != 0 {
            write!(out, ":{:02}", absolute / 60 % 60).expect("a String takes everything");
        }
        if absolute % 60 != 0 {
            write!(out, ":{:02}", absolute % 60).expect("a String takes everything");
        }
    }
    if before_christ {
        out.push_str(" BC");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> String {
        let mut out = String::new();
        format_date(parse_date(text).unwrap(), &mut out);
        out
    }
    fn stamp(text: &str) -> String {
        let mut out = String::new();
        format_timestamp(parse_timestamp(text).unwrap(), &mut out);
        out
    }
    fn stamptz(text: &str, zone: Tz) -> String {
        let mut out = String::new();
        format_timestamptz(parse_timestamptz(text, zone).unwrap(), zone, &mut out);
        out
    }

    #[test]
    fn dates_round_trip() {
        for text in ["2024-02-29", "0001-01-01", "1969-12-31", "infinity", "-infinity", "4713-01-01 BC", "12024-02-29"]
        {
            assert_eq!(date(text), text);
        }
        assert_eq!(date("20240229"), "2024-02-29");
        assert_eq!(date("epoch"), "1970-01-01");
        assert_eq!(parse_date("2023-02-29").unwrap_err().sqlstate, SqlState::DATETIME_FIELD_OVERFLOW);
        assert_eq!(parse_date("hello").unwrap_err().sqlstate, SqlState::INVALID_DATETIME_FORMAT);
        assert_eq!(parse_date("").unwrap_err().sqlstate, SqlState::INVALID_DATETIME_FORMAT);
        assert_eq!(parse_date("2000-01-01").unwrap(), POSTGRES_EPOCH_DAYS);
    }

    #[test]
    fn timestamps_are_postgresqls() {
        assert_eq!(stamp("2024-02-29T13:05:59.1234567"), "2024-02-29 13:05:59.123457");
        assert_eq!(stamp("2024-02-29 24:00"), "2024-03-01 00:00:00");
        assert_eq!(stamp("2024-02-29 13:05:59.120000+02"), "2024-02-29 13:05:59.12");
        let vienna = time_zone("europe/vienna").unwrap();
        assert_eq!(stamptz("2024-07-01 12:00", vienna), "2024-07-01 12:00:00+02");
        assert_eq!(stamptz("2024-07-01 12:00Z", vienna), "2024-07-01 14:00:00+02");
        assert_eq!(stamptz("2024-07-01 12:00 Asia/Kolkata", Tz::UTC), "2024-07-01 06:30:00+00");
        assert_eq!(stamptz("2024-07-01 12:00", time_zone("Asia/Kolkata").unwrap()), "2024-07-01 12:00:00+05:30");
        assert!(parse_timestamptz("2024-07-01 12:00 Nowhere/Land", Tz::UTC).is_err());
    }
}
