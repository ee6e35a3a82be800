//! Whether anything in a range was changed between two timestamps. PURE over a snapshot.

use bytes::Bytes;
use proto::{Cf, KeyRange, Timestamp, wire::LockRecord};

use crate::codec;

use super::{
    Fault, Reader,
    lock::{self, LockCfRecord, WriteKind},
    reader::Newest,
    version::Version,
};

/// Steps over versions of one key before the cursor seeks: a seek costs about as much as this many steps.
const STEPS_BEFORE_SEEK: usize = 8;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Nothing has changed.
    None,
    /// Nothing below this key; there the look ended.
    NoneUpTo(Bytes),
    /// This key, the last time by this.
    One(Bytes, Newest),
}

impl Reader<'_> {
    /// The first lock in `range` that a read at `ts` can't pass, but for those of transaction `own`.
    pub fn blocking_lock(&self, range: &KeyRange, ts: Timestamp, own: Timestamp) -> Result<Option<LockRecord>, Fault> {
        let mut cursor = self.snapshot.cursor(Cf::Lock, &range.start, &range.end);
        let mut stands = cursor.seek_to_first()?;
        while stands {
            if !lock::is_rollback(cursor.value())
                && let LockCfRecord::Lock(lock) = lock::decode(cursor.key(), cursor.value())?
                && lock.start_ts != own
                && lock.blocks_read_at(ts)
            {
                return Ok(Some(lock.to_wire(cursor.key())));
            }
            stands = cursor.next()?;
        }
        Ok(None)
    }

    /// Looks for a key of `range` that a transaction other than `since` has changed above `since` and not above `until`.
    /// At most `left` records are looked at; it is counted down.
    pub fn changes(
        &self,
        range: &KeyRange,
        since: Timestamp,
        until: Timestamp,
        left: &mut usize,
    ) -> Result<Changes, Fault> {
        let mut cursor = self.snapshot.cursor(Cf::Data, &range.start, &range.end);
        let mut stands = cursor.seek_to_first()?;
        let (mut key, mut seek_to) = (Vec::new(), Vec::new());
        let mut steps = 0;
        while stands {
            let Some((user, commit_ts)) = codec::split_versioned(cursor.key()) else {
                return Err(Fault::corrupt(cursor.key(), "too short for a versioned key"));
            };
            if user != key {
                if *left == 0 {
                    return Ok(Changes::NoneUpTo(Bytes::copy_from_slice(user)));
                }
                key.clear();
                key.extend_from_slice(user);
                steps = 0;
            }
            *left = left.saturating_sub(1);
            if commit_ts > since && commit_ts <= until {
                let Version { kind, start_ts, .. } = Version::decode(user, cursor.value())?;
                if kind != WriteKind::Lock && start_ts != since {
                    let newest = Newest { commit_ts, start_ts, kind };
                    return Ok(Changes::One(Bytes::copy_from_slice(user), newest));
                }
            }
            steps += 1;
            stands = if steps < STEPS_BEFORE_SEEK {
                cursor.next()?
            } else if commit_ts > until {
                steps = 0;
                codec::versioned_into(&mut seek_to, &key, until);
                cursor.seek(&seek_to)?
            } else if commit_ts <= since {
                // Behind the oldest version there can be.
                codec::versioned_into(&mut seek_to, &key, Timestamp::ZERO);
                seek_to.push(0);
                cursor.seek(&seek_to)?
            } else {
                cursor.next()?
            };
        }
        Ok(Changes::None)
    }
}
