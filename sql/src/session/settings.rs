//! The settings of a session: SET, SHOW, RESET, and what ParameterStatus reports. PURE.

use std::sync::Arc;

use crate::{
    dml::Isolation,
    error::{SqlError, SqlResult, SqlState},
    types::{FormatSettings, datetime},
};

/// The PostgreSQL version clients may take us for.
pub const SERVER_VERSION: &str = "15.0";

/// What may be done with a setting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Fixed: SHOW only.
    Fixed,
    /// Any text; kept and shown, without effect where PostgreSQL's effect does not exist here.
    Free,
    /// One of these, in lower case.
    OneOf(&'static [&'static str]),
    /// Milliseconds, with an optional unit.
    Duration,
    /// A time zone.
    TimeZone,
    /// ISO, with an order of day and month.
    DateStyle,
}

struct Row {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    reported: bool,
}

const BOOL: Kind = Kind::OneOf(&["on", "off", "true", "false", "yes", "no", "1", "0"]);

const fn row(name: &'static str, default: &'static str, kind: Kind, reported: bool) -> Row {
    Row { name, default, kind, reported }
}

/// All settings, with the names people know.
const ROWS: &[Row] = &[
    row("application_name", "", Kind::Free, true),
    row("client_encoding", "UTF8", Kind::OneOf(&["utf8", "utf-8", "unicode", "sql_ascii"]), true),
    row("DateStyle", "ISO, MDY", Kind::DateStyle, true),
    row("default_transaction_read_only", "off", BOOL, true),
    row("in_hot_standby", "off", Kind::Fixed, true),
    row("integer_datetimes", "on", Kind::Fixed, true),
    row("IntervalStyle", "postgres", Kind::OneOf(&["postgres"]), true),
    row("is_superuser", "on", Kind::Fixed, true),
    row("server_encoding", "UTF8", Kind::Fixed, true),
    row("server_version", SERVER_VERSION, Kind::Fixed, true),
    row("server_version_num", "150000", Kind::Fixed, false),
    row("session_authorization", "postgres", Kind::Free, true),
    row("standard_conforming_strings", "on", Kind::OneOf(&["on"]), true),
    row("TimeZone", "UTC", Kind::TimeZone, true),
    row("bytea_output", "hex", Kind::OneOf(&["hex", "escape"]), false),
    row("extra_float_digits", "1", Kind::Free, false),
    row("search_path", "\"$user\", public", Kind::Free, false),
    row("statement_timeout", "0", Kind::Duration, false),
    row("lock_timeout", "0", Kind::Duration, false),
    row("idle_in_transaction_session_timeout", "0", Kind::Duration, false),
    row("idle_session_timeout", "0", Kind::Duration, false),
    row("client_min_messages", "notice", Kind::Free, false),
    row("default_transaction_isolation", "read committed", Kind::OneOf(LEVELS), false),
    row("transaction_isolation", "read committed", Kind::OneOf(LEVELS), false),
    row("transaction_read_only", "off", BOOL, false),
    row("default_transaction_deferrable", "off", BOOL, false),
    row("synchronous_commit", "on", Kind::OneOf(&["on", "remote_apply", "remote_write"]), false),
    row("row_security", "on", BOOL, false),
    row("check_function_bodies", "on", BOOL, false),
    row("default_table_access_method", "heap", Kind::Free, false),
    row("default_tablespace", "", Kind::Free, false),
    row("escape_string_warning", "on", BOOL, false),
    row("jit", "off", BOOL, false),
    row("max_identifier_length", "63", Kind::Fixed, false),
    row("geqo", "on", BOOL, false),
    row("work_mem", "4MB", Kind::Free, false),
    row("xmloption", "content", Kind::Free, false),
    row("lc_collate", "C", Kind::Fixed, false),
    row("lc_ctype", "C", Kind::Fixed, false),
    row("lc_messages", "C", Kind::Free, false),
    row("max_connections", "100", Kind::Fixed, false),
    row("block_size", "8192", Kind::Fixed, false),
    row(READ_FROM, "leader", Kind::OneOf(&["leader", "nearest"]), false),
];

/// Where queries read that may be somewhat behind.
const READ_FROM: &str = "flaredb.read_from";

const LEVELS: &[&str] = &["read uncommitted", "read committed", "repeatable read", "serializable"];

