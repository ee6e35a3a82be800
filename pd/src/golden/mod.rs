//! Golden scripts of the pure cores: `pd/testscripts/<core>/*`. `UPDATE_GOLDENFILES=1 cargo test -p pd` rewrites them.

mod plans;

use std::{error::Error, fmt::Write, str::FromStr};

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use proto::{
    Epoch, KeyRange, Peer, PeerId, PeerRole, Region, RegionId, StoreId, Timestamp,
    wire::{RegionStatus, Store, StoreState, StoreStatus},
};
use test_each_file::test_each_path;

use crate::{
    CatalogLeases, Cluster, Now, Tso,
    cluster::RegionView,
    tso::{ClockWitness, Shortage},
};

test_each_path! { in "pd/testscripts/tso" as tso => |path: &std::path::Path| run(&mut TsoScript(Tso::restore(0)), path) }
test_each_path! { in "pd/testscripts/catalog_lease" as catalog_lease => |path: &std::path::Path| {
    run(&mut LeaseScript(CatalogLeases::restore(0, 0)), path)
} }
test_each_path! { in "pd/testscripts/cluster" as cluster => |path: &std::path::Path| {
    run(&mut ClusterScript::default(), path)
} }

test_each_path! { in "pd/testscripts/operator" as operator => |path: &std::path::Path| {
    run(&mut plans::PlanScript::default(), path)
} }
test_each_path! { in "pd/testscripts/checker" as checker => |path: &std::path::Path| {
    run(&mut plans::PlanScript::default(), path)
} }
test_each_path! { in "pd/testscripts/scheduler" as scheduler => |path: &std::path::Path| {
    run(&mut plans::PlanScript::default(), path)
} }

fn run(script: &mut impl Runner, path: &std::path::Path) {
    goldenscript::run(script, path).expect("the script runs");
}

type Output = Result<String, Box<dyn Error>>;

/// A number given as `key=…`, if it is.
fn number<T: FromStr<Err: Error + 'static>>(
    args: &mut ArgumentConsumer<'_>,
    key: &str,
) -> Result<Option<T>, Box<dyn Error>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

struct TsoScript(Tso);

impl Runner for TsoScript {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Output {
        let mut args = command.consume_args();
        if command.name == "restore" || command.name == "extended" {
            let bound = args.next_pos().ok_or("a bound")?.parse()?;
            if command.name == "restore" {
                self.0 = Tso::restore(bound)
            } else {
                self.0.extended(bound)
            }
            return Ok(String::new());
        }
        let wall = number(&mut args, "wall")?.ok_or("wall=")?;
        let witness = number(&mut args, "median")?.map_or(ClockWitness::Unknown, ClockWitness::Median);
        let count = number(&mut args, "count")?.unwrap_or(1);
        args.reject_next()?;
        Ok(match command.name.as_str() {
            "allocate" => match self.0.allocate(wall, witness, count) {
                Ok(last) => last.to_string(),
                Err(Shortage::Extend(bound)) => format!("extend {bound}"),
                Err(Shortage::ClocksUnknown) => "clocks unknown".into(),
            },
            "refresh" => self.0.refresh(wall, witness).map_or("enough".into(), |b| b.to_string()),
            other => return Err(format!("unknown command {other}").into()),
        })
    }
}

struct LeaseScript(CatalogLeases);

