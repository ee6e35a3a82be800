//! Ids and Raft counters, one type each, so that a store id can't be handed over as a peer id.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl From<u64> for $name {
            fn from(id: u64) -> Self {
                Self(id)
            }
        }
        impl From<$name> for u64 {
            fn from(id: $name) -> u64 {
                id.0
            }
        }
    };
}

id!(
    /// A cluster, random, from its founding record.
    ClusterId, "c"
);
id!(
    /// A store: all replicas of one process and its engine. Never 0.
    StoreId, "s"
);
id!(
    /// A region. Region 1 is PD's. Never 0.
    RegionId, "r"
);
id!(
    /// A membership of one store in one region; a store that comes back after removal gets a new one. Never 0.
    PeerId, "p"
);
id!(
    /// A Raft term.
    Term, "t"
);
id!(
    /// A position in a region's Raft log; the first entry has a position above 0.
    LogIndex, "i"
);

/// PD's region: its leader is PD.
pub const PD_REGION: RegionId = RegionId(1);