/// A session's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    values: Arc<Vec<String>>,
    start: Vec<String>,
    /// What values look like.
    pub format: FormatSettings,
}

/// The values of all settings at one time.
#[derive(Clone, Debug)]
pub struct Values(Arc<Vec<String>>);

impl Values {
    /// Takes one value over from `settings`.
    pub fn take_over(&mut self, name: &str, settings: &Settings) {
        if let Ok(at) = position(name) {
            Arc::make_mut(&mut self.0)[at].clone_from(&settings.values[at]);
        }
    }
}

fn position(name: &str) -> SqlResult<usize> {
    // SET TIME ZONE and old clients' spelling.
    let name = if name.eq_ignore_ascii_case("timezone") { "TimeZone" } else { name };
    ROWS.iter().position(|row| row.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        SqlError::new(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))
    })
}

impl Settings {
    /// A session's first settings: the defaults, then what the startup packet says. An unknown name there is an error.
    pub fn new(user: &str, startup: &[(String, String)]) -> SqlResult<Self> {
        let defaults: Vec<String> = ROWS.iter().map(|row| row.default.to_owned()).collect();
        let mut settings =
            Settings { values: Arc::new(defaults.clone()), start: defaults, format: FormatSettings::default() };
        Arc::make_mut(&mut settings.values)[position("session_authorization")?] = user.to_owned();
        for (name, value) in startup {
            settings.set(name, value)?;
        }
        settings.start = settings.values.to_vec();
        Ok(settings)
    }
    /// All that ParameterStatus reports.
    pub fn reported(&self) -> Vec<(String, String)> {
        let reported = ROWS.iter().zip(&*self.values).filter(|(row, _)| row.reported);
        reported.map(|(row, value)| (row.name.to_owned(), value.clone())).collect()
    }
    /// SHOW: the setting's own spelling and its value. 42704 for an unknown one.
    pub fn show(&self, name: &str) -> SqlResult<(&'static str, &str)> {
        let at = position(name)?;
        Ok((ROWS[at].name, &self.values[at]))
    }
    /// SHOW ALL.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &str)> {
        ROWS.iter().zip(&*self.values).map(|(row, value)| (row.name, value.as_str()))
    }
    /// SET; the change to report, if clients are told of it. 42704, 22023, 55P02.
    pub fn set(&mut self, name: &str, value: &str) -> SqlResult<Option<(String, String)>> {
        let at = position(name)?;
        let value = self.checked(&ROWS[at], value)?;
        Ok(self.store(at, value))
    }
    /// The isolation level of this name; 22023 when there is none, 0A000 when it has to wait.
    pub fn checked_level(&self, value: &str) -> SqlResult<String> {
        self.checked(&ROWS[position("transaction_isolation")?], value)
    }
    /// RESET; to what the session began with.
    pub fn reset(&mut self, name: &str) -> SqlResult<Option<(String, String)>> {
        let at = position(name)?;
        if ROWS[at].kind == Kind::Fixed {
            return Ok(None);
        }
        let value = self.start[at].clone();
        Ok(self.store(at, value))
    }
    /// RESET ALL: the changes to report.
    pub fn reset_all(&mut self) -> Vec<(String, String)> {
        (0..ROWS.len()).filter_map(|at| self.store(at, self.start[at].clone())).collect()
    }
    /// All values, to come back to with [`Settings::restore`].
    pub fn values(&self) -> Values {
        Values(Arc::clone(&self.values))
    }
    /// The values of an earlier time: the changes to report.
    pub fn restore(&mut self, values: &Values) -> Vec<(String, String)> {
        if Arc::ptr_eq(&values.0, &self.values) {
            return Vec::new();
        }
        values.0.iter().enumerate().filter_map(|(at, value)| self.store(at, value.clone())).collect()
    }
    /// A duration setting in milliseconds; 0 is "none".
    pub fn milliseconds(&self, name: &str) -> u64 {
        position(name).ok().and_then(|at| duration(&self.values[at])).unwrap_or(0)
    }
    /// A setting that is on or off.
    pub fn is_on(&self, name: &str) -> bool {
        position(name).is_ok_and(|at| matches!(self.values[at].as_str(), "on" | "true" | "yes" | "1"))
    }

    /// Read-only statements and transactions read from the nearest replicas, some seconds behind.
    pub fn reads_nearest(&self) -> bool {
        self.show(READ_FROM).is_ok_and(|(_, value)| value == "nearest")
    }

    fn store(&mut self, at: usize, value: String) -> Option<(String, String)> {
        let changed = self.values[at] != value;
        Arc::make_mut(&mut self.values)[at] = value;
        let value = &self.values[at];
        match ROWS[at].name {
            "TimeZone" => self.format.time_zone = datetime::time_zone(value).unwrap_or(chrono_tz::Tz::UTC),
            "bytea_output" => self.format.bytea_escape = value == "escape",
            "extra_float_digits" => self.format.shortest_floats = value.parse::<i32>().is_ok_and(|n| n > 0),
            _ => {}
        }
        (changed && ROWS[at].reported).then(|| (ROWS[at].name.to_owned(), value.clone()))
    }

    fn checked(&self, row: &Row, value: &str) -> SqlResult<String> {
        let invalid = || {
            SqlError::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"{}\": \"{value}\"", row.name),
            )
        };
        Ok(match row.kind {
            Kind::Fixed => {
                return Err(SqlError::new(
                    SqlState::CANT_CHANGE_RUNTIME_PARAM,
                    format!("parameter \"{}\" cannot be changed", row.name),
                ));
            }
            Kind::Free => value.to_owned(),
            Kind::OneOf(words) => {
                let lower = value.to_lowercase();
                if !words.contains(&lower.as_str()) {
                    return Err(invalid().with_hint(format!("Available values: {}.", words.join(", "))));
                }
                match (row.name, lower.as_str()) {
                    ("client_encoding", _) => "UTF8".to_owned(),
                    ("default_transaction_isolation" | "transaction_isolation", level) => {
                        Isolation::named(level)?;
                        lower
                    }
                    (_, "true" | "yes" | "1") => "on".to_owned(),
                    (_, "false" | "no" | "0") => "off".to_owned(),
                    _ => lower,
                }
            }
            Kind::Duration => {
                duration(value).ok_or_else(invalid)?;
                value.to_owned()
            }
            Kind::TimeZone => datetime::time_zone(value).ok_or_else(invalid)?.name().to_owned(),
            Kind::DateStyle => date_style(value)
                .ok_or_else(|| SqlError::unsupported(format!("DateStyle \"{value}\" (only ISO is)")))?,
        })
    }
}

