//! Answers to a list of statements, to be compared with PostgreSQL's by hand:
//!
//! ```text
//! FLAREDB_STATEMENTS=list.sql cargo test -p sql --test query answers -- --ignored --nocapture
//! ```
//!
//! Each line of the list is a statement; each answer is `> statement`, then rows or `ERROR sqlstate`.

use crate::harness::Harness;

#[tokio::test(flavor = "current_thread")]
#[ignore = "run by hand, with a list of statements"]
async fn answers() {
    let path = std::env::var("FLAREDB_STATEMENTS").expect("FLAREDB_STATEMENTS names a file of statements");
    let list = std::fs::read_to_string(path).expect("the list is readable");
    let mut harness = Harness::new();
    for statement in list.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("--")) {
        println!("> {statement}");
        match harness.sql(statement, &[]).await {
            Ok(answer) => print!("{answer}"),
            Err(error) => println!("ERROR {} {}", error.sqlstate, error.message),
        }
    }
}
