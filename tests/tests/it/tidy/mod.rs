//! The rules of the house. A rule that does not fail is a wish.
//!
//! Each rule collects all that breaks it, so that one run names everything.

mod arrows;
mod documents;
mod features;
mod purity;
mod sizes;
mod words;

/// Fails with every finding, one a line.
fn none(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}
