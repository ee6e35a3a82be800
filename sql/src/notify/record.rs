//! Keys and records of notifications, and what a transaction says before it commits. PURE.
//!
//! ```text
//!   newest       := sequence u64 BE                                                of the last notification
//!   notification := version u8 (1) ‖ process id u32 BE ‖ channel length u8 ‖ channel ‖ payload
//! ```

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use proto::{
    KeyRange,
    keyspace::{PREFIX_LEN, SQL_KEYSPACE, index_prefix, index_range},
};

use crate::error::{SqlError, SqlResult, SqlState};

/// The system table of notifications.
const TABLE: u32 = 9;
/// Its index of the one row that every transaction with notifications writes.
const NEWEST: u32 = 0;
/// Its index of notifications, by their number.
const SENT: u32 = 1;
const VERSION: u8 = 1;
/// Bytes of a channel's name, as of any name.
const MAX_CHANNEL: usize = 63;
/// Bytes of a payload; PostgreSQL's bound.
const MAX_PAYLOAD: usize = 7999;
/// Notifications of one transaction: they are written with it.
const MAX_PENDING: usize = 10_000;

/// What listeners are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The process id of the session that sent it.
    pub pid: u32,
    /// Its channel.
    pub channel: String,
    /// What it says; may be empty.
    pub payload: String,
}

/// Where the newest number stands.
pub fn newest_key() -> Bytes {
    let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, TABLE, NEWEST)[..]);
    key.put_u8(0);
    key.freeze()
}

/// Where a notification stands.
pub fn sent_key(number: u64) -> Bytes {
    let mut key = BytesMut::from(&index_prefix(SQL_KEYSPACE, TABLE, SENT)[..]);
    key.put_u64(number);
    key.freeze()
}

/// Notifications behind this number.
pub fn sent_after(number: u64) -> KeyRange {
    KeyRange::new(sent_key(number.saturating_add(1)), index_range(SQL_KEYSPACE, TABLE, SENT).end)
}

/// The number in a key.
pub fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(PREFIX_LEN..)?.try_into().ok()?))
}

/// For a record.
pub fn encode(notification: &Notification) -> Bytes {
    let Notification { pid, channel, payload } = notification;
    let mut out = BytesMut::with_capacity(6 + channel.len() + payload.len());
    out.put_u8(VERSION);
    out.put_u32(*pid);
    out.put_u8(channel.len() as u8);
    out.put_slice(channel.as_bytes());
    out.put_slice(payload.as_bytes());
    out.freeze()
}

/// From a record; `None` when it is damaged.
pub fn decode(mut record: Bytes) -> Option<Notification> {
    if record.len() < 6 || record.get_u8() != VERSION {
        return None;
    }
    let (pid, length) = (record.get_u32(), usize::from(record.get_u8()));
    if record.len() < length {
        return None;
    }
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).ok();
    Some(Notification { pid, channel: text(record.split_to(length))?, payload: text(record)? })
}

/// What becomes of a session's channels at COMMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// LISTEN
    Listen(String),
    /// UNLISTEN
    Unlisten(String),
    /// UNLISTEN *
    UnlistenAll,
}

/// What a transaction has said so far.
#[derive(Debug, Default)]
pub struct Pending {
    notifications: Vec<(String, String)>,
    known: BTreeSet<(String, String)>,
    changes: Vec<Change>,
}

/// A place to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(usize, usize);

impl Pending {
    /// NOTIFY. The same again is not sent twice. 22023 for what is too long, 53400 when there are too many.
    pub fn notify(&mut self, channel: &str, payload: &str) -> SqlResult<()> {
        let bad = |message: &str| Err(SqlError::new(SqlState::INVALID_PARAMETER_VALUE, message));
        match () {
            () if channel.is_empty() => return bad("channel name cannot be empty"),
            () if channel.len() > MAX_CHANNEL => return bad("channel name too long"),
            () if payload.len() > MAX_PAYLOAD => return bad("payload string too long"),
            () if self.notifications.len() >= MAX_PENDING => {
                let message = format!("a transaction sends at most {MAX_PENDING} notifications");
                return Err(SqlError::new(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message));
            }
            () => {}
        }
        let said = (channel.to_owned(), payload.to_owned());
        if self.known.insert(said.clone()) {
            self.notifications.push(said);
        }
        Ok(())
    }

    /// LISTEN, UNLISTEN.
    pub fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// There is something to be sent.
    pub fn has_notifications(&self) -> bool {
        !self.notifications.is_empty()
    }

    /// For ROLLBACK TO.
    pub fn place(&self) -> Place {
        Place(self.notifications.len(), self.changes.len())
    }

    /// ROLLBACK TO.
    pub fn roll_back_to(&mut self, place: Place) {
        for said in self.notifications.split_off(place.0.min(self.notifications.len())) {
            self.known.remove(&said);
        }
        self.changes.truncate(place.1);
    }

    /// All of it, at the transaction's end.
    pub fn take(&mut self) -> (Vec<(String, String)>, Vec<Change>) {
        let Pending { notifications, changes, .. } = std::mem::take(self);
        (notifications, changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_and_keys_come_back() {
        let sent = Notification { pid: 7, channel: "jobs".into(), payload: "né".into() };
        assert_eq!(decode(encode(&sent)), Some(sent));
        assert_eq!(number_of(&sent_key(u64::MAX)), Some(u64::MAX));
        for damaged in [&b""[..], b"\x02\0\0\0\0\0", b"\x01\0\0\0\0\x05x", b"\x01\0\0\0\0\x01\xff"] {
            assert_eq!(decode(Bytes::copy_from_slice(damaged)), None);
        }
        assert!(sent_after(7).contains(&sent_key(8)) && !sent_after(7).contains(&sent_key(7)));
    }

    #[test]
    fn the_same_is_sent_once_and_a_savepoint_takes_back() {
        let mut pending = Pending::default();
        pending.notify("a", "").unwrap();
        let place = pending.place();
        pending.notify("a", "").unwrap();
        pending.notify("b", "1").unwrap();
        pending.change(Change::Listen("a".into()));
        pending.roll_back_to(place);
        pending.notify("b", "1").unwrap();
        assert_eq!(pending.take(), (vec![("a".into(), String::new()), ("b".into(), "1".into())], Vec::new()));
        assert!(!pending.has_notifications());
        for (channel, payload) in [("", ""), (&"c".repeat(64), ""), ("c", &"p".repeat(8000))] {
            assert!(pending.notify(channel, payload).is_err());
        }
    }
}
