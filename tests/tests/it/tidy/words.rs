//! Names that say nothing, leftovers, and what belongs to one machine only.

use regex::Regex;
use tests::source;

use super::none;

/// As a whole name of a type, module, function or file: they say what a thing is not.
const EMPTY_NAMES: &str = "manager|helper|helpers|util|utils|info|context|misc|stuff|common";

#[test]
fn names_say_something() {
    let declared =
        Regex::new(&format!(r"(?i)\b(?:struct|enum|trait|mod|type|fn|union)\s+({EMPTY_NAMES})\b")).expect("a pattern");
    let file_name = Regex::new(&format!(r"(?i)(?:^|/)({EMPTY_NAMES})(?:\.rs$|/)")).expect("a pattern");
    let mut findings = Vec::new();
    for file in source::rust_files() {
        if let Some(name) = file_name.captures(&file.path) {
            findings.push(format!("{}: a file named {}", file.path, &name[1]));
        }
        let code = file.code();
        findings.extend(declared.captures_iter(&code).map(|c| format!("{}: {}", file.path, &c[0])));
    }
    none("empty names", findings);
}

#[test]
fn nothing_is_left_over() {
    // Put together here, so that this file does not find itself.
    let marks = Regex::new(
        &["\\bFIX", "ME\\b|\\bTO", "DO\\b|\\bXX", "X\\b|\\btodo", "!\\(|\\bunimple", "mented!\\(|\\bdbg", "!\\("]
            .concat(),
    )
    .expect("a pattern");
    let mut findings = Vec::new();
    for file in source::files().iter().filter(|f| !f.path.ends_with("Cargo.lock")) {
        for (n, line) in file.text.lines().enumerate().filter(|(_, line)| marks.is_match(line)) {
            findings.push(format!("{}:{}: {}", file.path, n + 1, line.trim()));
        }
    }
    none("left over", findings);
}

#[test]
fn no_machine_is_named() {
    // The paths of the machine this was written on, and hosts of package registries.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("deb.", "debian.org"),
        concat!("registry.", "npmjs.org"),
        concat!("py", "pi.org"),
    ];
    let mut findings = Vec::new();
    for file in source::files().iter().filter(|f| !f.path.ends_with("Cargo.lock")) {
        for place in places {
            findings.extend(
                file.text
                    .lines()
                    .enumerate()
                    .filter(|(_, l)| l.contains(place))
                    .map(|(n, _)| format!("{}:{}: {place}", file.path, n + 1)),
            );
        }
    }
    none("names of one machine", findings);
}
