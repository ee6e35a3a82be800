//! What the router learns from answers and errors.

use goldenscript::ArgumentConsumer;
use proto::{Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Term, wire::RegionError};

use super::{Outcome, key, next};
use crate::client::region_map::{RegionMap, Route};

/// A map, and the route of the last `locate`.
#[derive(Default)]
pub(super) struct Script {
    map: RegionMap,
    route: Option<Route>,
}

/// `ID START END VERSION [conf=]` with peers on stores 1, 2, 3. `_` is an open border.
fn region(args: &mut ArgumentConsumer<'_>) -> Result<Region, Box<dyn std::error::Error>> {
    let id = next(args, "region")?;
    let mut border = || next::<String>(args, "border").map(|b| if b == "_" { String::new() } else { b });
    let range = KeyRange::new(border()?, border()?);
    let epoch = Epoch { version: next(args, "version")?, conf_ver: key(args, "conf")? };
    let peer = |store| Peer { id: PeerId(id * 10 + store), store: StoreId(store), role: PeerRole::Voter };
    Ok(Region { id: RegionId(id), range, epoch, peers: (1..=3).map(peer).collect() })
}

impl Script {
    fn locate(&mut self, route: Option<Route>) -> Outcome {
        self.route = route;
        Ok(self.route.as_ref().map_or("unknown: ask PD".into(), |r| {
            let how = if r.known_leader { "leader" } else { "guess" };
            format!("{}@{} on {} ({how})", r.region.id, r.region.epoch, r.store)
        }))
    }

    fn last(&self) -> Result<Route, Box<dyn std::error::Error>> {
        Ok(self.route.clone().ok_or("locate first")?)
    }
}

impl super::Script for Script {
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Outcome {
        match name {
            // learn REGION [leader=STORE] [term=]
            "learn" => {
                let leader: u64 = key(args, "leader")?;
                let term = Term(key(args, "term")?);
                self.map.learn(region(args)?, (leader != 0).then_some(StoreId(leader)), term);
                Ok(String::new())
            }
            "locate" => {
                let route = self.map.locate(next::<String>(args, "key")?.as_bytes());
                self.locate(route)
            }
            "locate_before" => {
                let route = self.map.locate_before(args.next_pos().unwrap_or("").as_bytes());
                self.locate(route)
            }
            // The store of the last route …
            "answers" => {
                self.map.on_answer(&self.last()?);
                Ok(String::new())
            }
            "is_silent" => {
                self.map.on_silence(&self.last()?);
                Ok(String::new())
            }
            // not_leader [leader=STORE] term=T
            "not_leader" => {
                let route = self.last()?;
                let leader: u64 = key(args, "leader")?;
                let leader = route.region.peer_on(StoreId(leader));
                let error = RegionError::not_leader(route.region.id, leader, Term(key(args, "term")?));
                Ok(format!("{:?}", self.map.on_error(&route, &error)))
            }
            // epoch_mismatch REGION…, one after another, separated by their four words
            "epoch_mismatch" => {
                let mut regions = Vec::new();
                while let Ok(next) = region(args) {
                    regions.push(next);
                }
                let error = RegionError::epoch_mismatch(&regions.iter().collect::<Vec<_>>());
                Ok(format!("{:?}", self.map.on_error(&self.last()?, &error)))
            }
            "busy" => {
                let error = RegionError::server_busy("a queue", next(args, "milliseconds")?);
                Ok(format!("{:?}", self.map.on_error(&self.last()?, &error)))
            }
            "not_found" => {
                let error = RegionError::region_not_found(RegionId(0));
                Ok(format!("{:?}", self.map.on_error(&self.last()?, &error)))
            }
            "show" => {
                let line = |(region, leader, term): (&std::sync::Arc<Region>, Option<StoreId>, Term)| {
                    let leader = leader.map_or("nobody".into(), |s| s.to_string());
                    let (start, end) = (&region.range.start, &region.range.end);
                    let (start, end) = (String::from_utf8_lossy(start), String::from_utf8_lossy(end));
                    format!("{}@{} [{start}, {end}) led by {leader} in {term}", region.id, region.epoch)
                };
                Ok(self.map.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            _ => Err(format!("unknown command {name}").into()),
        }
    }
}
