//! A region as its leader reported it.

use proto::{
    Epoch, LogIndex, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Term,
    wire::{self, RegionStatus},
};

use crate::Now;

/// A learner whose log lacks no more entries than this has caught up: a second or so of writes, which it gets while the
/// next step is on its way.
pub const CAUGHT_UP_ENTRIES: u64 = 256;

/// A peer as the region's leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub peer: PeerId,
    /// The last entry it is known to have.
    pub matched: LogIndex,
    /// It answered lately.
    pub active: bool,
    /// It can't be brought up from the log.
    pub needs_snapshot: bool,
}

/// What a region's leader had to do, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub write_bytes: u64,
}

/// Bytes that count as much as one request, in [`Load::score`]: a page of a few rows.
const BYTES_A_REQUEST: u64 = 4 << 10;
/// A leader averages load over seconds, and what it counted first weighs half: so long it says too little.
const LOAD_IS_KNOWN_AFTER_MS: u64 = 15_000;

impl Load {
    /// One number to compare by: requests a second, large ones counted several times. A write costs three replicas a log
    /// write, a read costs one a look: counted as four.
    pub fn score(&self) -> u64 {
        let requests = |count: u64, bytes: u64| count.max(bytes / BYTES_A_REQUEST);
        requests(self.reads, self.read_bytes).saturating_add(requests(self.writes, self.write_bytes).saturating_mul(4))
    }
    /// Both together.
    pub fn plus(&self, other: &Load) -> Load {
        Load {
            reads: self.reads.saturating_add(other.reads),
            writes: self.writes.saturating_add(other.writes),
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            write_bytes: self.write_bytes.saturating_add(other.write_bytes),
        }
    }
}

/// A region as its leader reported it.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionView {
    /// Range, epoch, peers.
    pub region: Region,
    /// Who leads it, as far as known.
    pub leader: Option<Peer>,
    /// In which term; 0: nobody has reported it to this PD, it is known from the founding record only.
    pub term: Term,
    /// What the leader has applied.
    pub applied_index: u64,
    /// Committed by the leader.
    pub committed_index: u64,
    /// Data of the region, roughly.
    pub approximate_bytes: u64,
    /// Records, roughly.
    pub approximate_keys: u64,
    /// The other peers, as the leader sees them.
    pub progress: Vec<Progress>,
    /// What the leader had to do lately.
    pub load: Load,
    /// What the one before it had to do, and since when (monotonic, ms) it is another one.
    pub load_before: (Load, u64),
}

impl RegionView {
    /// A region nobody has reported yet.
    pub fn founded(region: Region) -> Self {
        RegionView {
            region,
            leader: None,
            term: Term(0),
            applied_index: 0,
            committed_index: 0,
            approximate_bytes: 0,
            approximate_keys: 0,
            progress: Vec::new(),
            load: Load::default(),
            load_before: (Load::default(), 0),
        }
    }

    /// What has to be done for it: a new leader has counted next to nothing yet, but the region is as busy as it was.
    pub fn load_at(&self, now: Now) -> Load {
        let (before, since_ms) = self.load_before;
        let is_known = now.monotonic_ms.saturating_sub(since_ms) >= LOAD_IS_KNOWN_AFTER_MS;
        if is_known || self.load.score() >= before.score() { self.load } else { before }
    }

    /// The report before this one was `old`.
    pub(super) fn follows(&mut self, now: Now, old: &RegionView) {
        let led_by = |view: &RegionView| view.leader.map(|leader| leader.store);
        let stays = led_by(old) == led_by(self);
        self.load_before = if stays { old.load_before } else { (old.load_at(now), now.monotonic_ms) };
    }

    /// Whether planners see the same in both: how far its log is matters only as far as peers lag behind it.
    pub fn looks_like(&self, other: &RegionView) -> bool {
        let follows = |v: &RegionView| v.region.peers.iter().map(|p| v.is_caught_up(p)).collect::<Vec<_>>();
        let rest = |v: &RegionView| (v.approximate_bytes, v.approximate_keys, v.term, v.leader, v.load.score());
        self.region == other.region
            && rest(self) == rest(other)
            && follows(self) == follows(other)
            && self.progress.iter().map(|p| (p.peer, p.active)).eq(other.progress.iter().map(|p| (p.peer, p.active)))
    }

