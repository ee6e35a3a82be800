//! Which timestamps this client's transactions use: the oldest holds back the collection of old versions.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use proto::Timestamp;

/// Timestamps, and how many use each.
#[derive(Default)]
pub(crate) struct InUse(Mutex<BTreeMap<Timestamp, usize>>);

/// One use of a timestamp; ends when it is dropped.
pub(crate) struct Use {
    all: Arc<InUse>,
    ts: Timestamp,
}

impl InUse {
    /// From now on `ts` is used.
    pub(crate) fn begin(self: &Arc<Self>, ts: Timestamp) -> Use {
        *self.0.lock().entry(ts).or_default() += 1;
        Use { all: self.clone(), ts }
    }

    /// The oldest in use.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.0.lock().first_key_value().map(|(ts, _)| *ts)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.ts) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.ts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_holds_until_its_last_use_ends() {
        let all = Arc::new(InUse::default());
        let (a, b, c) = (all.begin(Timestamp(5)), all.begin(Timestamp(5)), all.begin(Timestamp(7)));
        drop(a);
        assert_eq!(all.oldest(), Some(Timestamp(5)));
        drop(b);
        assert_eq!(all.oldest(), Some(Timestamp(7)));
        drop(c);
        assert_eq!(all.oldest(), None);
    }
}
