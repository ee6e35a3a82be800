//! Golden scripts of plans (`node/testscripts/recovery`), and plans that are carried out on stores in memory.

use std::error::Error;

use goldenscript::{Command, Context, Runner};
use proto::{Epoch, Peer, PeerId, PeerRole};
use raftstore::{bootstrap, engine::memory::MemoryEngine, log::memory::MemoryLog};
use test_each_file::test_each_path;

use super::*;
use crate::founding::record::{Founder, compose, regions};

#[derive(Default)]
struct Surveys(BTreeMap<u64, RecoverySurvey>);

fn ids(text: &str) -> Result<Vec<u64>, Box<dyn Error>> {
    Ok(text.split(',').filter(|t| !t.is_empty()).map(str::parse).collect::<Result<_, _>>()?)
}

/// `1,2,-3`: voters on stores 1 and 2, a learner on store 3; peers' ids are ten times the stores'. `+4` and `~4` are
/// members of a joint state that come and go.
fn peers(text: &str) -> Result<Vec<Peer>, Box<dyn Error>> {
    let peer = |word: &str| {
        let (role, store) = match word.split_at_checked(1) {
            Some(("-", rest)) => (PeerRole::Learner, rest),
            Some(("+", rest)) => (PeerRole::IncomingVoter, rest),
            Some(("~", rest)) => (PeerRole::DemotingVoter, rest),
            _ => (PeerRole::Voter, word),
        };
        let store = store.parse::<u64>()?;
        Ok(Peer { id: PeerId(store * 10), store: StoreId(store), role })
    };
    text.split(',').map(peer).collect()
}

impl Surveys {
    fn replica(&mut self, args: &mut goldenscript::ArgumentConsumer<'_>) -> Result<(), Box<dyn Error>> {
        let mut key = |name: &str| args.take_key(name).ok_or(format!("{name}="));
        let store: u64 = key("store")?.parse()?;
        let (start, end) = key("range")?.split_once("..").ok_or("a..b")?;
        let (conf_ver, version) = key("epoch")?.split_once('/').ok_or("conf/version")?;
        let region = Region {
            id: RegionId(key("region")?.parse()?),
            range: KeyRange::new(start.as_bytes().to_vec(), end.as_bytes().to_vec()),
            epoch: Epoch { conf_ver: conf_ver.parse()?, version: version.parse()? },
            peers: peers(key("peers")?)?,
        };
        // term/applied/last
        let log = key("log")?.split('/').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [term, applied, last] = log[..] else { return Err("term/applied/last".into()) };
        let remains = ReplicaRemains {
            region: Some((&region).into()),
            applied_index: applied,
            last_index: last,
            last_term: term,
            term,
            taking_snapshot: args.take_key("snapshot").is_some(),
        };
        self.0.get_mut(&store).ok_or("a surveyed store")?.replicas.push(remains);
        Ok(())
    }
}

fn show(plan: &RecoveryPlan) -> String {
    let text = |key: &Bytes| String::from_utf8_lossy(key).into_owned();
    let mut lines = vec![format!(
        "{} left alone, others begin above conf_ver {} and term {}, ids above {}",
        plan.left_alone, plan.conf_ver_floor, plan.term_floor, plan.largest_id
    )];
    for r in &plan.rescues {
        let region = r.region.clone().unwrap_or_default();
        let keeps = r.keeps.as_ref().map_or(String::new(), |k| {
            format!(", keeps {:?}..{:?} at version {}", text(&k.start_key), text(&k.end_key), r.version_floor)
        });
        lines.push(format!(
            "r{} goes on with p{} on s{}, entries {}..{}, given up on {:?}{keeps}",
            region.id, r.peer_id, r.store_id, r.applied_index, r.last_index, r.given_up
        ));
    }
    lines.extend(plan.holes.iter().map(|h| format!("hole {:?}..{:?}", text(&h.start_key), text(&h.end_key))));
    lines.join("\n")
}

test_each_path! { in "node/testscripts/recovery" as script => |path: &std::path::Path| {
    goldenscript::run(&mut Surveys::default(), path).expect("the script runs");
} }

