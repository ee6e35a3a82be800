//! NUMERIC: 128 bits of digits and a scale, PostgreSQL's rounding, rules of result scales and text.
//!
//! PostgreSQL goes up to 131,072 digits; this holds 38, what Arrow's `Decimal128` computes with, so that a
//! value is the same on every path. What needs more is 22003, never a silently rounded result. NaN and the
//! infinities of PostgreSQL's numeric are refused with 0A000.

use std::cmp::Ordering;

use crate::error::{SqlError, SqlResult, SqlState};

/// Digits a value can have.
pub const MAX_PRECISION: u8 = 38;
/// Digits after the point a quotient gets at least, as PostgreSQL's NUMERIC_MIN_SIG_DIGITS.
const MIN_SIGNIFICANT_DIGITS: i32 = 16;

/// `mantissa × 10^−scale`; the scale is also how many digits are shown.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    mantissa: i128,
    scale: u8,
}

fn overflow() -> SqlError {
    SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
        .with_detail(format!("FlareDB's numeric holds {MAX_PRECISION} digits."))
}

fn power_of_ten(exponent: u32) -> Option<i128> {
    10i128.checked_pow(exponent)
}

fn digits(mantissa: i128) -> u32 {
    mantissa.unsigned_abs().checked_ilog10().map_or(1, |log| log + 1)
}

/// Divides, rounding half away from zero as PostgreSQL does.
fn divide_rounded(dividend: i128, divisor: i128) -> i128 {
    let quotient = dividend / divisor;
    let remainder = dividend % divisor;
    // |remainder| ≥ |divisor| / 2 without overflow.
    if remainder.unsigned_abs() >= divisor.unsigned_abs() - remainder.unsigned_abs() {
        quotient + if (dividend < 0) == (divisor < 0) { 1 } else { -1 }
    } else {
        quotient
    }
}

