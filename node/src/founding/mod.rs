//! How nodes that know only each other's addresses become one cluster, once and for all.
//!
//! ```text
//!   Looking ──all founders empty, I am the first──▶ compose ─┐
//!      │  └──somebody holds a record that names me───────────┤ sync
//!      │                                                     ▼
//!      │                                                  Holding ──all named founders hold it──▶ Start
//!      └──a record that does not name my UUID──▶ Join (a new store)
//! ```
//!
//! A cluster must not be founded twice, whatever crashes, is wiped or is delivered late. Three rules see to it:
//!
//! 1. A record is composed only when *all* founders are reachable and empty, and a founder that holds one
//!    accepts no other.
//! 2. No region runs before every founder has synced the record, or is seen to have lost its data directory (its
//!    address answers with another UUID): nobody is left who could found differently.
//! 3. A directory is known by its random UUID, not by its address: a wiped founder is a new store and never
//!    speaks under its old peer ids, whose votes it has forgotten.
//!
//! The core is asked once a round: what did the others answer, and what follows? It does no I/O; `driver` probes,
//! syncs and hands records over. After its store has started, a node never founds again.

pub mod record;

use bytes::Bytes;
use proto::{
    StoreId,
    wire::{FoundingRecord, ProbeRequest, ProbeResponse},
};

use record::Founder;

/// A round's answers: who was asked, and the answer or why there is none.
pub type Answers = Vec<(String, Result<ProbeResponse, String>)>;

/// What follows from a round.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Ask again in a while; for people, what is missing.
    Wait(String),
    /// Sync this record, call [`Founding::synced`], and go on at once.
    Sync(FoundingRecord),
    /// Hand the held record to these addresses, then ask again. For people, what is missing.
    Hand(Vec<String>, String),
    /// Founding is done: mark the store as started and run.
    Start(StoreId),
    /// This directory is not of the founders: register it with the cluster's PD as a new store.
    Join(FoundingRecord),
    /// It can't go on without a person; the reason.
    Fail(String),
}

/// The core.
#[derive(Clone, Debug)]
pub struct Founding {
    me: Founder,
    /// Of everybody's `--join`, sorted, without doubles.
    founders: Vec<String>,
    /// For the record, if this node composes it.
    cluster_id: u64,
    user_regions: u32,
    held: Option<FoundingRecord>,
    started: bool,
    /// Another founder asked with another list; it may have given up since, so it is kept.
    conflict: Option<String>,
}

impl Founding {
    /// A node that may have been here before: with the record it holds, and whether its store has started.
    pub fn new(
        me: Founder,
        join: &[String],
        (cluster_id, user_regions): (u64, u32),
        held: Option<FoundingRecord>,
        started: bool,
    ) -> Self {
        let mut founders = join.to_vec();
        founders.sort();
        founders.dedup();
        Founding { me, founders, cluster_id, user_regions, held, started, conflict: None }
    }

    /// The addresses to ask in a round.
    pub fn targets(&self) -> Vec<String> {
        let all: Vec<_> = match &self.held {
            Some(record) if !self.started => record.founders.iter().map(|f| f.address.clone()).collect(),
            _ => self.founders.clone(),
        };
        all.into_iter().filter(|a| *a != self.me.address).collect()
    }

    /// What this node asks the others.
    pub fn question(&self) -> ProbeRequest {
        ProbeRequest {
            founders: self.founders.clone(),
            uuid: self.me.uuid.clone(),
            address: self.me.address.clone(),
            ..ProbeRequest::default()
        }
    }

