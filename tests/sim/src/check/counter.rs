//! Is every increment counted once?
//!
//! Each increment saw the counter's value right after itself. No two saw the same; one that began after another had
//! answered saw more; and the end is what the answered ones and some of the unknown ones make.

use std::{collections::BTreeSet, time::Duration};

/// One increment as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// When it was called.
    pub called: Duration,
    /// When it was answered, and with which value; `Some(Err)`: it certainly did not happen; `None`: nobody knows.
    pub answered: Option<Result<(Duration, u64), ()>>,
}

/// `end`: the counter's value when all was over.
pub fn check(increments: &[Increment], end: u64) -> Result<(), String> {
    let done = |one: &Increment| match one.answered {
        Some(Ok((at, value))) => Some((one.called, at, value)),
        _ => None,
    };
    let mut answered: Vec<(Duration, Duration, u64)> = increments.iter().filter_map(done).collect();
    let unknown = increments.iter().filter(|one| one.answered.is_none()).count() as u64;
    let values: BTreeSet<u64> = answered.iter().map(|(_, _, value)| *value).collect();
    if values.len() != answered.len() {
        return Err(format!("{} increments saw only {} different values", answered.len(), values.len()));
    }
    if let Some(value) = values.iter().find(|value| !(1..=end).contains(value)) {
        return Err(format!("an increment saw {value}, the counter ended at {end}"));
    }
    if end > answered.len() as u64 + unknown {
        return Err(format!(
            "the counter ended at {end}, after {} increments and {unknown} of unknown outcome",
            answered.len()
        ));
    }
    // By call; what had answered before must have seen less.
    answered.sort_unstable();
    let mut ends: Vec<(Duration, u64)> = answered.iter().map(|(_, at, value)| (*at, *value)).collect();
    ends.sort_unstable();
    let mut ends = ends.into_iter().peekable();
    let mut most = 0;
    for (called, _, value) in answered {
        while let Some((_, ended)) = ends.next_if(|(at, _)| *at < called) {
            most = most.max(ended);
        }
        if value <= most {
            return Err(format!("an increment called at {called:?} saw {value}, {most} had been answered before"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }
    fn done(called: u64, at: u64, value: u64) -> Increment {
        Increment { called: ms(called), answered: Some(Ok((ms(at), value))) }
    }
    const UNKNOWN: Increment = Increment { called: Duration::from_millis(1), answered: None };
    const REFUSED: Increment = Increment { called: Duration::from_millis(1), answered: Some(Err(())) };

    #[test]
    fn good_counters_pass() {
        check(&[], 0).unwrap();
        check(&[done(1, 5, 2), done(2, 6, 1), done(7, 8, 3), REFUSED], 3).unwrap();
        // The unknown one happened, or not.
        check(&[done(1, 5, 1), UNKNOWN, done(7, 8, 3)], 3).unwrap();
        check(&[done(1, 5, 1), UNKNOWN, done(7, 8, 2)], 2).unwrap();
    }

    #[test]
    fn one_applied_twice_is_found() {
        assert!(check(&[done(1, 5, 1), done(7, 8, 3)], 3).is_err());
        assert!(check(&[done(1, 5, 1), UNKNOWN, done(7, 8, 4)], 4).is_err());
        assert!(check(&[done(1, 5, 1), REFUSED], 2).is_err());
    }

    #[test]
    fn a_lost_one_is_found() {
        assert!(check(&[done(1, 5, 1), done(7, 8, 1)], 1).is_err());
        assert!(check(&[done(1, 5, 1), done(7, 8, 2)], 1).is_err());
    }

    #[test]
    fn time_that_runs_back_is_found() {
        assert!(check(&[done(1, 5, 2), done(7, 8, 1)], 2).is_err());
    }
}
