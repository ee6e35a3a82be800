//! The tree's own files, read for the rules of the house.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A file of the repository.
pub struct SourceFile {
    /// Path from the root, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// The repository's root. Cargo says at run time where this crate lies: the clone that compiled it, into a target directory that is
/// shared, may be gone.
pub fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).parent().expect("the crate lies in the root").to_path_buf()
}

/// Every text file that git tracks or would track, sorted by path. Binary files are left out.
pub fn files() -> Vec<SourceFile> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the tree");
    assert!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let mut paths: Vec<_> = String::from_utf8(out.stdout).expect("paths are UTF-8").lines().map(String::from).collect();
    paths.sort();
    paths.dedup();
    // A file that is deleted but still in the index has no text.
    paths
        .into_iter()
        .filter_map(|path| fs::read_to_string(root().join(&path)).ok().map(|text| SourceFile { path, text }))
        .collect()
}

/// The Rust files among [`files`].
pub fn rust_files() -> Vec<SourceFile> {
    files().into_iter().filter(|f| f.path.ends_with(".rs")).collect()
}

impl SourceFile {
    /// The text without its inline `#[cfg(test)] mod … { … }`. Relies on rustfmt: such a module starts and ends at column 0.
    pub fn without_inline_tests(&self) -> String {
        let mut kept = String::new();
        let mut lines = self.text.lines().peekable();
        while let Some(line) = lines.next() {
            let opens = line == "#[cfg(test)]"
                && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
            if !opens {
                kept.push_str(line);
                kept.push('\n');
                continue;
            }
            for inner in lines.by_ref() {
                if inner == "}" {
                    break;
                }
            }
        }
        kept
    }

    /// Code only: comments, strings and character literals are blanked, line breaks stay. Inline tests are left out.
    pub fn code(&self) -> String {
        blank(&self.without_inline_tests())
    }
}

/// Blanks what is not code.
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none starts there.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        (from..bytes.len()).find(|&i| bytes[i..].starts_with(what)).map_or(bytes.len(), |i| i + what.len())
    };
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"//") {
        return find(at, b"\n") - usize::from(find(at, b"\n") > at && bytes[find(at, b"\n") - 1] == b'\n');
    }
    if rest.starts_with(b"/*") {
        return find(at + 2, b"*/");
    }
    if rest[0] == b'r' && !in_word {
        let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            return find(at + 2 + hashes, &close);
        }
    }
    match rest[0] {
        b'"' => quoted_end(bytes, at, b'"'),
        // A lifetime has no closing quote near.
        b'\''
            if rest.get(1) == Some(&b'\\')
                || rest.iter().skip(1).take(5).any(|&b| b == b'\'') && !is_lifetime(rest) =>
        {
            quoted_end(bytes, at, b'\'')
        }
        _ => at,
    }
}

/// `'a` followed by something that is not a closing quote.
fn is_lifetime(rest: &[u8]) -> bool {
    rest.get(1).is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_') && rest.get(2) != Some(&b'\'')
}

fn quoted_end(bytes: &[u8], at: usize, quote: u8) -> usize {
    let mut i = at + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b if b == quote => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        assert_eq!(blank("a // word\nb"), "a        \nb");
        assert_eq!(blank(r#"x("std::fs") + 'q' + y"#).replace(' ', ""), "x()++y");
        assert_eq!(blank("fn f<'a>(s: &'a str) {}"), "fn f<'a>(s: &'a str) {}");
        assert_eq!(blank("r#\"a \" b\"# z").trim(), "z");
        assert_eq!(blank(r"'\'' z").trim(), "z");
    }

    #[test]
    fn inline_tests_are_left_out() {
        let file = SourceFile {
            path: "x.rs".into(),
            text: "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n".into(),
        };
        assert_eq!(file.without_inline_tests(), "fn a() {}\nfn c() {}\n");
    }
}
