//! Reading the past from any replica.

use std::fmt::Write;

use goldenscript::ArgumentConsumer;
use proto::{RegionId, Timestamp};

use super::{Outcome, Script, replica, store};
use crate::Event;

impl Script {
    /// `resolve s1 100`: everything led there that does not sleep, as its user would have it.
    pub(super) fn resolve(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let id = store(args.next_pos().ok_or("a store")?)?;
        let ts = Timestamp(args.next_pos().ok_or("a timestamp")?.parse()?);
        let life = self.nodes.get(&id).and_then(|n| n.life.as_ref()).ok_or("it is down")?;
        let regions: Vec<_> = life.handle.led_awake().iter().map(|region| (region.id, region.epoch)).collect();
        let ids: Vec<_> = regions.iter().map(|(id, _)| format!("r{}", id.0)).collect();
        writeln!(self.output, "s{id} leads {}", if ids.is_empty() { "nothing".into() } else { ids.join(" ") })?;
        self.turn(id, vec![Event::Resolve(ts, regions)])
    }

    /// `past s2 r2`: up to when the replica there can be read by who knows the region as it is now.
    pub(super) fn past(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let target = self.target(region)?;
        let life = self.nodes.get(&id).and_then(|n| n.life.as_ref()).ok_or("it is down")?;
        let readable = |ts: &u64| life.handle.past_snapshot(&target, Timestamp(*ts)).is_some();
        let RegionId(region) = region;
        match (1..1000).rev().find(readable) {
            Some(ts) => writeln!(self.output, "s{id} r{region} is readable up to {ts}")?,
            None => writeln!(self.output, "s{id} r{region} is not readable")?,
        }
        Ok(())
    }
}
