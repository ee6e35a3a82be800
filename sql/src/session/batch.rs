//! Several statements of one Query message outside of a block: they are one transaction, which is run again when it fails with 40001 and
//! the client has not seen anything of it yet.
//!
//! ```text
//!   statements ─► steps, held back ─► commit ─► the client has them
//!        ▲            │ too many of them: they leave, and from there on nothing is repeated
//!        └── 40001 ───┘
//! ```

use std::{collections::VecDeque, sync::Arc, time::Duration};

use datafusion::sql::sqlparser::ast::Statement;

use super::{
    Active, Session, Step,
    run::{FIRST_PAUSE, MAX_PAUSE, MAX_RETRIES, guarded},
    simple::{Parsed, Queue},
};
use crate::{error::SqlResult, statement::Command};

/// Steps held back at most: what is beyond is not worth the client's waiting.
const MAX_STEPS: usize = 1000;
/// And rows among them.
const MAX_ROWS: usize = 10_000;

/// A message's statements, and what has come of them so far.
pub(super) struct Batch {
    statements: Vec<Parsed>,
    queue: Option<Box<Queue>>,
    held: VecDeque<Step>,
    rows: usize,
    retries: u32,
    pause: Duration,
    stage: Stage,
}

enum Stage {
    /// Nothing has left.
    Holding,
    /// What is held leaves, and the rest as it comes.
    Leaving,
    /// What is held leaves, and this is the end.
    Over(SqlResult<()>),
}

impl Batch {
    /// `None` for statements that can't be repeated, or need not: transactions of their own, schema changes, settings, COPY.
    pub(super) fn new(queue: Box<Queue>, statements: Vec<Parsed>) -> Result<Box<Self>, Box<Queue>> {
        let rows = |parsed: &Parsed| match &parsed.command {
            Command::Sql(statement) => matches!(
                **statement,
                Statement::Query(_) | Statement::Insert(_) | Statement::Update { .. } | Statement::Delete(_)
            ),
            _ => false,
        };
        if statements.len() < 2 || !statements.iter().all(rows) {
            return Err(queue);
        }
        let (held, stage) = (VecDeque::new(), Stage::Holding);
        let queue = Some(queue);
        Ok(Box::new(Batch { statements, queue, held, rows: 0, retries: 0, pause: FIRST_PAUSE, stage }))
    }

    fn hold(&mut self, step: Step) {
        if let Step::Rows(batch) = &step {
            self.rows += batch.len();
        }
        self.held.push_back(step);
        if self.held.len() >= MAX_STEPS || self.rows >= MAX_ROWS {
            self.stage = Stage::Leaving;
        }
    }

    /// From the beginning.
    fn again(&mut self) {
        self.held.clear();
        self.rows = 0;
        self.retries += 1;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        self.queue = Some(Box::new(Queue::of(self.statements.clone())));
    }
}

impl Session {
    pub(super) async fn next_of_batch(&mut self, mut batch: Box<Batch>) -> SqlResult<Option<Step>> {
        while matches!(batch.stage, Stage::Holding) {
            let Some(queue) = batch.queue.take() else { return Ok(None) };
            match self.next_of_queue(queue).await {
                Ok(Some(step)) => {
                    if let Active::Simple(queue) = std::mem::replace(&mut self.active, Active::Nothing) {
                        batch.queue = Some(queue);
                    }
                    batch.hold(step);
                }
                Ok(None) => batch.stage = Stage::Over(Ok(())),
                Err(error) if error.is_retryable() && batch.retries < MAX_RETRIES => {
                    self.end_implicit();
                    self.notices.clear();
                    let (clock, pause) = (Arc::clone(&self.gateway.config().clock), batch.pause);
                    let paused = guarded(self, async {
                        clock.sleep(pause).await;
                        Ok(())
                    });
                    match paused.await {
                        Ok(()) => batch.again(),
                        Err(error) => batch.stage = Stage::Over(Err(error)),
                    }
                }
                Err(error) => batch.stage = Stage::Over(Err(error)),
            }
        }
        match (batch.held.pop_front(), &mut batch.stage) {
            (Some(step), _) => {
                self.active = Active::Batch(batch);
                Ok(Some(step))
            }
            (None, Stage::Over(end)) => std::mem::replace(end, Ok(())).map(|()| None),
            (None, _) => match batch.queue {
                Some(queue) => self.next_of_queue(queue).await,
                None => Ok(None),
            },
        }
    }
}
