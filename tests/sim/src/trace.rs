//! One number for everything that happened.

/// FNV-1a over labels and numbers: fast, and the same on every machine.
#[derive(Clone)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Trace(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    /// Adds bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    /// Adds a labelled number.
    pub fn add(&mut self, label: &str, detail: u64) {
        self.add_bytes(label.as_bytes());
        self.add_bytes(&detail.to_le_bytes());
    }
    /// The number so far.
    pub fn hash(&self) -> u64 {
        self.0
    }
    /// The hash of one piece of bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut trace = Trace::default();
        trace.add_bytes(bytes);
        trace.0
    }
}