impl Runner for Surveys {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            // Another story.
            "anew" => {
                self.0.clear();
                String::new()
            }
            "survey" => {
                let store_id = args.next_pos().ok_or("a store")?.parse()?;
                let known_stores = ids(args.take_key("knows").ok_or("knows=")?)?;
                let survey = RecoverySurvey {
                    format: FORMAT,
                    cluster_id: 7,
                    store_id,
                    boot_id: 1,
                    known_stores,
                    ..RecoverySurvey::default()
                };
                self.0.insert(store_id, survey);
                String::new()
            }
            "replica" => {
                self.replica(&mut args)?;
                String::new()
            }
            "plan" => {
                let lost: Vec<_> = ids(args.take_key("lost").unwrap_or(""))?.into_iter().map(StoreId).collect();
                let leave = ids(args.take_key("leave").unwrap_or(""))?;
                let surveys: Vec<_> = self.0.values().cloned().collect();
                let made = plan::make(&surveys, &Wishes { lost: &lost, leave: &leave, plan_id: 1 });
                made.map_or_else(|refusal| format!("refused: {refusal}"), |plan| show(&plan))
            }
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

/// A founder's directory after its first start.
fn founder(store: u64) -> (Arc<dyn Engine>, Arc<dyn LogEngine>) {
    let (engine, log) = (Arc::new(MemoryEngine::new()), Arc::new(MemoryLog::default()));
    let founders: Vec<_> =
        (1..=3).map(|i| Founder { address: format!("n{i}:1"), uuid: Bytes::copy_from_slice(&[i; 16]) }).collect();
    let record = compose(7, &founders, 1);
    let mut identity = Identity::open(engine.clone(), [store as u8; 16]).unwrap();
    identity.hold(record.clone()).unwrap();
    identity.start(StoreId(store)).unwrap();
    bootstrap(&*engine, &*log, StoreId(store), &regions(&record).unwrap()).unwrap();
    (engine, log)
}

#[test]
fn a_plan_is_carried_out_once_and_only_where_it_was_made_for() {
    let (engine, log) = founder(1);
    let stopped = || Stopped::look(engine.clone(), log.clone()).unwrap();
    let survey = stopped().survey().unwrap();
    assert_eq!((survey.known_stores.clone(), survey.replicas.len()), (vec![1, 2, 3], 2));
    let lost = [StoreId(2), StoreId(3)];
    let plan = plan::make(&[survey], &Wishes { lost: &lost, leave: &[], plan_id: 5 }).unwrap();

    let (other_engine, other_log) = founder(2);
    let other = Stopped::look(other_engine, other_log).unwrap();
    assert!(other.apply(&plan, 0).unwrap_err().to_string().contains("was not surveyed"));

    let done = stopped().apply(&plan, 9_000).unwrap();
    assert_eq!(done.iter().map(|r| (r.id.0, r.peers.len())).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    assert!(done.iter().all(|r| r.epoch.conf_ver > plan.conf_ver_floor));
    assert_eq!(stopped().apply(&plan, 9_000).unwrap(), done, "twice is once");
    let window = engine.snapshot().get(Cf::Data, &pd::keys::window()).unwrap().unwrap();
    assert!(pd::keys::decode_u64(&window).unwrap() > 9_000);
    let told = stopped().identity.pd_region().unwrap().unwrap();
    assert_eq!(told.peers.iter().map(|p| p.store_id).collect::<Vec<_>>(), [1]);

    // Another plan, and a start in between.
    let again = stopped().survey().unwrap();
    assert!(plan::make(&[again], &Wishes { lost: &lost, leave: &[], plan_id: 6 }).unwrap_err().contains("nothing to"));
    Identity::open(engine.clone(), [1; 16]).unwrap();
    let late = RecoveryPlan { plan_id: 8, ..plan };
    assert!(stopped().apply(&late, 0).unwrap_err().to_string().contains("was started after"));
}

#[test]
fn an_empty_directory_is_no_store() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let looked = Stopped::look(engine.clone(), Arc::new(MemoryLog::default()));
    assert!(looked.err().unwrap().to_string().contains("empty"));
    assert!(Identity::look(engine).unwrap().is_none(), "looking leaves no trace");
}
