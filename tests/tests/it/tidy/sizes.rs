//! Small rooms: files, structs. Functions are clippy's (`too_many_lines`, clippy.toml).

use std::sync::LazyLock;

use regex::Regex;
use tests::source;

use super::none;

const FILE_MEDIAN_MAX: usize = 250;
const FILE_P90_MAX: usize = 700;
const FILE_MAX: usize = 1_000;
const STRUCT_FIELDS_MAX: usize = 15;

/// Homogeneous tables may be long: one row a line, no logic.
const TABLES: &[&str] = &[];

#[test]
fn files_are_small() {
    let mut sizes: Vec<(usize, String)> = source::rust_files()
        .into_iter()
        .filter(|f| !TABLES.contains(&f.path.as_str()))
        .map(|f| (f.without_inline_tests().lines().count(), f.path))
        .collect();
    sizes.sort();
    let at = |percent: usize| sizes[(sizes.len() - 1) * percent / 100].0;
    let mut findings: Vec<_> = sizes
        .iter()
        .filter(|(lines, _)| *lines > FILE_MAX)
        .map(|(lines, path)| format!("{path}: {lines} lines, at most {FILE_MAX}"))
        .collect();
    for (name, value, max) in [("median", at(50), FILE_MEDIAN_MAX), ("90th percentile", at(90), FILE_P90_MAX)] {
        if value > max {
            findings.push(format!("{name} of the files is {value} lines, at most {max}"));
        }
    }
    none("file sizes without inline tests", findings);
}

#[test]
fn structs_are_small() {
    let mut findings = Vec::new();
    for file in source::rust_files() {
        for (name, fields) in structs(&file.code()) {
            if fields > STRUCT_FIELDS_MAX {
                findings.push(format!("{}: struct {name} has {fields} fields: a type is missing", file.path));
            }
        }
    }
    none("struct sizes", findings);
}

/// Structs with named fields, and how many. Relies on rustfmt: a field is a line of the block's first level.
fn structs(code: &str) -> Vec<(String, usize)> {
    static OPEN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^(\s*)(?:pub(?:\([^)]*\))? )?struct (\w+)[^;({]*\{[ \t]*$").expect("a pattern")
    });
    static FIELD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(\s*)(?:pub(?:\([^)]*\))? )?(?:r#)?\w+: ").expect("a pattern"));
    let mut found = Vec::new();
    for open in OPEN.captures_iter(code) {
        let indent = open[1].trim_start_matches('\n').len();
        let body = &code[open.get(0).expect("the match").end()..];
        let fields = body
            .lines()
            .take_while(|line| line.trim_end() != format!("{}}}", " ".repeat(indent)))
            .filter(|line| FIELD.captures(line).is_some_and(|f| f[1].len() == indent + 4))
            .count();
        found.push((open[2].to_string(), fields));
    }
    found
}

#[test]
fn fields_are_counted() {
    let code =
        "pub struct A<T> {\n    pub a: u8,\n    b: Vec<T>,\n}\nstruct B(u8);\n    struct C {\n        x: u8,\n    }\n";
    assert_eq!(structs(code), vec![("A".into(), 2), ("C".into(), 1)]);
}
