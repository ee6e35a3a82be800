//! The Query message: several statements, each with its own portal.

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll};

use super::{
    Active, Session, Step,
    batch::Batch,
    plan::StatementPlan,
    portal::{Portal, Prepared, Progress},
    transaction::State,
};
use crate::{
    error::SqlResult,
    statement::{Command, parse_one, split},
    types::Datum,
};

/// After so many statements of one message other tasks of the thread have their turn: each of them may end without waiting for anything.
const STATEMENTS_AT_ONCE: usize = 64;

/// What is left of a Query message.
pub(super) struct Queue {
    /// Statements that have not started.
    rest: VecDeque<Parsed>,
    /// There was only one: outside a transaction it is one of its own.
    single: bool,
    running: Option<Portal>,
    /// The row description of `running` has been sent.
    described: bool,
    /// Statements begun.
    begun: usize,
}

/// One statement of a Query message.
#[derive(Clone)]
pub(super) struct Parsed {
    sql: String,
    pub(super) command: Command,
    /// Characters of the message before it.
    before: u32,
}

impl Queue {
    /// From the first statement on.
    pub(super) fn of(statements: impl IntoIterator<Item = Parsed>) -> Self {
        let rest: VecDeque<Parsed> = statements.into_iter().collect();
        let single = rest.len() == 1;
        Queue { rest, single, running: None, described: false, begun: 0 }
    }

    pub(super) fn running_portal(&mut self) -> Option<&mut Portal> {
        self.running.as_mut()
    }
}

/// Completes when the other tasks that are ready have been polled.
async fn others_first() {
    let mut polled = false;
    poll_fn(|context| match std::mem::replace(&mut polled, true) {
        true => Poll::Ready(()),
        false => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

impl Session {
    /// Query: then call [`Session::next`] until `None`. After an error the rest of the text is dropped.
    pub async fn simple(&mut self, sql: &str) -> SqlResult<()> {
        self.begin_statement(sql)?;
        self.portals.remove("");
        if let Some(portal) = self.known(sql)? {
            let queue =
                Queue { rest: VecDeque::new(), single: true, running: Some(portal), described: false, begun: 0 };
            self.active = Active::Simple(Box::new(queue));
            return Ok(());
        }
        let queue = self.parsed(sql);
        if queue.is_err() {
            self.fail(false);
        }
        let queue = Box::new(queue?);
        let idle = matches!(self.transaction.state, State::Idle);
        let statements = if idle && !queue.single { queue.rest.iter().cloned().collect() } else { Vec::new() };
        self.active = match Batch::new(queue, statements) {
            Ok(batch) => Active::Batch(batch),
            Err(queue) => Active::Simple(queue),
        };
        Ok(())
    }

    /// A statement whose key plan is known, without parsing it.
    fn known(&mut self, sql: &str) -> SqlResult<Option<Portal>> {
        if matches!(self.transaction.state, State::Failed { .. }) {
            return Ok(None);
        }
        let trimmed = sql.trim_end().trim_end_matches(';');
        if trimmed.contains(';') {
            return Ok(None);
        }
        let snapshot = self.snapshot();
        let Ok(Some(ready)) = self.gateway.planner().simple(trimmed, &snapshot) else { return Ok(None) };
        Ok(Some(self.portal(trimmed, ready.plan, ready.params)?))
    }

    fn portal(&self, sql: &str, plan: Arc<StatementPlan>, params: Vec<Datum>) -> SqlResult<Portal> {
        let prepared = Prepared {
            sql: sql.to_owned(),
            command: Command::Empty,
            declared: Vec::new(),
            plan: Arc::clone(&plan),
            unparsed: true,
            simple: true,
        };
        Ok(Portal { prepared: Arc::new(prepared), plan, params, formats: Vec::new(), progress: Progress::New })
    }

    fn parsed(&mut self, sql: &str) -> SqlResult<Queue> {
        let texts = split(sql);
        let mut rest = VecDeque::with_capacity(texts.len());
        let (mut at, mut characters) = (0, 0);
        for text in &texts {
            // The client counts from where its message began.
            let begin = text.as_ptr() as usize - sql.as_ptr() as usize;
            characters += sql[at..begin].chars().count();
            at = begin;
            let before = u32::try_from(characters).unwrap_or(0);
            let command = parse_one(text).map_err(|error| error.shifted(before))?;
            rest.push_back(Parsed { sql: (*text).to_owned(), command, before });
        }
        if rest.is_empty() {
            rest.push_back(Parsed { sql: String::new(), command: Command::Empty, before: 0 });
        }
        Ok(Queue::of(rest))
    }

    pub(super) async fn next_of_queue(&mut self, mut queue: Box<Queue>) -> SqlResult<Option<Step>> {
        loop {
            if let Some(copy) = &mut self.copy_in
                && let Some(step) = copy.announce()
            {
                self.active = Active::Simple(queue);
                return Ok(Some(step));
            }
            let Some(mut portal) = queue.running.take() else {
                match self.next_statement(&mut queue).await? {
                    true => continue,
                    false => return Ok(None),
                }
            };
            if matches!(portal.progress, Progress::New) {
                let running = self.start(&mut portal, queue.single).await?;
                portal.progress = Progress::Running(Box::new(running));
                queue.described = false;
                queue.running = Some(portal);
                continue;
            }
            if !queue.described {
                queue.described = true;
                if let Some(fields) = portal.fields() {
                    queue.running = Some(portal);
                    self.active = Active::Simple(queue);
                    return Ok(Some(Step::Fields(fields)));
                }
            }
            let step = self.advance(&mut portal, &mut None).await?;
            match step {
                Some(Step::Done(_) | Step::Empty) => {}
                _ => queue.running = Some(portal),
            }
            self.active = Active::Simple(queue);
            return Ok(step);
        }
    }

    /// Plans the next statement; `false` when there is none, and the implicit transaction has been committed.
    async fn next_statement(&mut self, queue: &mut Queue) -> SqlResult<bool> {
        let Some(Parsed { sql, command, before }) = queue.rest.pop_front() else {
            if !self.in_block() {
                self.portals.clear(); // They end with the transaction they were made in.
                self.commit().await?;
            }
            return Ok(false);
        };
        queue.begun += 1;
        if queue.begun.is_multiple_of(STATEMENTS_AT_ONCE) {
            others_first().await;
        }
        let planned = self.prepare_command(sql, command, Vec::new());
        let prepared = match planned {
            Ok(prepared) => Arc::new(Prepared { simple: true, ..prepared }),
            Err(error) => {
                self.fail(queue.single);
                return Err(error.shifted(before));
            }
        };
        let plan = Arc::clone(&prepared.plan);
        queue.running =
            Some(Portal { prepared, plan, params: Vec::new(), formats: Vec::new(), progress: Progress::New });
        Ok(true)
    }

    /// BEGIN was said and neither COMMIT nor ROLLBACK since.
    pub(super) fn in_block(&self) -> bool {
        match &self.transaction.state {
            State::Idle => false,
            State::Open(open) => open.explicit,
            State::Failed { explicit, .. } => *explicit,
        }
    }

    /// After an error of a Query message nothing of an implicit transaction is left.
    pub(super) fn end_implicit(&mut self) {
        if !self.in_block() {
            self.portals.clear();
            self.rollback();
        }
    }
}