    /// What this node answers to somebody's question.
    pub fn answer(&mut self, asked: &ProbeRequest) -> ProbeResponse {
        let refusal = if asked.uuid == self.me.uuid {
            format!(
                "{} has the data directory of {}: it is a copy, or both addresses are one node; give every node its own \
                 directory and spell its address as in --join",
                asked.address, self.me.address
            )
        } else if self.held.is_none() && asked.founders != self.founders {
            format!(
                "the --join lists differ: {} has [{}], {} has [{}]; start all founders with the same list",
                self.me.address,
                self.founders.join(","),
                asked.address,
                asked.founders.join(",")
            )
        } else {
            String::new()
        };
        // Both have to stop, whoever asked first; a stranger's list is only the stranger's concern.
        if !refusal.is_empty() && self.founders.contains(&asked.address) {
            self.conflict = Some(refusal.clone());
        }
        ProbeResponse {
            uuid: self.me.uuid.clone(),
            founders: self.founders.clone(),
            record: self.held.clone(),
            refusal,
            started: self.started,
            ..ProbeResponse::default()
        }
    }

    /// Somebody hands a record over. `Ok(true)`: sync it, then call [`Founding::synced`]; `Ok(false)`: held already.
    pub fn accept(&self, record: &FoundingRecord) -> Result<bool, String> {
        let me = &self.me.address;
        if let Some(held) = &self.held {
            return match held.cluster_id == record.cluster_id {
                true => Ok(false),
                false => Err(format!(
                    "{me} belongs to cluster {:x} and does not take the record of {:x}",
                    held.cluster_id, record.cluster_id
                )),
            };
        }
        record::regions(record)?;
        if !record.founders.iter().any(|f| f.address == *me && f.uuid == self.me.uuid) {
            return Err(format!(
                "the record of cluster {:x} does not name {me} with its data directory",
                record.cluster_id
            ));
        }
        Ok(true)
    }

    /// The record is durable here.
    pub fn synced(&mut self, record: FoundingRecord) {
        assert!(self.held.as_ref().is_none_or(|h| *h == record), "a founder holds one record for good");
        self.held = Some(record);
    }

    /// The store runs.
    pub fn started(&mut self) {
        assert!(self.held.is_some());
        self.started = true;
    }

    /// One round: what the others answered, and what follows.
    pub fn round(&self, answers: &Answers) -> Step {
        for (address, answer) in answers {
            match answer {
                // Who holds a record already does not depend on lists any more.
                Ok(a) if !a.refusal.is_empty() && self.held.is_none() => {
                    return Step::Fail(format!("{address} refuses: {}", a.refusal));
                }
                Ok(a) if a.uuid == self.me.uuid => {
                    return Step::Fail(format!(
                        "{address} is this very node, which calls itself {}; spell its address as in --join",
                        self.me.address
                    ));
                }
                _ => {}
            }
        }
        match &self.held {
            Some(record) => self.holding(record, answers),
            None => self.looking(answers),
        }
    }

    /// A node whose store runs looks around once more: whether `--join` leads to another cluster than its own.
    pub fn stray(&self, answers: &Answers) -> Option<String> {
        let own = self.held.as_ref()?.cluster_id;
        let foreign = |(at, answer): &(String, Result<ProbeResponse, String>)| {
            let record = answer.as_ref().ok()?.record.as_ref().filter(|r| r.cluster_id != own)?;
            Some(format!(
                "this data directory belongs to cluster {own:x}, but {at} of --join to cluster {:x}: start it with the \
                 addresses of its own cluster, or with an empty directory",
                record.cluster_id
            ))
        };
        answers.iter().find_map(foreign)
    }

