//! PostgreSQL's floats: order, text in and out.

use std::cmp::Ordering;

use crate::error::{SqlError, SqlResult};

/// PostgreSQL's order: NaN equals NaN and is above everything, −0 equals 0.
pub fn compare(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a.partial_cmp(&b).expect("neither is NaN"),
    }
}

/// Special words PostgreSQL reads, in any case, beside what a decimal number looks like.
fn special(text: &str) -> Option<f64> {
    let (sign, word) = match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    };
    if word.eq_ignore_ascii_case("infinity") || word.eq_ignore_ascii_case("inf") {
        Some(sign * f64::INFINITY)
    } else if text.eq_ignore_ascii_case("nan") {
        Some(f64::NAN)
    } else {
        None
    }
}

fn looks_like_a_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'))
}

/// `float8in`.
pub fn parse_f64(text: &str) -> SqlResult<f64> {
    let name = "double precision";
    let word = text.trim_matches(|c: char| c.is_ascii_whitespace());
    if let Some(value) = special(word) {
        return Ok(value);
    }
    if !looks_like_a_number(word) {
        return Err(SqlError::invalid_input(name, text));
    }
    let value: f64 = word.parse().map_err(|_| SqlError::invalid_input(name, text))?;
    if value.is_infinite() || (value == 0.0 && has_nonzero_digit(word)) {
        return Err(out_of_range(name, word));
    }
    Ok(value)
}

/// `float4in`.
pub fn parse_f32(text: &str) -> SqlResult<f32> {
    let name = "real";
    let word = text.trim_matches(|c: char| c.is_ascii_whitespace());
    if let Some(value) = special(word) {
        return Ok(value as f32);
    }
    if !looks_like_a_number(word) {
        return Err(SqlError::invalid_input(name, text));
    }
    let value: f32 = word.parse().map_err(|_| SqlError::invalid_input(name, text))?;
    if value.is_infinite() || (value == 0.0 && has_nonzero_digit(word)) {
        return Err(out_of_range(name, word));
    }
    Ok(value)
}

fn has_nonzero_digit(word: &str) -> bool {
    let mantissa = word.split(['e', 'E']).next().unwrap_or(word);
    mantissa.bytes().any(|b| (b'1'..=b'9').contains(&b))
}

fn out_of_range(name: &str, word: &str) -> SqlError {
    SqlError::new(
        crate::error::SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        format!("\"{word}\" is out of range for type {name}"),
    )
}

/// `float8out` with `extra_float_digits` ≥ 1 (shortest), otherwise with 15 digits.
pub fn format_f64(value: f64, shortest: bool, out: &mut String) {
    if !non_finite(value, out) {
        layout(if shortest { format!("{value:e}") } else { format!("{value:.14e}") }, 15, shortest, out);
    }
}

/// `float4out` with `extra_float_digits` ≥ 1 (shortest), otherwise with 6 digits.
pub fn format_f32(value: f32, shortest: bool, out: &mut String) {
    if !non_finite(f64::from(value), out) {
        layout(if shortest { format!("{value:e}") } else { format!("{value:.5e}") }, 6, shortest, out);
    }
}

fn non_finite(value: f64, out: &mut String) -> bool {
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        return false;
    }
    true
}

/// Lays Rust's `d.ddde±x` out as C's `%g` and PostgreSQL's Ryu printer do: plain digits while the exponent is
/// from −4 to `digits` − 1 (15 or 6 of them), otherwise `1e+20`.
fn layout(scientific: String, digits: i32, shortest: bool, out: &mut String) {
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} writes an e");
    let exponent: i32 = exponent.parse().expect("{:e} writes an integer after the e");
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let mut all: String = mantissa.chars().filter(|c| *c != '.').collect();
    if !shortest {
        all.truncate(all.trim_end_matches('0').len().max(1));
    }
    out.push_str(sign);
    if exponent < -4 || exponent >= digits {
        out.push_str(&all[..1]);
        if all.len() > 1 {
            out.push('.');
            out.push_str(&all[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("e{sign}{:02}", exponent.abs()));
    } else if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
        out.push_str(&all);
    } else {
        let whole = exponent as usize + 1;
        if all.len() <= whole {
            out.push_str(&all);
            out.extend(std::iter::repeat_n('0', whole - all.len()));
        } else {
            out.push_str(&all[..whole]);
            out.push('.');
            out.push_str(&all[whole..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: f64) -> String {
        let mut out = String::new();
        format_f64(value, true, &mut out);
        out
    }

    #[test]
    fn text_is_postgresqls() {
        for (value, text) in [
            (0.1, "0.1"),
            (-0.0, "-0"),
            (1e20, "1e+20"),
            (123456789012345.0, "123456789012345"),
            (1e15, "1e+15"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (100.0, "100"),
        ] {
            assert_eq!(shown(value), text);
        }
        let mut out = String::new();
        format_f32(1e6, true, &mut out);
        assert_eq!(out, "1e+06");
        out.clear();
        format_f64(0.1 + 0.2, false, &mut out);
        assert_eq!(out, "0.3");
        assert!(parse_f64("1e400").is_err() && parse_f64("infinit").is_err() && parse_f64("").is_err());
        assert_eq!(parse_f64(" -inf ").unwrap(), f64::NEG_INFINITY);
    }
}