    /// Its id.
    pub fn id(&self) -> RegionId {
        self.region.id
    }
    /// Its epoch.
    pub fn epoch(&self) -> Epoch {
        self.region.epoch
    }
    /// Whether it is led on that store.
    pub fn is_led_by(&self, store: StoreId) -> bool {
        self.leader.is_some_and(|l| l.store == store)
    }
    /// Whether a peer on that store is one of its.
    pub fn is_on(&self, store: StoreId) -> bool {
        self.region.peer_on(store).is_some()
    }
    /// Whether a membership change has begun and not ended.
    pub fn is_joint(&self) -> bool {
        self.region.peers.iter().any(|p| matches!(p.role, PeerRole::IncomingVoter | PeerRole::DemotingVoter))
    }
    /// Peers that vote, outside a joint state.
    pub fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.region.peers.iter().filter(|p| p.role == PeerRole::Voter)
    }
    /// Peers that only receive the log.
    pub fn learners(&self) -> impl Iterator<Item = &Peer> {
        self.region.peers.iter().filter(|p| p.role == PeerRole::Learner)
    }
    /// What its leader said of a peer; nothing about itself.
    pub fn progress_of(&self, peer: PeerId) -> Option<&Progress> {
        self.progress.iter().find(|p| p.peer == peer)
    }
    /// Whether the peer has (nearly) all that is committed: it may be promoted, or asked to lead.
    pub fn is_caught_up(&self, peer: &Peer) -> bool {
        self.leader.is_some_and(|l| l.id == peer.id)
            || self.progress_of(peer.id).is_some_and(|p| {
                p.active && !p.needs_snapshot && p.matched.0.saturating_add(CAUGHT_UP_ENTRIES) >= self.committed_index
            })
    }
    /// All peers vote, and all of them follow: nothing is under way or to be mended.
    pub fn is_settled(&self) -> bool {
        self.leader.is_some() && self.region.peers.iter().all(|p| p.role == PeerRole::Voter && self.is_caught_up(p))
    }
}

impl TryFrom<RegionStatus> for RegionView {
    type Error = proto::Malformed;
    fn try_from(s: RegionStatus) -> Result<Self, proto::Malformed> {
        let load = s.load.unwrap_or_default();
        let progress = |p: wire::PeerProgress| Progress {
            peer: PeerId(p.peer_id),
            matched: LogIndex(p.matched),
            active: p.active,
            needs_snapshot: p.needs_snapshot,
        };
        Ok(RegionView {
            region: Region::try_from(s.region.ok_or(proto::Malformed("a report without its region"))?)?,
            leader: s.leader.map(Peer::try_from).transpose()?,
            term: Term(s.term),
            applied_index: s.applied_index,
            committed_index: s.committed_index,
            approximate_bytes: s.approximate_bytes,
            approximate_keys: s.approximate_keys,
            progress: s.progress.into_iter().map(progress).collect(),
            load: Load {
                reads: load.reads_per_s,
                writes: load.writes_per_s,
                read_bytes: load.read_bytes_per_s,
                write_bytes: load.write_bytes_per_s,
            },
            load_before: (Load::default(), 0),
        })
    }
}

impl From<&Load> for wire::RegionLoad {
    fn from(l: &Load) -> Self {
        wire::RegionLoad {
            reads_per_s: l.reads,
            writes_per_s: l.writes,
            read_bytes_per_s: l.read_bytes,
            write_bytes_per_s: l.write_bytes,
        }
    }
}

impl From<&RegionView> for RegionStatus {
    fn from(v: &RegionView) -> Self {
        let progress = |p: &Progress| wire::PeerProgress {
            peer_id: p.peer.0,
            matched: p.matched.0,
            active: p.active,
            needs_snapshot: p.needs_snapshot,
        };
        RegionStatus {
            region: Some((&v.region).into()),
            leader: v.leader.map(Into::into),
            term: v.term.0,
            applied_index: v.applied_index,
            committed_index: v.committed_index,
            approximate_bytes: v.approximate_bytes,
            progress: v.progress.iter().map(progress).collect(),
            load: (v.load != Load::default()).then(|| (&v.load).into()),
            approximate_keys: v.approximate_keys,
        }
    }
}