impl Decimal {
    /// `mantissa × 10^−scale`. `None` with more than 38 digits or a scale above 38.
    pub fn new(mantissa: i128, scale: u8) -> Option<Self> {
        (scale <= MAX_PRECISION && digits(mantissa) <= u32::from(MAX_PRECISION)).then_some(Decimal { mantissa, scale })
    }
    /// A whole number.
    pub fn from_i64(value: i64) -> Self {
        Decimal { mantissa: i128::from(value), scale: 0 }
    }
    /// The digits as one integer.
    pub fn mantissa(&self) -> i128 {
        self.mantissa
    }
    /// Digits after the point.
    pub fn scale(&self) -> u8 {
        self.scale
    }
    /// It is 0.
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }
    /// The same value with `scale` digits after the point, rounded half away from zero. 22003 when it has too many digits.
    pub fn rescale(&self, scale: u8) -> SqlResult<Self> {
        let mantissa = match scale.cmp(&self.scale) {
            Ordering::Equal => Some(self.mantissa),
            Ordering::Greater => {
                power_of_ten(u32::from(scale - self.scale)).and_then(|power| self.mantissa.checked_mul(power))
            }
            Ordering::Less => match power_of_ten(u32::from(self.scale - scale)) {
                Some(power) => Some(divide_rounded(self.mantissa, power)),
                None => Some(0),
            },
        };
        mantissa.and_then(|mantissa| Decimal::new(mantissa, scale)).ok_or_else(overflow)
    }
    /// As a value of `numeric(precision, scale)`: rounded, or 22003.
    pub fn fit(&self, precision: u8, scale: u8) -> SqlResult<Self> {
        let too_big = || {
            SqlError::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow").with_detail(format!(
                "A field with precision {precision}, scale {scale} must round to an absolute value less than {}{}.",
                if precision == scale { "1" } else { "10^" },
                if precision == scale { String::new() } else { (precision - scale).to_string() },
            ))
        };
        let value = self.rescale(scale).map_err(|_| too_big())?;
        if digits(value.mantissa) > u32::from(precision) { Err(too_big()) } else { Ok(value) }
    }
    /// Trailing zeros after the point taken off: equal values become the same pair.
    pub fn normalized(&self) -> Self {
        let (mut mantissa, mut scale) = (self.mantissa, self.scale);
        while scale > 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale -= 1;
        }
        Decimal { mantissa, scale }
    }
    fn aligned(&self, other: &Self) -> SqlResult<(i128, i128, u8)> {
        let scale = self.scale.max(other.scale);
        Ok((self.rescale(scale)?.mantissa, other.rescale(scale)?.mantissa, scale))
    }
    /// Sum; 22003 past 38 digits.
    pub fn add(&self, other: &Self) -> SqlResult<Self> {
        let (a, b, scale) = self.aligned(other)?;
        a.checked_add(b).and_then(|sum| Decimal::new(sum, scale)).ok_or_else(overflow)
    }
    /// Difference; 22003 past 38 digits.
    pub fn sub(&self, other: &Self) -> SqlResult<Self> {
        let (a, b, scale) = self.aligned(other)?;
        a.checked_sub(b).and_then(|sum| Decimal::new(sum, scale)).ok_or_else(overflow)
    }
    /// Product, its scale the sum of both; 22003 past 38 digits.
    pub fn mul(&self, other: &Self) -> SqlResult<Self> {
        let product = self.mantissa.checked_mul(other.mantissa);
        product.and_then(|product| Decimal::new(product, self.scale.checked_add(other.scale)?)).ok_or_else(overflow)
    }
    /// Quotient with PostgreSQL's result scale (`select_div_scale`); 22012 by zero, 22003 past 38 digits.
    pub fn div(&self, other: &Self) -> SqlResult<Self> {
        if other.is_zero() {
            return Err(SqlError::division_by_zero());
        }
        let scale = self.quotient_scale(other);
        // dividend × 10^(scale − self.scale + other.scale) ÷ divisor
        let shift = i32::from(scale) - i32::from(self.scale) + i32::from(other.scale);
        let (dividend, divisor) = if shift >= 0 {
            (power_of_ten(shift as u32).and_then(|power| self.mantissa.checked_mul(power)), Some(other.mantissa))
        } else {
            let power = power_of_ten(shift.unsigned_abs());
            (Some(self.mantissa), power.and_then(|power| other.mantissa.checked_mul(power)))
        };
        let (Some(dividend), Some(divisor)) = (dividend, divisor) else { return Err(overflow()) };
        Decimal::new(divide_rounded(dividend, divisor), scale).ok_or_else(overflow)
    }
    /// Remainder with the sign of the dividend; 22012 by zero.
    pub fn rem(&self, other: &Self) -> SqlResult<Self> {
        if other.is_zero() {
            return Err(SqlError::division_by_zero());
        }
        let (a, b, scale) = self.aligned(other)?;
        Decimal::new(a % b, scale).ok_or_else(overflow)
    }
    /// With the other sign.
    pub fn neg(&self) -> Self {
        Decimal { mantissa: -self.mantissa, scale: self.scale }
    }
    /// Weight (in digits base 10,000) and value of the first such digit, as PostgreSQL's NumericVar has them.
    fn weight_and_first(&self) -> (i32, i32) {
        if self.mantissa == 0 {
            return (0, 0);
        }
        // Position of the leading decimal digit relative to the point: 0 for units.
        let leading = digits(self.mantissa) as i32 - 1 - i32::from(self.scale);
        let weight = leading.div_euclid(4);
        let magnitude = self.mantissa.unsigned_abs();
        let shift = weight * 4 + i32::from(self.scale);
        let first = if shift >= 0 {
            magnitude / 10u128.pow(shift as u32)
        } else {
            magnitude * 10u128.pow(shift.unsigned_abs())
        };
        (weight, first as i32)
    }
    fn quotient_scale(&self, other: &Self) -> u8 {
        let (weight_1, first_1) = self.weight_and_first();
        let (weight_2, first_2) = other.weight_and_first();
        let mut quotient_weight = weight_1 - weight_2;
        if first_1 <= first_2 {
            quotient_weight -= 1;
        }
        let scale = MIN_SIGNIFICANT_DIGITS - quotient_weight * 4;
        scale.max(i32::from(self.scale)).max(i32::from(other.scale)).clamp(0, i32::from(MAX_PRECISION)) as u8
    }
    /// The nearest float.
    pub fn to_f64(&self) -> f64 {
        if self.scale == 0 {
            return self.mantissa as f64;
        }
        let mut text = String::new();
        self.format(&mut text);
        text.parse().expect("a decimal number reads as a float")
    }
    /// A float as numeric, with the 15 digits PostgreSQL's cast keeps (`digits` = 6 for real).
    pub fn from_f64(value: f64, digits: usize) -> SqlResult<Self> {
        if !value.is_finite() {
            return Err(SqlError::unsupported("NaN or infinity in a numeric"));
        }
        let text = format!("{value:.*e}", digits - 1);
        let (mantissa, exponent) = text.split_once('e').expect("{:e} writes an e");
        let mantissa =
            if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
        Decimal::parse(&format!("{mantissa}e{exponent}"))
    }
    /// Rounded to a whole number; `None` when that is no i64.
    pub fn to_i64(&self) -> Option<i64> {
        i64::try_from(self.rescale(0).ok()?.mantissa).ok()
    }
    /// `numeric_in` without a modifier.
    pub fn parse(text: &str) -> SqlResult<Self> {
        let word = text.trim_matches(|c: char| c.is_ascii_whitespace());
        let invalid = || SqlError::invalid_input("numeric", text);
        let unsigned = word.trim_start_matches(['+', '-']);
        if ["nan", "infinity", "inf"].iter().any(|special| unsigned.eq_ignore_ascii_case(special)) {
            return Err(SqlError::unsupported("NaN or infinity in a numeric"));
        }
        let (number, exponent) = match word.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().map_err(|_| invalid())?),
            None => (word, 0),
        };
        let (negative, number) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
            return Err(invalid());
        }
        let mut mantissa: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()) {
            mantissa =
                mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(digit - b'0'))).ok_or_else(overflow)?;
        }
        let mantissa = if negative { -mantissa } else { mantissa };
        // "1.50e1" is 15.0: the exponent moves the point, and a scale below zero becomes digits.
        let scale = i64::try_from(fraction.len()).map_err(|_| overflow())? - i64::from(exponent);
        match u8::try_from(scale) {
            Ok(scale) => Decimal::new(mantissa, scale).ok_or_else(overflow),
            Err(_) if scale < 0 => u32::try_from(-scale)
                .ok()
                .and_then(power_of_ten)
                .and_then(|power| mantissa.checked_mul(power))
                .and_then(|mantissa| Decimal::new(mantissa, 0))
                .ok_or_else(overflow),
            Err(_) => Err(overflow()),
        }
    }
    /// `numeric_out`.
    pub fn format(&self, out: &mut String) {
        use std::fmt::Write;
        let scale = usize::from(self.scale);
        if self.mantissa < 0 {
            out.push('-');
        }
        let magnitude = self.mantissa.unsigned_abs();
        if scale == 0 {
            write!(out, "{magnitude}").expect("a String takes everything");
            return;
        }
        let power = 10u128.pow(scale as u32);
        write!(out, "{}.{:0scale$}", magnitude / power, magnitude % power).expect("a String takes everything");
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Decimal {}
impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.scale == other.scale {
            return self.mantissa.cmp(&other.mantissa);
        }
        // Whole parts first, then fractions brought to one scale: neither overflows.
        let split = |d: &Decimal| {
            let power = 10i128.pow(u32::from(d.scale));
            (d.mantissa / power, d.mantissa % power)
        };
        let ((whole_a, part_a), (whole_b, part_b)) = (split(self), split(other));
        let scale = self.scale.max(other.scale);
        let raise = |part: i128, from: u8| part * 10i128.pow(u32::from(scale - from));
        whole_a.cmp(&whole_b).then_with(|| raise(part_a, self.scale).cmp(&raise(part_b, other.scale)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }
    fn shown(value: Decimal) -> String {
        let mut out = String::new();
        value.format(&mut out);
        out
    }

    #[test]
    fn arithmetic_has_postgresqls_scales() {
        // Each checked with PostgreSQL 15.
        assert_eq!(shown(d("1.50").add(&d("2.5")).unwrap()), "4.00");
        assert_eq!(shown(d("1.50").mul(&d("2.5")).unwrap()), "3.750");
        assert_eq!(shown(d("1").div(&d("3")).unwrap()), "0.33333333333333333333");
        assert_eq!(shown(d("10").div(&d("3")).unwrap()), "3.3333333333333333");
        assert_eq!(shown(d("100000").div(&d("3")).unwrap()), "33333.333333333333");
        assert_eq!(shown(d("7.5").rem(&d("2")).unwrap()), "1.5");
        assert_eq!(d("1").div(&d("0")).unwrap_err().sqlstate, SqlState::DIVISION_BY_ZERO);
    }

    #[test]
    fn text_goes_in_and_out() {
        for (input, output) in
            [("1.50", "1.50"), ("-.5", "-0.5"), ("1.5e3", "1500"), ("1e-3", "0.001"), ("-0.05", "-0.05"), ("5.", "5")]
        {
            assert_eq!(shown(d(input)), output);
        }
        for bad in ["", ".", "1.2.3", "1e", "abc", "1 2", "--1"] {
            assert_eq!(Decimal::parse(bad).unwrap_err().sqlstate, SqlState::INVALID_TEXT_REPRESENTATION, "{bad}");
        }
    }

    #[test]
    fn fits_round_half_away_from_zero() {
        assert_eq!(shown(d("1.005").fit(5, 2).unwrap()), "1.01");
        assert_eq!(shown(d("-1.005").fit(5, 2).unwrap()), "-1.01");
        let error = d("1000").fit(5, 2).unwrap_err();
        assert_eq!(error.message, "numeric field overflow");
        assert!(error.detail.as_ref().unwrap().ends_with("less than 10^3."));
        assert!(d("99999999999999999999999999999999999999").cmp(&d("0.5")).is_gt());
    }
}
