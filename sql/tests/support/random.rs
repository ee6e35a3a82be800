//! Random statements of several sessions, which take turns.

use std::sync::Arc;

use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use sql::{Gateway, Session, SqlResult, Step};

use super::connect;

/// Sessions of one run.
pub const SESSIONS: usize = 3;
/// Statements of one run.
const STATEMENTS: usize = 120;
/// More would take minutes.
const SHRINKS_MAX: u32 = 60;

/// A statement, and the session that says it.
pub type Said = (usize, String);

/// Runs a statement; the number in its first row, if it gives one.
pub async fn run(session: &mut Session, sql: &str) -> SqlResult<Option<i64>> {
    session.simple(sql).await?;
    let mut found = None;
    while let Some(step) = session.next().await? {
        if let Step::Rows(batch) = step
            && !batch.is_empty()
        {
            found = batch.datum(0, 0)?.as_i64();
        }
    }
    Ok(found)
}

/// Makes tables with `before`, then has the sessions say their statements and commit. A fault of ours, if there is one; refusals
/// are part of it: violations, conflicts, statements in failed transactions.
pub async fn play(
    gateway: &Arc<Gateway>,
    before: impl IntoIterator<Item = &str>,
    statements: &[Said],
) -> Option<String> {
    let mut sessions: Vec<Session> = (0..SESSIONS).map(|_| connect(gateway)).collect();
    for sql in before {
        run(&mut sessions[0], sql).await.expect(sql);
    }
    for session in &mut sessions {
        // They take turns: who waits for another one waits for nothing.
        run(session, "SET lock_timeout = '1ms'").await.expect("a setting");
    }
    for (session, sql) in statements {
        if let Err(error) = run(&mut sessions[*session], sql).await
            && error.sqlstate.0.starts_with("XX")
        {
            return Some(format!("{sql}: {error}"));
        }
    }
    for session in &mut sessions {
        let _ = run(session, "COMMIT").await;
    }
    None
}

/// What `runs` of such statements find, the same ones each time: nothing, or what `wrong` tells of the shortest that it can make.
pub fn search(
    runs: u32,
    statement: impl Strategy<Value = Said>,
    wrong: impl AsyncFn(Vec<Said>) -> Option<String>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let config =
        ProptestConfig { cases: runs, max_shrink_iters: SHRINKS_MAX, failure_persistence: None, ..Default::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let found = runner.run(&prop::collection::vec(statement, STATEMENTS), |statements| {
        match runtime.block_on(wrong(statements)) {
            None => Ok(()),
            Some(wrong) => Err(TestCaseError::fail(wrong)),
        }
    });
    found.map_err(|error| error.to_string())
}