impl Runner for LeaseScript {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Output {
        let mut args = command.consume_args();
        let at = Timestamp::new(number(&mut args, "at")?.unwrap_or(0), 0);
        let output = match command.name.as_str() {
            "restore" => {
                let bound = number(&mut args, "bound")?.unwrap_or(0);
                self.0 = CatalogLeases::restore(number(&mut args, "published")?.unwrap_or(0), bound);
                String::new()
            }
            "publish" => {
                self.0.publish(args.next_pos().ok_or("a version")?.parse()?);
                String::new()
            }
            "renew" => {
                let gateway = number(&mut args, "gateway")?.ok_or("gateway=")?;
                let ack = number(&mut args, "ack")?.ok_or("ack=")?;
                let grant = self.0.renew(gateway, ack, at).ok_or("too many gateways")?;
                let lease = match grant.expires_at {
                    Timestamp::ZERO => "no lease".to_string(),
                    end => format!("lease until {}", end.physical_ms()),
                };
                format!("published {}, {lease}", grant.published)
            }
            "waiting" => {
                let version = number(&mut args, "version")?.ok_or("version=")?;
                let waiting: Vec<_> = self.0.waiting_for(version, at).iter().map(u64::to_string).collect();
                match self.0.next_end(version, at) {
                    Some(end) if !waiting.is_empty() => {
                        format!("{}, next end {}", waiting.join(" "), end.physical_ms())
                    }
                    _ => "settled".into(),
                }
            }
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

#[derive(Default)]
struct ClusterScript {
    cluster: Cluster,
    now: Now,
}

impl ClusterScript {
    fn print(view: Option<&RegionView>) -> String {
        let Some(v) = view else { return "none".into() };
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let leader = v.leader.map_or("no leader".into(), |l| format!("{} {}", l.store, v.term));
        format!(
            "{} [{},{}) {} {leader}",
            v.region.id,
            text(&v.region.range.start),
            text(&v.region.range.end),
            v.region.epoch
        )
    }

    fn listing(&self) -> String {
        let mut out = String::new();
        for view in self.cluster.regions(&KeyRange::default(), 0) {
            let _ = writeln!(out, "{}", Self::print(Some(view)));
        }
        out
    }

    fn stores(&self) -> String {
        let mut out = String::new();
        for status in self.cluster.store_statuses(self.now) {
            let store = status.store.unwrap_or_default();
            let state = StoreState::try_from(store.state).map_or("?", |s| match s {
                StoreState::Up => "Up",
                StoreState::Disconnected => "Disconnected",
                StoreState::Down => "Down",
                StoreState::Draining => "Draining",
                StoreState::Removed => "Removed",
            });
            let _ = writeln!(out, "s{} {state} silent {} leads {}", store.id, status.silent_ms, status.leaders);
        }
        out
    }
}

fn key_range(text: &str) -> Result<KeyRange, Box<dyn Error>> {
    let (start, end) = text.split_once("..").ok_or("a range is start..end")?;
    Ok(KeyRange::new(Bytes::copy_from_slice(start.as_bytes()), Bytes::copy_from_slice(end.as_bytes())))
}

fn founded(text: &str) -> Result<Region, Box<dyn Error>> {
    let (id, range) = text.split_once(':').ok_or("a region is id:start..end")?;
    let epoch = Epoch { conf_ver: 1, version: 1 };
    Ok(Region { id: RegionId(id.parse()?), range: key_range(range)?, epoch, peers: vec![] })
}

fn peer(store: u64) -> Peer {
    Peer { id: PeerId(store), store: StoreId(store), role: PeerRole::Voter }
}

impl Runner for ClusterScript {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Output {
        let mut args = command.consume_args();
        let observed = |o: crate::cluster::Observed| format!("{o:?}").to_lowercase();
        let output = match command.name.as_str() {
            "at" => {
                self.now.monotonic_ms = args.next_pos().ok_or("milliseconds")?.parse()?;
                String::new()
            }
            "found" => {
                let stores: Vec<u64> =
                    args.take_key("stores").ok_or("stores=")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
                let regions =
                    args.take_key("regions").ok_or("regions=")?.split(',').map(founded).collect::<Result<_, _>>()?;
                let records = stores.iter().map(|&id| Store { id, ..Store::default() }).collect();
                self.cluster = Cluster::new(self.now, records, stores.into_iter().map(StoreId).collect(), regions);
                String::new()
            }
            "store" => {
                let id = args.next_pos().ok_or("a store")?.parse()?;
                let wall = number(&mut args, "wall")?.unwrap_or(0);
                let store = Some(Store { id, ..Store::default() });
                observed(self.cluster.observe_store(self.now, &StoreStatus { store, ..StoreStatus::default() }, wall))
            }
            "full" => {
                self.cluster.retain_led(StoreId(number(&mut args, "store")?.ok_or("store=")?), &Default::default());
                String::new()
            }
            "report" => {
                let epoch = args.take_key("epoch").ok_or("epoch=")?;
                let (conf_ver, version) = epoch.split_once('/').ok_or("epoch=conf_ver/version")?;
                let region = Region {
                    id: RegionId(number(&mut args, "region")?.ok_or("region=")?),
                    range: key_range(args.take_key("range").ok_or("range=")?)?,
                    epoch: Epoch { conf_ver: conf_ver.parse()?, version: version.parse()? },
                    peers: vec![],
                };
                let leader = number(&mut args, "leader")?.map(|store| peer(store).into());
                let term = number(&mut args, "term")?.ok_or("term=")?;
                let status = RegionStatus { region: Some((&region).into()), leader, term, ..RegionStatus::default() };
                observed(self.cluster.observe_region(self.now, status))
            }
            "lookup" => Self::print(self.cluster.region_of(args.next_pos().ok_or("a key")?.as_bytes())),
            "regions" => self.listing(),
            "stores" => self.stores(),
            "ready" => if self.cluster.is_ready(self.now) { "yes" } else { "no" }.into(),
            "clock" => match self.cluster.clock_witness(self.now) {
                ClockWitness::Median(ms) => ms.to_string(),
                ClockWitness::Unknown => "unknown".into(),
            },
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}
