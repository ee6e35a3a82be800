//! Documents that must be there, and stay short.

use std::fs;

use tests::source;

use super::none;

const ARCHITECTURE_LINES_MAX: usize = 200;
/// An essay says what the crate is, draws it, and says what it does not do.
const ESSAY_LINES_MIN: usize = 10;

fn read(path: &str) -> String {
    fs::read_to_string(source::root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn documents_are_there() {
    for path in [
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "docs/start.md",
        "docs/sql.md",
        "docs/operations.md",
        "docs/formats.md",
    ] {
        assert!(!read(path).trim().is_empty(), "{path} is empty");
    }
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {lines} lines, at most {ARCHITECTURE_LINES_MAX}");
}

#[test]
fn crates_open_with_an_essay() {
    let mut findings = Vec::new();
    for file in source::rust_files().iter().filter(|f| f.path.ends_with("src/lib.rs")) {
        let essay = file.text.lines().take_while(|l| l.starts_with("//!")).count();
        if essay < ESSAY_LINES_MIN {
            findings.push(format!("{}: {essay} lines of essay, at least {ESSAY_LINES_MIN}", file.path));
        }
    }
    none("essays", findings);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let manifests = source::files().into_iter().filter(|f| f.path.ends_with("/Cargo.toml"));
    none(
        "[lints] workspace = true",
        manifests.filter(|f| !f.text.contains("[lints]\nworkspace = true")).map(|f| f.path).collect(),
    );
}

#[test]
fn the_flake_parses() {
    let parsed = rnix::Root::parse(&read("flake.nix"));
    assert!(parsed.errors().is_empty(), "flake.nix: {:?}", parsed.errors());
}