    fn looking(&self, answers: &Answers) -> Step {
        if let Some(reason) = &self.conflict {
            return Step::Fail(reason.clone());
        }
        let held: Vec<_> = answers.iter().filter_map(|(at, a)| Some((at, a.as_ref().ok()?.record.as_ref()?))).collect();
        if let Some((first_at, record)) = held.first() {
            if let Some((at, other)) = held.iter().find(|(_, r)| r.cluster_id != record.cluster_id) {
                return Step::Fail(format!(
                    "{first_at} belongs to cluster {:x}, {at} to {:x}: --join must name one cluster",
                    record.cluster_id, other.cluster_id
                ));
            }
            return match record::regions(record) {
                Err(reason) => Step::Fail(format!("{first_at}: {reason}")),
                Ok(_) if record::store_of(record, &self.me.uuid).is_some() => Step::Sync((*record).clone()),
                Ok(_) => Step::Join((*record).clone()),
            };
        }
        if !self.founders.contains(&self.me.address) {
            return Step::Wait(format!(
                "{} is not in --join and waits for a founder of the cluster to answer with its record ({})",
                self.me.address,
                missing(answers).unwrap_or("none holds one".into())
            ));
        }
        if let Some(reason) = missing(answers) {
            return Step::Wait(format!("founding needs every founder: {reason}"));
        }
        if self.founders.first() != Some(&self.me.address) {
            return Step::Wait(format!("{} is to propose the founding record", self.founders[0]));
        }
        Step::Sync(record::compose(self.cluster_id, &self.all_empty(answers), self.user_regions))
    }

    /// All founders with the UUIDs of this round, in order of address.
    fn all_empty(&self, answers: &Answers) -> Vec<Founder> {
        let uuid_at = |address: &String| match answers.iter().find(|(a, _)| a == address) {
            Some((_, Ok(answer))) => answer.uuid.clone(),
            _ => self.me.uuid.clone(),
        };
        self.founders.iter().map(|a| Founder { address: a.clone(), uuid: uuid_at(a) }).collect()
    }

    fn holding(&self, record: &FoundingRecord, answers: &Answers) -> Step {
        let Some(store) = record::store_of(record, &self.me.uuid) else {
            // Joined as a new store before, and stopped before PD had answered.
            return Step::Join(record.clone());
        };
        let (mut hold, mut to_hand, mut waiting) = (1, Vec::new(), Vec::new());
        for founder in record.founders.iter().filter(|f| f.address != self.me.address) {
            let answer = answers.iter().find(|(at, _)| *at == founder.address).map(|(_, a)| a);
            let same = |r: &FoundingRecord| r.cluster_id == record.cluster_id;
            match answer {
                Some(Ok(a)) if a.uuid == founder.uuid => match &a.record {
                    Some(r) if same(r) && a.started => return Step::Start(store),
                    Some(r) if same(r) => hold += 1,
                    Some(r) => {
                        return Step::Fail(format!(
                            "{} holds the record of cluster {:x}, this node that of {:x}",
                            founder.address, r.cluster_id, record.cluster_id
                        ));
                    }
                    None => to_hand.push(founder.address.clone()),
                },
                // Another directory answers there: the founder's is gone, and with it whatever it might have held.
                Some(Ok(_)) => {}
                Some(Err(reason)) => waiting.push(format!("{} ({reason})", founder.address)),
                None => waiting.push(founder.address.clone()),
            }
        }
        let reason = format!("every founder must hold the record first; missing: {}", waiting.join(", "));
        match (to_hand.is_empty(), waiting.is_empty()) {
            (false, _) => Step::Hand(to_hand, reason),
            (true, false) => Step::Wait(reason),
            (true, true) if hold * 2 > record.founders.len() => Step::Start(store),
            (true, true) => Step::Fail(format!(
                "only {hold} of {} founders still have the data directory of cluster {:x}, which never ran: empty the data \
                 directories of all founders and start again",
                record.founders.len(),
                record.cluster_id
            )),
        }
    }
}

/// Who did not answer, and why.
fn missing(answers: &Answers) -> Option<String> {
    let silent: Vec<_> =
        answers.iter().filter_map(|(at, a)| a.as_ref().err().map(|why| format!("{at} ({why})"))).collect();
    (!silent.is_empty()).then(|| format!("no answer from {}", silent.join(", ")))
}

/// The UUID of a data directory as people read it.
pub fn show_uuid(uuid: &Bytes) -> String {
    uuid.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
