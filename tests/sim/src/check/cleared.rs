//! A set that is filled by some and emptied by others: does everybody see the old one or the new one?
//!
//! Only what is certain is asked for, since an emptying takes time and others may see either side until it is answered:
//!
//! - An element that was added before a look began is in it, unless an emptying may have come in between.
//! - An element that was added before an emptying began is in no look that began after the emptying was answered.
//! - No look has an element whose adding had not begun, or was refused.
//!
//! Whatever is added goes into a journal as well, in the same transaction, which nobody empties. It tells when an
//! element came whose adding took long: after every look whose journal lacks it. What was emptied before such a look
//! is no reason for it to be missing once the journal has it.

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
    pub looks: Vec<Look>,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub span: Span,
    /// The set.
    pub seen: BTreeSet<u64>,
    /// The journal, as far as it was read.
    pub journal: BTreeSet<u64>,
    /// It was read from this element on.
    pub journal_from: u64,
}

impl Look {
    fn answered(&self) -> Duration {
        self.span.answered.unwrap_or(Duration::MAX)
    }
    /// Its journal says that the element was not there yet.
    fn was_before(&self, element: u64) -> bool {
        element >= self.journal_from && !self.journal.contains(&element)
    }
}

/// When an element must be there, and when not.
struct Life {
    /// It came with an emptying: the journal shows it as soon as that is committed, the emptied set only when every
    /// gateway has taken the new schema. (Once a schema change waits for table locks before it commits, this goes.)
    with_emptying: bool,
    /// It came after this.
    after: Duration,
    /// From here on it was there: its adding was answered.
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
    for look in &history.looks {
        let (span, seen, answered) = (look.span, &look.seen, look.answered());
        for element in seen.union(&look.journal) {
            if history.refused.contains(element) {
                return Err(format!("a look at {:?} saw {element}, whose adding was refused", span.called));
            }
            if history.added.get(element).is_none_or(|added| added.called > answered) {
                return Err(format!("a look at {:?} saw {element}, which nobody had added", span.called));
            }
            let gone = lives[element].gone;
            if seen.contains(element) && gone < span.called {
                return Err(format!("a look at {:?} saw {element}, which was cleared away by {gone:?}", span.called));
            }
        }
        let missing = |(element, life): &(&u64, &Life)| {
            let came = life.from < span.called || (!life.with_emptying && look.journal.contains(element));
            came && answered < life.shaky && !seen.contains(element)
        };
        if let Some((element, life)) = lives.iter().find(missing) {
            return Err(format!(
                "a look at {:?} did not see {element}, which came after {:?} and was not cleared away since",
                span.called, life.after
            ));
        }
    }
    Ok(())
}

fn life(history: &History, element: u64, span: Span) -> Life {
    let before = history.looks.iter().filter(|look| look.was_before(element)).map(|look| look.span.called);
    // What nobody answered need never be there, and may come after any emptying.
    let from = span.answered.filter(|_| !history.refused.contains(&element)).unwrap_or(Duration::MAX);
    let after = before.chain([span.called]).max().unwrap_or_default();
    let with_emptying = history.cleared.iter().any(|(_, with)| *with == Some(element));
    let mut life = Life { with_emptying, after, from, shaky: Duration::MAX, gone: Duration::MAX };
    // The element of an emptying comes right behind it.
    for (clear, _) in history.cleared.iter().filter(|(_, with)| *with != Some(element)) {
        let answered = clear.answered.unwrap_or(Duration::MAX);
        if answered >= life.after {
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
            looks: looks.iter().map(|(span, seen)| look(*span, seen, &[], u64::MAX)).collect(),
        }
    }
    fn look(span: Span, seen: &[u64], journal: &[u64], journal_from: u64) -> Look {
        let set = |of: &[u64]| of.iter().copied().collect();
        Look { span, seen: set(seen), journal: set(journal), journal_from }
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
        good.looks.push(look(span(18, 19), &[], &[], u64::MAX));
        check(&good).unwrap_err();
    }

    #[test]
    fn a_commit_by_a_schema_that_is_gone_is_found() {
        // Added for a long time, while an emptying began and was done: either order is fine.
        let slow = history(&[(1, span(1, 30))], &[span(10, 15)], &[]);
        let with = |looks: &[Look]| check(&History { looks: looks.to_vec(), ..clone(&slow) });
        let gone = look(span(31, 32), &[], &[1], 0);
        with(std::slice::from_ref(&gone)).unwrap();
        with(&[look(span(12, 13), &[], &[], 0), gone.clone()]).unwrap();
        // A look after the emptying says that it had not come yet.
        with(&[look(span(20, 21), &[], &[], 0), gone.clone()]).unwrap_err();
        with(&[look(span(20, 21), &[], &[], 0), look(span(31, 32), &[1], &[1], 0)]).unwrap();
        // That part of the journal was not read.
        with(&[look(span(20, 21), &[], &[], 2), gone]).unwrap();
    }

    fn clone(history: &History) -> History {
        let History { added, refused, cleared, looks } = history;
        History { added: added.clone(), refused: refused.clone(), cleared: cleared.clone(), looks: looks.clone() }
    }
}
