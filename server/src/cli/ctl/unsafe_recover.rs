//! `ctl unsafe-recover`: regions whose quorum is lost for good go on with what is left. Works on stopped nodes' data
//! directories; asks no node.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Subcommand;
use kv::Clock;
use node::recovery::{Stopped, Wishes, plan};
use prost::Message;
use proto::{
    StoreId,
    wire::{RecoveryPlan, RecoverySurvey, Region, Rescue},
};
use raftstore::{
    engine::rocks::{RocksEngine, RocksOptions},
    log::files::FileLog,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::hex;
use crate::{
    cli::output::{Output, Table},
    clock::SystemClock,
    data_dir::DataDir,
};

/// First line of a survey's file.
const SURVEY_HEAD: &[u8] = b"flaredb survey\n";
/// First line of a plan's file.
const PLAN_HEAD: &[u8] = b"flaredb recovery plan\n";
/// For people who look into the data directory.
const NOTE_FILE: &str = "UNSAFE-RECOVERY.txt";

const WARNING: &str = "\
WARNING: unsafe recovery gives up what only the lost stores had.
  - Writes that were acknowledged may be missing, halves of transactions among them; constraints and indexes may not fit rows.
  - Writes that were reported as failed or unknown may be there.
  - The lost stores must never run again: together they may be a quorum of the old members, and serve beside the others.
  - Every surviving store of the plan must be stopped while it is carried out, and start only afterwards.
";

#[derive(Debug, Subcommand)]
pub(super) enum UnsafeRecoverVerb {
    /// Writes down what a stopped node's store holds. Changes nothing.
    Survey {
        /// The stopped node's data directory.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Makes a plan from the surveys of all surviving stores, and shows it. Changes nothing.
    Plan {
        /// Stores that never come back.
        #[arg(long, value_name = "ID,ID", value_delimiter = ',', required = true)]
        lost: Vec<u64>,
        /// Regions to leave as they are.
        #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
        leave: Vec<u64>,
        /// Where to.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Of every surviving store.
        #[arg(value_name = "SURVEY", required = true)]
        surveys: Vec<PathBuf>,
    },
    /// Carries a plan out on a stopped node's store; without --yes only shows what it would do. There is no way back.
    Apply {
        /// The stopped node's data directory.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The plan.
        #[arg(long, value_name = "FILE")]
        plan: PathBuf,
        /// Yes: give up what only the lost stores had.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(verb: &UnsafeRecoverVerb, output: Output) -> anyhow::Result<String> {
    match verb {
        UnsafeRecoverVerb::Survey { data_dir, out } => survey(data_dir, out, output),
        UnsafeRecoverVerb::Plan { lost, leave, out, surveys } => make_plan(lost, leave, out, surveys, output),
        UnsafeRecoverVerb::Apply { data_dir, plan, yes } => apply(data_dir, plan, *yes, output),
    }
}

/// A data directory that no process uses, locked while this lives.
struct Opened {
    store: Stopped,
    _lock: DataDir,
}

fn open(path: &Path) -> anyhow::Result<Opened> {
    // The lock would make the directory.
    ensure!(path.join("state").is_dir(), "{} is no data directory of a node", path.display());
    let lock = DataDir::open(path).context("stop the node first")?;
    let engine = Arc::new(RocksEngine::open(&lock.state(), RocksOptions::default())?);
    let log = Arc::new(FileLog::open(&lock.log())?);
    let store = Stopped::look(engine, log).with_context(|| format!("in {}", path.display()))?;
    Ok(Opened { store, _lock: lock })
}

fn survey(data_dir: &Path, out: &Path, output: Output) -> anyhow::Result<String> {
    let survey = open(data_dir)?.store.survey()?;
    write(out, SURVEY_HEAD, &survey)?;
    let mut table = Table::new(&["store", "cluster", "replicas", "known_stores", "file"]);
    table.row(vec![
        json!(survey.store_id),
        json!(format!("{:x}", survey.cluster_id)),
        json!(survey.replicas.len()),
        json!(survey.known_stores),
        json!(out.display().to_string()),
    ]);
    Ok(table.render_one(output))
}

fn make_plan(lost: &[u64], leave: &[u64], out: &Path, surveys: &[PathBuf], output: Output) -> anyhow::Result<String> {
    let surveys =
        surveys.iter().map(|path| read::<RecoverySurvey>(path, SURVEY_HEAD)).collect::<Result<Vec<_>, _>>()?;
    let lost: Vec<_> = lost.iter().map(|id| StoreId(*id)).collect();
    let wishes = Wishes { lost: &lost, leave, plan_id: Uuid::new_v4().as_u64_pair().0 };
    let plan = plan::make(&surveys, &wishes).map_err(|refusal| anyhow::anyhow!(refusal))?;
    write(out, PLAN_HEAD, &plan)?;
    warn_of(&plan);
    Ok(show(&plan, |_| true, output))
}

fn apply(data_dir: &Path, plan: &Path, yes: bool, output: Output) -> anyhow::Result<String> {
    let plan: RecoveryPlan = read(plan, PLAN_HEAD)?;
    let opened = open(data_dir)?;
    let store = opened.store.survey()?.store_id;
    let here = |rescue: &Rescue| rescue.store_id == store;
    if opened.store.is_done(&plan)? {
        eprintln!("plan {:x} was carried out on store {store} already", plan.plan_id);
        return Ok(show(&plan, here, output));
    }
    warn_of(&plan);
    if !yes {
        eprintln!("Nothing was changed on store {store}. With --yes these regions go on with its replicas alone:");
        return Ok(show(&plan, here, output));
    }
    let wall_ms = SystemClock.wall_ms();
    let regions = opened.store.apply(&plan, wall_ms)?;
    let regions: Vec<_> = regions.iter().map(Region::from).collect();
    note(data_dir, &plan, &regions, wall_ms)?;
    eprintln!("Done on store {store}. Carry the plan out on every other surviving store, then start them all.");
    let mut table = Table::new(&["region", "start", "end", "epoch", "peers"]);
    for region in &regions {
        let mut row = borders(region);
        row.push(json!(epoch(region)));
        row.push(json!(region.peers.iter().map(|p| format!("{}@s{}", p.id, p.store_id)).collect::<Vec<_>>()));
        table.row(row);
    }
    Ok(table.render(output))
}

fn warn_of(plan: &RecoveryPlan) {
    eprint!("{WARNING}");
    eprintln!(
        "Plan {:x}: stores {} are lost; {} regions lost their quorum, {} have one and are left alone.",
        plan.plan_id,
        plan.lost_stores.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        plan.rescues.len(),
        plan.left_alone
    );
    for hole in &plan.holes {
        eprintln!(
            "HOLE: no surviving store has a replica of the keys {} .. {}: they stay unavailable, their rows are gone.",
            hex(&hole.start_key),
            hex(&hole.end_key)
        );
    }
}

fn borders(region: &Region) -> Vec<Value> {
    let range = region.range.clone().unwrap_or_default();
    vec![json!(region.id), json!(hex(&range.start_key)), json!(hex(&range.end_key))]
}

fn epoch(region: &Region) -> String {
    let epoch = region.epoch.unwrap_or_default();
    format!("{}/{}", epoch.conf_ver, epoch.version)
}

fn show(plan: &RecoveryPlan, which: impl Fn(&Rescue) -> bool, output: Output) -> String {
    let mut table = Table::new(&[
        "region",
        "start",
        "end",
        "epoch",
        "peers",
        "survivor_store",
        "applied",
        "last_entry",
        "given_up_on",
        "keeps_only",
    ]);
    for rescue in plan.rescues.iter().filter(|r| which(r)) {
        let region = rescue.region.clone().unwrap_or_default();
        let mut row = borders(&region);
        let lost = |store| if plan.lost_stores.contains(&store) { " lost" } else { "" };
        row.extend([
            json!(epoch(&region)),
            json!(
                region
                    .peers
                    .iter()
                    .map(|p| format!("{}@s{}{}", p.id, p.store_id, lost(p.store_id)))
                    .collect::<Vec<_>>()
            ),
            json!(rescue.store_id),
            json!(rescue.applied_index),
            json!(rescue.last_index),
            json!(rescue.given_up),
            rescue.keeps.as_ref().map_or(Value::Null, |k| json!(format!("{}..{}", hex(&k.start_key), hex(&k.end_key)))),
        ]);
        table.row(row);
    }
    table.render(output)
}

/// Beside the data, for whoever wonders later. The data directory's own record is what nodes read.
fn note(data_dir: &Path, plan: &RecoveryPlan, regions: &[Region], wall_ms: u64) -> anyhow::Result<()> {
    let path = data_dir.join(NOTE_FILE);
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let lost = plan.lost_stores.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    writeln!(file, "{wall_ms} (Unix ms): unsafe recovery by plan {:x}. Lost stores: {lost}.", plan.plan_id)?;
    for region in regions {
        writeln!(file, "  region {} goes on alone here, epoch {}", region.id, epoch(region))?;
    }
    Ok(file.sync_all()?)
}

fn write(path: &Path, head: &[u8], message: &impl Message) -> anyhow::Result<()> {
    let bytes = [head, &message.encode_to_vec()].concat();
    fs::write(path, bytes).with_context(|| format!("{} can't be written", path.display()))
}

fn read<M: Message + Default>(path: &Path, head: &[u8]) -> anyhow::Result<M> {
    let bytes = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    let what = String::from_utf8_lossy(head).trim().to_string();
    let Some(body) = bytes.strip_prefix(head) else { bail!("{} is no {what}", path.display()) };
    M::decode(Bytes::copy_from_slice(body)).with_context(|| format!("{} is a damaged {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_say_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let survey = RecoverySurvey { store_id: 3, ..RecoverySurvey::default() };
        write(&path, SURVEY_HEAD, &survey).unwrap();
        assert_eq!(read::<RecoverySurvey>(&path, SURVEY_HEAD).unwrap(), survey);
        let refused = format!("{:#}", read::<RecoveryPlan>(&path, PLAN_HEAD).unwrap_err());
        assert!(refused.contains("is no flaredb recovery plan"), "{refused}");
        fs::write(&path, [SURVEY_HEAD, &[0xff; 9]].concat()).unwrap();
        assert!(format!("{:#}", read::<RecoverySurvey>(&path, SURVEY_HEAD).unwrap_err()).contains("damaged"));
    }

    #[test]
    fn what_is_no_data_directory_is_not_made_one() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("nothing");
        assert!(open(&missing).err().unwrap().to_string().contains("no data directory"));
        assert!(!missing.exists());
    }
}
