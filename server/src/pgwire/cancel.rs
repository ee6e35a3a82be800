//! Who may cancel whose statement: the keys handed out in BackendKeyData.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use sql::CancelToken;
use uuid::Uuid;

/// Bytes of a key in protocol 3.0, where the message has a fixed length.
const SECRET_BYTES_3_0: usize = 4;

/// The running sessions of this process by their key.
#[derive(Debug, Default)]
pub struct CancelKeys {
    next_pid: AtomicU32,
    sessions: Mutex<HashMap<u32, (Bytes, CancelToken)>>,
}

/// A session's entry; gone with it.
#[derive(Debug)]
pub struct CancelKey {
    keys: Arc<CancelKeys>,
    /// What takes the place of a process id: a number of this process, never 0.
    pub pid: u32,
    /// What a canceller must know.
    pub secret: Bytes,
}

impl CancelKeys {
    /// A key for a session that speaks protocol 3.`minor`.
    pub fn register(self: &Arc<Self>, minor: u16, token: CancelToken) -> CancelKey {
        // A version 4 UUID holds 122 bits of the system's randomness; its first four bytes are all random.
        let random = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        let secret = if minor < 2 { random.slice(..SECRET_BYTES_3_0) } else { random };
        let mut sessions = self.sessions.lock();
        let pid = loop {
            let pid = self.next_pid.fetch_add(1, Ordering::Relaxed) & i32::MAX as u32;
            if pid != 0 && !sessions.contains_key(&pid) {
                break pid;
            }
        };
        sessions.insert(pid, (secret.clone(), token));
        CancelKey { keys: self.clone(), pid, secret }
    }
    /// Cancels what session `pid` is doing, if the secret is right. A wrong one is not told apart from a wrong pid.
    pub fn cancel(&self, pid: u32, secret: &[u8]) {
        if let Some((expected, token)) = self.sessions.lock().get(&pid)
            && expected == secret
        {
            token.cancel();
        }
    }
    /// Cancels what every session is doing.
    pub fn cancel_all(&self) {
        self.sessions.lock().values().for_each(|(_, token)| token.cancel());
    }
    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.sessions.lock().len()
    }
    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.keys.sessions.lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fit_their_protocol_and_go_with_their_session() {
        let keys = Arc::new(CancelKeys::default());
        let old = keys.register(0, CancelToken::default());
        let new = keys.register(2, CancelToken::default());
        assert_eq!((old.secret.len(), new.secret.len(), keys.len()), (4, 16, 2));
        assert_ne!(old.pid, new.pid);
        keys.cancel(old.pid, b"nope");
        keys.cancel(12345, b"nope");
        drop((old, new));
        assert!(keys.is_empty());
    }
}
