//! Ports on the loopback interface that no other test of this machine gets.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
};

use rustix::fs::{FlockOperation, flock};

/// Below Linux's range for outgoing connections (32768 and up): no client socket takes the port of a node
/// that is down for a moment.
const FIRST: u16 = 14_000;
const LAST: u16 = 31_000;

/// A port that is ours until this value is dropped, whether or not a process listens there.
pub struct Port {
    number: u16,
    // The lock on this file is the reservation; the kernel gives it back even after a kill.
    _lock: File,
}

impl Port {
    /// Reserves a free port.
    pub fn reserve() -> Port {
        let dir = lock_dir();
        let start = FIRST + (std::process::id() % u32::from(LAST - FIRST)) as u16;
        let candidates = (start..LAST).chain(FIRST..start);
        for number in candidates {
            let lock = File::create(dir.join(number.to_string())).expect("lock file of a port");
            let reserved = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if reserved && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port between {FIRST} and {LAST}");
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}

fn lock_dir() -> PathBuf {
    let dir = std::env::temp_dir().join("flaredb-test-ports");
    fs::create_dir_all(&dir).expect("folder of port locks");
    dir
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_while_held() {
        let (a, b) = (Port::reserve(), Port::reserve());
        assert_ne!(a.number(), b.number());
        assert_eq!(a.address(), format!("127.0.0.1:{}", a.number()));
    }
}
