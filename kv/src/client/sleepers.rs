//! Regions that sleep and need not be asked for old locks.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::{
    KeyRange, StoreId, Timestamp,
    wire::{SleepersRequest, SleepersResponse, kv_request, kv_response},
};

use super::Client;
use crate::Error;

impl Client {
    /// Ranges, in key order, of sleeping regions without a lock of a transaction that began before. A store that does not
    /// answer proves nothing.
    pub(super) async fn sleepers_clear_of(&self, safe_point: Timestamp) -> Result<Vec<KeyRange>, Error> {
        let request = SleepersRequest { started_before: safe_point.0 };
        let answers = self.ask_all(kv_request::Body::Sleepers(request)).await?;
        let sleepers = answers.into_iter().filter_map(|(store, answer)| match answer {
            kv_response::Body::Sleepers(answer) => Some((store, answer)),
            _ => None,
        });
        Ok(proven(&sleepers.collect::<Vec<_>>()))
    }
}

/// What the stores' words prove: a region whose leader sleeps without locks in a term that most of its voters are still in. PURE.
fn proven(answers: &[(StoreId, SleepersResponse)]) -> Vec<KeyRange> {
    let term = |(store, answer): &(StoreId, SleepersResponse)| {
        let store = *store;
        answer.terms.iter().map(move |replica| ((store.0, replica.region_id), replica.term)).collect::<Vec<_>>()
    };
    let terms: BTreeMap<(u64, u64), u64> = answers.iter().flat_map(term).collect();
    let mut ranges: Vec<KeyRange> = answers
        .iter()
        .flat_map(|(_, answer)| &answer.clear)
        .filter(|region| {
            let in_term = |store: &&u64| terms.get(&(**store, region.region_id)) == Some(&region.term);
            region.voters.iter().filter(in_term).count() > region.voters.len() / 2
        })
        .filter_map(|region| Some(region.range.clone()?.into()))
        .collect();
    ranges.sort_by(|a, b| a.start.cmp(&b.start));
    ranges
}

/// Where the ranges that follow each other without a gap from `key` on end (empty: nowhere); `None`: it is in none.
pub(super) fn behind(ranges: &[KeyRange], key: &Bytes) -> Option<Bytes> {
    let mut at = ranges.partition_point(|range| range.start <= *key).checked_sub(1)?;
    if !ranges[at].contains(key) {
        return None;
    }
    while ranges.get(at + 1).is_some_and(|next| next.start == ranges[at].end) {
        at += 1;
    }
    Some(ranges[at].end.clone())
}

/// Whether nothing of `range` is left from `key` on; the empty key is the end of all.
pub(super) fn is_beyond(key: &Bytes, range: &KeyRange) -> bool {
    key.is_empty() || (!range.end.is_empty() && *key >= range.end)
}

#[cfg(test)]
mod tests {
    use proto::wire::{ClearRegion, ReplicaTerm};

    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start, end)
    }

    fn clear(region_id: u64, term: u64, start: &'static str, end: &'static str) -> ClearRegion {
        ClearRegion { region_id, term, range: Some((&range(start, end)).into()), voters: vec![1, 2, 3] }
    }

    /// A store that is in these terms (region, term), and what it says is clear.
    fn store(id: u64, terms: &[(u64, u64)], clear: Vec<ClearRegion>) -> (StoreId, SleepersResponse) {
        let terms = terms.iter().map(|&(region_id, term)| ReplicaTerm { region_id, term }).collect();
        (StoreId(id), SleepersResponse { clear, terms, error: None })
    }

    #[test]
    fn a_sleeper_needs_most_of_its_voters_in_its_term() {
        let sleeper = || store(1, &[(7, 5)], vec![clear(7, 5, "a", "b")]);
        assert_eq!(proven(&[sleeper(), store(2, &[(7, 5)], vec![])]), [range("a", "b")]);
        assert_eq!(proven(&[sleeper(), store(2, &[(7, 6)], vec![]), store(3, &[(7, 5)], vec![])]), [range("a", "b")]);
        assert!(proven(&[sleeper()]).is_empty(), "its own word is not enough");
        assert!(proven(&[sleeper(), store(4, &[(7, 5)], vec![])]).is_empty(), "a learner's store says nothing");
        let elected = [sleeper(), store(2, &[(7, 6)], vec![]), store(3, &[(7, 6)], vec![])];
        assert!(proven(&elected).is_empty(), "somebody else was elected while it slept");
        assert!(proven(&[sleeper(), store(2, &[(8, 5)], vec![])]).is_empty(), "another region");
    }

    #[test]
    fn ranges_are_walked_over_as_far_as_they_follow_each_other() {
        let ranges = [range("b", "c"), range("c", "e"), range("f", "")];
        let behind = |key: &'static str| behind(&ranges, &Bytes::from_static(key.as_bytes()));
        assert_eq!(behind("a"), None);
        assert_eq!(behind("b"), Some("e".into()));
        assert_eq!(behind("d"), Some("e".into()));
        assert_eq!(behind("e"), None);
        assert_eq!(behind("z"), Some(Bytes::new()));
        assert!(is_beyond(&Bytes::new(), &range("a", "b")) && is_beyond(&"b".into(), &range("a", "b")));
        assert!(!is_beyond(&"z".into(), &range("a", "")));
    }
}
