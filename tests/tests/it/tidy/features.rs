//! DataFusion is compiled once, whatever is built.
//!
//! Cargo unifies features over the packages it is asked to build: `-p sql` could give a crate below DataFusion other features
//! than `--workspace`, and all of it would be compiled anew (minutes). `sql/Cargo.toml` pins those features; here they are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use tests::source;

/// Crates with their features, as cargo resolves them for a selection of packages.
fn features(selection: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--prefix", "none", "-e", "normal,dev,no-proc-macro", "-f", "{p}|{f}"])
        .args(selection)
        .current_dir(source::root())
        .output()
        .expect("cargo tree runs");
    assert!(out.status.success(), "cargo tree: {}", String::from_utf8_lossy(&out.stderr));
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let line = line.trim_end_matches(" (*)");
        let Some((name, features)) = line.split_once('|') else { continue };
        found.entry(name.to_owned()).or_default().insert(features.to_owned());
    }
    found
}

#[test]
fn datafusion_is_compiled_once() {
    let below = features(&["-p", "datafusion"]);
    assert!(below.len() > 50, "DataFusion stands on many crates");
    let whole = features(&["--workspace"]);
    for package in ["sql", "server"] {
        let mut differ = Vec::new();
        for (name, known) in features(&["-p", package]) {
            if below.contains_key(&name) && whole.get(&name) != Some(&known) {
                differ.push(format!("{name}: {known:?}, in the workspace {:?}", whole.get(&name)));
            }
        }
        assert!(
            differ.is_empty(),
            "`-p {package}` compiles crates below DataFusion with other features than `--workspace`: pin them in \
             sql/Cargo.toml\n{}",
            differ.join("\n")
        );
    }
}
