//! Golden scripts (`node/testscripts/founding`) and a property over a few nodes that crash, are wiped and hear late.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use goldenscript::{Command, Context, Runner};
use proptest::prelude::*;
use test_each_file::test_each_path;

use super::*;

/// A node of the scripted world: its durable part, and its list.
#[derive(Clone)]
struct Host {
    founding: Founding,
    up: bool,
}

/// Nodes that reach each other at once, unless they are down.
#[derive(Default)]
struct World {
    hosts: BTreeMap<String, Host>,
    made: u8,
}

impl World {
    /// A node with an empty directory; a second one at the same address is a wiped one.
    fn add(&mut self, address: &str, list: &str) {
        self.made += 1;
        let me = Founder { address: address.into(), uuid: Bytes::copy_from_slice(&[self.made; 16]) };
        let list: Vec<String> = list.split(',').map(Into::into).collect();
        let founding = Founding::new(me, &list, (0xC0 + u64::from(self.made), 1), None, false);
        self.hosts.insert(address.into(), Host { founding, up: true });
    }

    fn answers(&mut self, of: &str) -> Answers {
        let (question, targets) = (self.hosts[of].founding.question(), self.hosts[of].founding.targets());
        let answer = |at: String| {
            let host = self.hosts.get_mut(&at).filter(|h| h.up);
            let answer = host.map(|h| h.founding.answer(&question)).ok_or("refused".to_string());
            (at, answer)
        };
        targets.into_iter().map(answer).collect()
    }

    fn me(&mut self, of: &str) -> &mut Founding {
        &mut self.hosts.get_mut(of).expect("a known node").founding
    }

    /// Follows a step as the driver does.
    fn follow(&mut self, of: &str, step: &Step) -> Vec<String> {
        match step {
            Step::Sync(record) => self.me(of).synced(record.clone()),
            Step::Start(_) => self.me(of).started(),
            Step::Hand(to, _) => {
                let record = self.me(of).held.clone().expect("it hands over what it holds");
                return to.iter().map(|at| self.hand(at, &record)).collect();
            }
            Step::Wait(_) | Step::Join(_) | Step::Fail(_) => {}
        }
        vec![]
    }

    fn hand(&mut self, to: &str, record: &FoundingRecord) -> String {
        match self.me(to).accept(record) {
            Ok(true) => {
                self.me(to).synced(record.clone());
                format!("{to} synced")
            }
            Ok(false) => format!("{to} holds it"),
            Err(reason) => reason,
        }
    }
}

fn show(step: &Step) -> String {
    match step {
        Step::Wait(reason) => format!("wait: {reason}"),
        Step::Sync(r) => format!("sync the record of {:x}", r.cluster_id),
        Step::Hand(to, _) => format!("hand to {}", to.join(",")),
        Step::Start(store) => format!("start as {store}"),
        Step::Join(r) => format!("join {:x} as a new store", r.cluster_id),
        Step::Fail(reason) => format!("fail: {reason}"),
    }
}

test_each_path! { in "node/testscripts/founding" as script => |path: &std::path::Path| {
    goldenscript::run(&mut World::default(), path).expect("the script runs");
} }

impl Runner for World {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let at = args.next_pos().ok_or("an address")?.to_string();
        let output = match command.name.as_str() {
            "node" => {
                self.add(&at, args.take_key("join").ok_or("join=")?);
                String::new()
            }
            // Started again on its directory with another list.
            "relist" => {
                let list: Vec<String> = args.take_key("join").ok_or("join=")?.split(',').map(Into::into).collect();
                let old = self.hosts[&at].founding.clone();
                *self.me(&at) = Founding::new(old.me, &list, (0, 1), old.held, old.started);
                String::new()
            }
            "down" | "up" => {
                self.hosts.get_mut(&at).ok_or("a known node")?.up = command.name == "up";
                String::new()
            }
            "round" => {
                let answers = self.answers(&at);
                let step = self.hosts[&at].founding.round(&answers);
                let mut lines = vec![show(&step)];
                lines.extend(self.follow(&at, &step));
                lines.join("\n")
            }
            "stray" => {
                let answers = self.answers(&at);
                self.hosts[&at].founding.stray(&answers).unwrap_or("at home".into())
            }
            // A record that was composed long ago and arrives now.
            "late" => {
                let cluster = u64::from_str_radix(args.take_key("cluster").ok_or("cluster=")?, 16)?;
                let uuids = args.take_key("uuids").ok_or("uuids=")?.split(',');
                let founder = |(at, id): (&str, u8)| Founder { address: at.into(), uuid: vec![id; 16].into() };
                let ids = uuids.map(str::parse).collect::<Result<Vec<u8>, _>>()?;
                let founders: Vec<_> = ["a", "b", "c"].into_iter().zip(ids).map(founder).collect();
                self.hand(&at, &record::compose(cluster, &founders, 1))
            }
            other => return Err(format!("unknown command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A node makes a round.
    Round(usize),
    /// A node is cut off, or comes back.
    Toggle(usize),
    /// A node's directory is lost.
    Wipe(usize),
    /// A record somebody composed earlier arrives at a node.
    Late(usize, usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..3usize).prop_map(Event::Round),
        2 => (0..3usize).prop_map(Event::Toggle),
        1 => (0..3usize).prop_map(Event::Wipe),
        2 => (0..3usize, 0..8usize).prop_map(|(n, r)| Event::Late(n, r)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Directories of two clusters never run at the same time, and nobody runs under a store id that another directory had.
    #[test]
    fn a_cluster_is_founded_once(events in prop::collection::vec(event(), 1..80)) {
        let names = ["a", "b", "c"];
        let mut world = World::default();
        for name in names {
            world.add(name, "a,b,c");
        }
        let (mut composed, mut ran) = (Vec::new(), BTreeMap::<(u64, StoreId), Bytes>::new());
        for event in events {
            match event {
                Event::Round(n) if world.hosts[names[n]].up => {
                    let answers = world.answers(names[n]);
                    let step = world.hosts[names[n]].founding.round(&answers);
                    if let Step::Sync(record) = &step {
                        composed.push(record.clone());
                    }
                    if let Step::Start(store) = step {
                        let me = world.me(names[n]);
                        let cluster = me.held.as_ref().expect("held").cluster_id;
                        let directory = ran.entry((cluster, store)).or_insert(me.me.uuid.clone());
                        prop_assert_eq!(&*directory, &me.me.uuid, "another directory under an old store id");
                    }
                    world.follow(names[n], &step);
                }
                Event::Round(_) => {}
                Event::Toggle(n) => {
                    let host = world.hosts.get_mut(names[n]).expect("known");
                    host.up = !host.up;
                }
                Event::Wipe(n) => world.add(names[n], "a,b,c"),
                Event::Late(n, r) => {
                    if let Some(record) = composed.get(r).cloned() {
                        world.hand(names[n], &record);
                    }
                }
            }
            let running = world.hosts.values().filter(|h| h.founding.started);
            let clusters: BTreeSet<_> = running.map(|h| h.founding.held.as_ref().expect("held").cluster_id).collect();
            prop_assert!(clusters.len() <= 1, "directories of two clusters run: {:?}", clusters);
        }
    }
}
