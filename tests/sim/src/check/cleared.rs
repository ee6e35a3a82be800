//! A set that is filled by some and emptied by others: does everybody see the old one or the new one?
//!
//! Only what is certain is asked for, since an emptying takes time and others may see either side until it is answered:
//!
//! - An element that was added before a look began is in it, unless an emptying may have come in between.
//! - An element that was added before an emptying began is in no look that began after the emptying was answered.
//! - No look has an element whose adding had not begun, or was refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// From a call to its answer; no answer: it may take effect at any time after the call, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// When it was called.
    pub called: Duration,
    /// When it was answered.
    pub answered: Option<Duration>,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub struct History {
    /// By element.
    pub added: BTreeMap<u64, Span>,
    /// Elements that certainly were not added.
    pub refused: BTreeSet<u64>,
    /// Emptyings, refused ones left out; an element that came with one.
    pub cleared: Vec<(Span, Option<u64>)>,
    /// What was seen.
    pub looks: Vec<(Span, BTreeSet<u64>)>,
}

/// When an element must be there, and when not.
struct Life {
    from: Duration,
    /// From here on an emptying may have come.
    shaky: Duration,
    /// From here on one has.
    gone: Duration,
}

/// `Err` names the first look that cannot be.
pub fn check(history: &History) -> Result<(), String> {
    let lives: BTreeMap<u64, Life> =
        history.added.iter().map(|(element, span)| (*element, life(history, *element, *span))).collect();
    for (span, seen) in &history.looks {
        let answered = span.answered.unwrap_or(Duration::MAX);
        for element in seen {
            let added = history.added.get(element);
            if history.refused.contains(element) || added.is_none_or(|added| added.called > answered) {
                return Err(format!("a look at {:?} saw {element}, which nobody had added", span.called));
            }
            let gone = lives[element].gone;
            if gone < span.called {
                return Err(format!("a look at {:?} saw {element}, which was cleared away by {gone:?}", span.called));
            }
        }
        let missing = |(element, life): &(&u64, &Life)| {
            life.from < span.called && answered < life.shaky && !seen.contains(element)
        };
        if let Some((element, life)) = lives.iter().find(missing) {
            return Err(format!(
                "a look at {:?} did not see {element}, which was there from {:?} on and not cleared",
                span.called, life.from
            ));
        }
    }
    Ok(())
}

fn life(history: &History, element: u64, span: Span) -> Life {
    // What nobody answered need never be there, and may come after any emptying.
    let Some(from) = span.answered.filter(|_| !history.refused.contains(&element)) else {
        return Life { from: Duration::MAX, shaky: Duration::ZERO, gone: Duration::MAX };
    };
    let mut life = Life { from, shaky: Duration::MAX, gone: Duration::MAX };
    // The element of an emptying comes right behind it.
    for (clear, _) in history.cleared.iter().filter(|(_, with)| *with != Some(element)) {
        let answered = clear.answered.unwrap_or(Duration::MAX);
        if answered >= span.called {
            life.shaky = life.shaky.min(clear.called);
        }
        if clear.called > from {
            life.gone = life.gone.min(answered);
        }
    }
    life
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(called: u64, answered: u64) -> Span {
        let answered = (answered != 0).then(|| Duration::from_millis(answered));
        Span { called: Duration::from_millis(called), answered }
    }
    fn history(added: &[(u64, Span)], cleared: &[Span], looks: &[(Span, &[u64])]) -> History {
        History {
            added: added.iter().copied().collect(),
            refused: BTreeSet::from([99]),
            cleared: cleared.iter().map(|span| (*span, None)).collect(),
            looks: looks.iter().map(|(span, seen)| (*span, seen.iter().copied().collect())).collect(),
        }
    }

    #[test]
    fn old_or_new_passes() {
        let added = [(1, span(1, 2)), (2, span(20, 21)), (3, span(30, 0))];
        let cleared = [span(10, 15)];
        for (at, seen) in
            [(3, &[1][..]), (11, &[1]), (11, &[]), (16, &[]), (22, &[2]), (31, &[2]), (31, &[2, 3]), (9, &[1])]
        {
            check(&history(&added, &cleared, &[(span(at, at + 1), seen)])).unwrap();
        }
        // An emptying without an answer may come at any time, or never.
        check(&history(&added, &[span(10, 0)], &[(span(40, 41), &[1, 2]), (span(42, 43), &[])])).unwrap();
    }

    #[test]
    fn what_was_cleared_and_comes_back_is_found() {
        let (added, cleared) = ([(1, span(1, 2))], [span(10, 15)]);
        check(&history(&added, &cleared, &[(span(16, 17), &[1])])).unwrap_err();
    }

    #[test]
    fn what_was_added_and_is_lost_is_found() {
        let added = [(1, span(1, 2)), (2, span(20, 21))];
        check(&history(&added, &[span(10, 15)], &[(span(22, 23), &[])])).unwrap_err();
        check(&history(&added, &[], &[(span(4, 5), &[])])).unwrap_err();
    }

    #[test]
    fn what_nobody_added_is_found() {
        check(&history(&[], &[], &[(span(4, 5), &[7])])).unwrap_err();
        check(&history(&[(7, span(6, 7))], &[], &[(span(4, 5), &[7])])).unwrap_err();
        check(&history(&[(99, span(1, 2))], &[], &[(span(4, 5), &[99])])).unwrap_err();
    }

    #[test]
    fn an_element_that_comes_with_an_emptying_outlives_it() {
        let mut good = history(&[(1, span(10, 15))], &[], &[(span(16, 17), &[1])]);
        good.cleared.push((span(10, 15), Some(1)));
        check(&good).unwrap();
        good.looks.push((span(18, 19), BTreeSet::new()));
        check(&good).unwrap_err();
    }
}
