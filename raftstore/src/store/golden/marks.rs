//! Marks in scripts: hashed where they are applied, compared when a script asks.

use std::{error::Error, fmt::Write};

use goldenscript::ArgumentConsumer;
use proto::{Batch, Cf, RegionId};

use super::{Outcome, Script, replica};
use crate::{
    Event,
    effect::ProposeRequest,
    engine::{Engine, WriteBatch, WriteOp},
    verify::differences,
};

impl Script {
    /// `mark s1 r1 id=7`.
    pub(super) fn mark(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let (id, region) = replica(args)?;
        let mut target = self.target(region)?;
        target.epoch.version = args.take_key("version").map(str::parse).transpose()?.unwrap_or(target.epoch.version);
        let mut batch = Batch::default();
        batch.mark(args.take_key("id").ok_or("id=")?.parse()?);
        let ticket = self.ticket();
        self.turn(id, vec![Event::Propose(ProposeRequest { ticket, target, ops: batch.ops, bytes: 10 })])
    }

    /// A store hashes what it came to.
    pub(super) fn hash_marked(&mut self, id: u64) {
        let Some(life) = self.nodes.get(&id).and_then(|n| n.life.as_ref()) else { return };
        for marked in life.applier.take_marked() {
            life.handle.keep_verified(marked.hash());
        }
    }

    /// `marks r1 id=7`: what every store says to it, and where two differ.
    pub(super) fn marks(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let region = args.next_pos().and_then(|r| r.strip_prefix('r')).ok_or("a region is r1, r2, …")?.parse()?;
        let mark = args.take_key("id").ok_or("id=")?.parse()?;
        let mut trees = Vec::new();
        for (id, node) in &self.nodes {
            let said = node.life.as_ref().and_then(|life| life.handle.verified(RegionId(region), mark));
            let Some(said) = said else {
                writeln!(self.output, "s{id} has nothing to say")?;
                continue;
            };
            let (index, tree) = (said.index.0, said.tree?);
            let root: String = tree.root[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(self.output, "s{id} at {index}: {} records, {root}", tree.records)?;
            trees.push((*id, tree));
        }
        for pair in trees.windows(2) {
            for range in differences(&pair[0].1, &pair[1].1) {
                let key = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                let (start, end) = (key(&range.start), key(&range.end));
                writeln!(self.output, "s{} and s{} differ in [{start}..{end})", pair[0].0, pair[1].0)?;
            }
        }
        Ok(())
    }

    /// `spoil s2 b`: a key changes on one store's disk, by no entry.
    pub(super) fn spoil(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<(), Box<dyn Error>> {
        let id = super::store(args.next_pos().ok_or("a store")?)?;
        let key = args.next_pos().ok_or("a key")?.to_string();
        let node = self.nodes.get(&id).ok_or("no such store")?;
        node.engine.write(WriteBatch { ops: vec![WriteOp::Put(Cf::Data, key.into(), "rot".into())] })?;
        Ok(())
    }
}
