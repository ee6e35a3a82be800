//! Links between nodes: every message takes a seeded time, and may be lost, doubled or overtaken.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::runtime::{NodeIndex, World};

/// How links behave; faults change it for a while.
#[derive(Clone, Copy, Debug)]
pub struct LinkQuality {
    /// The fastest a message arrives.
    pub delay_min: Duration,
    /// The slowest, spikes aside.
    pub delay_max: Duration,
    /// Of a thousand messages, how many are lost.
    pub lost_per_mille: u32,
    /// Of a thousand one-way messages, how many arrive twice.
    pub doubled_per_mille: u32,
    /// Of a thousand messages, how many take ten times `delay_max` (and are overtaken).
    pub spiked_per_mille: u32,
}

impl LinkQuality {
    /// A quiet local network.
    pub const CALM: LinkQuality = LinkQuality {
        delay_min: Duration::from_micros(50),
        delay_max: Duration::from_micros(600),
        lost_per_mille: 0,
        doubled_per_mille: 0,
        spiked_per_mille: 1,
    };
    /// A bad day.
    pub const ROUGH: LinkQuality = LinkQuality {
        delay_min: Duration::from_micros(100),
        delay_max: Duration::from_millis(12),
        lost_per_mille: 40,
        doubled_per_mille: 30,
        spiked_per_mille: 40,
    };
}

/// A caller learns that a call's connection broke after this long at most (keep-alive).
const BROKEN_CALL_NOTICED_MAX: Duration = Duration::from_millis(1500);

/// How a call ended that brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// The other side never got it.
    Unreachable,
    /// It was sent; whether it was carried out is not known.
    Lost,
}

struct Links {
    rng: ChaCha8Rng,
    quality: LinkQuality,
    /// Pairs (from, to) that nothing passes.
    cut: BTreeSet<(NodeIndex, NodeIndex)>,
}

/// All links. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    world: World,
    links: Arc<Mutex<Links>>,
}

impl Network {
    /// Links of a calm day.
    pub fn new(world: World) -> Network {
        let links = Links { rng: world.rng("network"), quality: LinkQuality::CALM, cut: BTreeSet::new() };
        Network { world, links: Arc::new(Mutex::new(links)) }
    }

    /// From now on.
    pub fn set_quality(&self, quality: LinkQuality) {
        self.links.lock().quality = quality;
    }

    /// Cuts messages from `from` to `to`; the way back stays.
    pub fn cut(&self, from: NodeIndex, to: NodeIndex) {
        self.links.lock().cut.insert((from, to));
    }

    /// Mends one cut.
    pub fn mend(&self, from: NodeIndex, to: NodeIndex) {
        self.links.lock().cut.remove(&(from, to));
    }

    /// Mends every cut.
    pub fn heal(&self) {
        self.links.lock().cut.clear();
    }

    /// One way, lossy, unordered. `deliver` runs as the receiver, once for every copy that arrives.
    pub fn send(
        &self,
        from: NodeIndex,
        to: NodeIndex,
        label: &'static str,
        detail: u64,
        deliver: impl Fn() + Send + Sync + 'static,
    ) {
        let Some(delay) = self.transit(from, to) else { return };
        let deliver = Arc::new(deliver);
        let doubled = {
            let mut links = self.links.lock();
            let doubled = links.quality.doubled_per_mille;
            hit(&mut links.rng, doubled)
        };
        if doubled && let Some(later) = self.transit(from, to) {
            self.world.count("messages doubled", 1);
            let again = deliver.clone();
            self.arrive(to, later, label, detail, move || again());
        }
        self.arrive(to, delay, label, detail, move || deliver());
    }

    /// A call over a connection: never doubled; the caller learns when it breaks. `serve` runs as the callee.
    pub async fn call<Answer, Serving>(
        &self,
        from: NodeIndex,
        to: NodeIndex,
        label: &'static str,
        serve: impl FnOnce() -> Serving + Send + 'static,
    ) -> Result<Answer, CallFailure>
    where
        Answer: Send + 'static,
        Serving: Future<Output = Answer> + Send + 'static,
    {
        let caller = self.world.owner(from).ok_or(CallFailure::Unreachable)?;
        if self.world.owner(to).is_none() {
            // Connection refused, after a round trip.
            let round_trip = self.links.lock().quality.delay_max;
            self.world.sleep(caller, round_trip).await;
            return Err(CallFailure::Unreachable);
        }
        let Some(delay) = self.transit(from, to) else {
            self.notice_broken(from).await;
            return Err(CallFailure::Lost);
        };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let network = self.clone();
        self.arrive(to, delay, label, 0, move || {
            let Some(callee) = network.world.owner(to) else { return };
            let (world, serving) = (network.world.clone(), serve());
            world.spawn(callee, async move {
                let result = serving.await;
                if let Some(delay) = network.transit(to, from) {
                    network.arrive(from, delay, "answer", 0, move || {
                        let _ = answer.send(result);
                    });
                }
            });
        });
        match answered.await {
            Ok(result) => Ok(result),
            // The callee crashed, or a message was lost.
            Err(_) => {
                self.notice_broken(from).await;
                Err(CallFailure::Lost)
            }
        }
    }

    /// Whether the next piece of a bulk transfer arrives with other bytes than it was sent with, on links that lose too.
    pub fn bends(&self) -> bool {
        let mut links = self.links.lock();
        let lost = links.quality.lost_per_mille;
        hit(&mut links.rng, lost)
    }

    /// Until the caller sees that the connection is gone.
    async fn notice_broken(&self, caller: NodeIndex) {
        let after = self.links.lock().rng.random_range(Duration::from_millis(1)..BROKEN_CALL_NOTICED_MAX);
        if let Some(owner) = self.world.owner(caller) {
            self.world.sleep(owner, after).await;
        }
    }

    /// How long this message takes; `None`: it never arrives.
    fn transit(&self, from: NodeIndex, to: NodeIndex) -> Option<Duration> {
        let mut links = self.links.lock();
        let Links { rng, quality, cut } = &mut *links;
        if cut.contains(&(from, to)) {
            self.world.count("messages cut off", 1);
            return None;
        }
        if hit(rng, quality.lost_per_mille) {
            self.world.count("messages lost", 1);
            return None;
        }
        let delay = rng.random_range(quality.delay_min..=quality.delay_max);
        if hit(rng, quality.spiked_per_mille) {
            self.world.count("messages overtaken", 1);
            return Some(delay + quality.delay_max * 10);
        }
        Some(delay)
    }

    fn arrive(
        &self,
        to: NodeIndex,
        delay: Duration,
        label: &'static str,
        detail: u64,
        deliver: impl FnOnce() + Send + 'static,
    ) {
        // Whoever is up at arrival takes it: a restarted node gets what was sent to its former life, as over UDP
        // or a fresh connection, and has to cope.
        if let Some(owner) = self.world.owner(to) {
            self.world.schedule(owner, delay, label, detail, deliver);
        }
    }
}

fn hit(rng: &mut ChaCha8Rng, per_mille: u32) -> bool {
    per_mille > 0 && rng.random_range(0..1000) < per_mille
}
