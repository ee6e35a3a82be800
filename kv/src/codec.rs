//! Keys as the engine sees them. PURE.
//!
//! ```text
//! cf data   key ‖ !commit_ts (u64 BE)     → version record     newest version of a key first
//! cf lock   key                           → lock record        at most one
//!           key ‖ !start_ts (u64 BE)      → rollback record    keeps a late prewrite of start_ts out
//! ```
//!
//! The order of engine keys is the order of (key, newest first), because user keys are prefix-free
//! (`proto::keyspace`): no key is a proper prefix of another one, so `key ‖ timestamp` of one key never falls among
//! those of another, nor on another key. `!ts` is the bitwise complement.

use bytes::{BufMut, Bytes, BytesMut};
use proto::Timestamp;

/// Length of the timestamp behind a key.
pub const TS_LEN: usize = 8;

/// `key ‖ !ts`: a version in `data`, a rollback record in `lock`.
pub fn versioned(key: &[u8], ts: Timestamp) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + TS_LEN);
    out.put_slice(key);
    out.put_u64(!ts.0);
    out.freeze()
}

/// Writes `key ‖ !ts` over what `out` held: for cursors that seek often.
pub fn versioned_into(out: &mut Vec<u8>, key: &[u8], ts: Timestamp) {
    out.clear();
    out.extend_from_slice(key);
    out.extend_from_slice(&(!ts.0).to_be_bytes());
}

/// Takes a versioned key apart; `None` when it is too short.
pub fn split_versioned(key: &[u8]) -> Option<(&[u8], Timestamp)> {
    let (user, ts) = key.split_last_chunk::<TS_LEN>()?;
    Some((user, Timestamp(!u64::from_be_bytes(*ts))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Engine order is (key ascending, timestamp descending), for prefix-free keys (here: of one length).
        #[test]
        fn order_is_key_then_newest_first(
            a in (proptest::array::uniform3(any::<u8>()), any::<u64>()),
            b in (proptest::array::uniform3(any::<u8>()), any::<u64>()),
        ) {
            let encoded = versioned(&a.0, Timestamp(a.1)).cmp(&versioned(&b.0, Timestamp(b.1)));
            prop_assert_eq!(encoded, a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            let key = versioned(&a.0, Timestamp(a.1));
            prop_assert_eq!(split_versioned(&key), Some((&a.0[..], Timestamp(a.1))));
        }

        /// Whatever stands in the engine, taking it apart does not panic.
        #[test]
        fn bad_keys_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            prop_assert_eq!(split_versioned(&bytes).is_some(), bytes.len() >= TS_LEN);
        }
    }
}