fn date_style(value: &str) -> Option<String> {
    let mut order = "MDY";
    for word in value.split(',').map(|word| word.trim().to_lowercase()) {
        match word.as_str() {
            "iso" | "default" => {}
            "mdy" | "us" => order = "MDY",
            "dmy" | "euro" | "european" => order = "DMY",
            "ymd" => order = "YMD",
            _ => return None,
        }
    }
    Some(format!("ISO, {order}"))
}

/// `250`, `250ms`, `2s`, `1min`, `1h`, `1d` in milliseconds.
fn duration(value: &str) -> Option<u64> {
    let value = value.trim();
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value[..digits].parse().ok()?;
    let unit = match value[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_and_reported() {
        let mut settings = Settings::new("me", &[("TimeZone".into(), "europe/vienna".into())]).unwrap();
        assert_eq!(settings.show("timezone").unwrap(), ("TimeZone", "Europe/Vienna"));
        assert_eq!(settings.set("application_name", "x").unwrap(), Some(("application_name".into(), "x".into())));
        assert_eq!(settings.set("client_encoding", "utf-8").unwrap(), None);
        assert_eq!(settings.set("client_encoding", "latin1").unwrap_err().sqlstate, SqlState::INVALID_PARAMETER_VALUE);
        assert_eq!(settings.set("server_version", "9").unwrap_err().sqlstate, SqlState::CANT_CHANGE_RUNTIME_PARAM);
        assert_eq!(settings.show("nonsense").unwrap_err().sqlstate, SqlState::UNDEFINED_OBJECT);
        settings.set("statement_timeout", "2s").unwrap();
        assert_eq!(settings.milliseconds("statement_timeout"), 2000);
        assert_eq!(settings.set("DateStyle", "ISO, DMY").unwrap().unwrap().1, "ISO, DMY");
        settings.reset_all();
        assert_eq!(settings.show("TimeZone").unwrap().1, "Europe/Vienna");
    }
}
