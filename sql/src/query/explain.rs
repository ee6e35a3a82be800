//! What EXPLAIN shows: the plan, and for each scan the keys it will read and the regions that hold them.
//!
//! ```text
//! RegionScan: accounts [aid, balance] key: aid = $1
//! Access path of accounts: region scan
//!   Point: (7)
//!   Region 4 on store 2: 1 point
//!
//! Key plan: Update on accounts          a statement that meets no planner when it runs
//!   Point: (7)
//!   Region 4 on store 2: 1 point
//! ```

use std::{fmt, sync::Arc};

use datafusion::physical_plan::{ExecutionPlan, displayable};
use proto::{KeyRange, keyspace::split_prefix};

use super::{
    bind::Change,
    plan::{QueryPlan, RunValues},
    scan::{
        bounds::{Compiled, Spans},
        exec::RegionScan,
    },
};
use crate::{
    Reader,
    catalog::{Table, TableDescriptor, descriptor::IndexDescriptor},
    codec::{KeyForm, key},
    error::SqlResult,
    eval::Env,
    keyplan::{self, KeyPlan},
    types::{Datum, FormatSettings, text},
};

/// Points and ranges that are written out for one scan; of more only the number is shown.
const SHOWN_SPANS: usize = 8;

/// The lines of `EXPLAIN statement`.
pub async fn explain(plan: &QueryPlan, reader: Reader, values: &RunValues<'_>) -> SqlResult<Vec<String>> {
    let mut lines = explain_one(plan, reader.clone(), values).await?;
    for (at, inner) in plan.inner().iter().enumerate() {
        lines.push(format!("Locked rows {at}, before that:"));
        let inner = explain_one(inner, reader.clone(), values).await?;
        lines.extend(inner.into_iter().map(|line| format!("  {line}")));
    }
    Ok(lines)
}

async fn explain_one(plan: &QueryPlan, reader: Reader, values: &RunValues<'_>) -> SqlResult<Vec<String>> {
    let client = reader.main().client().clone();
    let show = |root: &Arc<dyn ExecutionPlan>| {
        let mut scans = Vec::new();
        collect(root, &mut scans);
        (displayable(root.as_ref()).indent(false).to_string(), scans)
    };
    let (tree, scans) = plan.explain(reader, values, show).await?;
    let mut lines = Vec::new();
    if let Some(change) = plan.change() {
        let verb = match change {
            Change::Insert { .. } => "Insert",
            Change::Update { .. } => "Update",
            Change::Delete { .. } => "Delete",
        };
        lines.push(format!("{verb} on {}", change.table().shown_name()));
    }
    let indent = if lines.is_empty() { "" } else { "  " };
    // A hole is a function without arguments; people know it as its placeholder.
    let holes = regex::Regex::new(r"(\$\w+)\(\)").expect("a fixed expression");
    lines.extend(tree.lines().map(|line| format!("{indent}{}", holes.replace_all(line, "$1"))));
    for Scanned { table, index, form, spans } in scans {
        let path = index.map_or_else(|| "region scan".to_owned(), |index| format!("index {index}, then its rows"));
        lines.push(format!("Access path of {}: {path}", table.shown_name()));
        match spans {
            Some(spans) => lines.extend(access_lines(&client, &table, &form, &spans?).await?),
            None => lines.push("  Other keys for each row of the outer query".to_owned()),
        }
    }
    Ok(lines)
}

/// The lines of `EXPLAIN statement` for a statement that runs by key.
pub async fn explain_key(plan: &KeyPlan, client: &kv::Client, env: &Env<'_>) -> SqlResult<Vec<String>> {
    let table = &plan.target().table;
    let verb = match plan {
        KeyPlan::Read(_) => "Select from",
        KeyPlan::Insert(_) => "Insert on",
        KeyPlan::Modify(plan) if plan.assignments.is_some() => "Update on",
        KeyPlan::Modify(_) => "Delete on",
    };
    let mut lines = vec![format!("Key plan: {verb} {}", table.shown_name())];
    let form = match plan.index() {
        None => KeyForm::primary(table),
        Some(index) => {
            lines.push(format!("  By index {}, then its rows", index.descriptor.name));
            index.form().clone()
        }
    };
    match keyplan::run::spans(plan, env)? {
        Some(spans) => lines.extend(access_lines(client, table, &form, &spans).await?),
        None => lines.push("  A new key for each row".to_owned()),
    }
    Ok(lines)
}

/// A scan of a plan.
struct Scanned {
    table: Table,
    /// The name of the secondary index it reads by.
    index: Option<String>,
    form: KeyForm,
    /// `None` where they change with an outer query's rows.
    spans: Option<SqlResult<Spans>>,
}

/// The scans of a plan.
fn collect(node: &Arc<dyn ExecutionPlan>, into: &mut Vec<Scanned>) {
    if let Some(scan) = node.downcast_ref::<RegionScan>() {
        let spans = (!scan.bounds().is_outer()).then(|| scan.bounds().spans().map_err(super::failure::from_datafusion));
        into.push(Scanned {
            table: Arc::clone(scan.table()),
            index: scan.index().map(|index| index.name.clone()),
            form: scan.bounds().form().clone(),
            spans,
        });
    }
    node.children().into_iter().for_each(|child| collect(child, into));
}

/// The keys of an access path and the regions that hold them, one line each.
pub async fn access_lines(
    client: &kv::Client,
    table: &TableDescriptor,
    form: &KeyForm,
    spans: &Spans,
) -> SqlResult<Vec<String>> {
    let (noun, ranges) = match spans {
        Spans::Points(keys) => {
            let point = |key: &bytes::Bytes| KeyRange::new(key.clone(), super::scan::bounds::prefix_end(key));
            ("point", keys.iter().map(point).collect())
        }
        Spans::Ranges(ranges) => ("range", ranges.clone()),
    };
    let mut lines = Vec::new();
    for range in ranges.iter().take(SHOWN_SPANS) {
        lines.push(match spans {
            Spans::Points(_) => format!("  Point: {}", shown_key(table, form, &range.start)),
            Spans::Ranges(_) => format!("  Range: {}", shown_range(table, form, range)),
        });
    }
    if ranges.len() > SHOWN_SPANS {
        lines.push(format!("  and {} more", ranges.len() - SHOWN_SPANS));
    }
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
        lines.push("  No keys".to_owned());
        return Ok(lines);
    };
    for route in client.regions(&KeyRange::new(first.start.clone(), last.end.clone())).await? {
        let count = ranges.iter().filter(|range| range.intersect(&route.part).is_some()).count();
        if count > 0 {
            let leader =
                route.leader.map_or_else(|| "no known leader".to_owned(), |store| format!("store {}", store.0));
            let plural = if count == 1 { "" } else { "s" };
            lines.push(format!("  Region {} on {leader}: {count} {noun}{plural}", route.region.id.0));
        }
    }
    Ok(lines)
}

fn shown_range(table: &TableDescriptor, form: &KeyForm, range: &KeyRange) -> String {
    if *range == form.range() {
        return "all rows".to_owned();
    }
    let end = if range.end.is_empty() { "end".to_owned() } else { shown_key(table, form, &range.end) };
    format!("[{}, {end})", shown_key(table, form, &range.start))
}

/// A border of a region that lies in a table: the values of its rows' keys, or of an index's.
pub fn shown_border(table: &TableDescriptor, key: &[u8]) -> String {
    shown_key(
        table,
        &index_of(table, key).map_or_else(|| KeyForm::primary(table), |i| KeyForm::secondary(table, i)),
        key,
    )
}

/// The secondary index that a key is of.
pub fn index_of<'a>(table: &'a TableDescriptor, key: &[u8]) -> Option<&'a IndexDescriptor> {
    let (_, _, id, _) = split_prefix(key)?;
    table.indexes.iter().find(|index| index.id == id)
}

/// The values of a key's columns as far as the key goes. A bound that was moved behind a value shows the bytes that don't decode.
pub fn shown_key(table: &TableDescriptor, form: &KeyForm, key: &[u8]) -> String {
    if key == form.range().end {
        return "end".to_owned();
    }
    let mut rest = form.values_in(key);
    let mut parts = Vec::new();
    for (at, column) in form.columns() {
        if rest.is_empty() {
            break;
        }
        let column_type = table.columns[*at].column_type;
        let whole = rest;
        match key::decode(&mut rest, *column) {
            Ok(datum) => parts.push(shown_datum(&datum, column_type)),
            Err(_) => {
                parts.push(format!("0x{}", whole.iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
                break;
            }
        }
    }
    format!("({})", parts.join(", "))
}

fn shown_datum(datum: &Datum, column_type: crate::types::ColumnType) -> String {
    if datum.is_null() {
        return "NULL".to_owned();
    }
    let mut out = String::new();
    text::format(datum, column_type, &FormatSettings::default(), &mut out);
    if column_type.pg_type.is_text() { format!("'{}'", out.replace('\'', "''")) } else { out }
}

/// The bounds of a scan with the expressions they come from: ` key: a = $1, b > 5`.
pub fn fmt_bounds(table: &TableDescriptor, compiled: &Compiled, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let bounds = compiled.bounds();
    let name = |at: usize| table.columns[compiled.form().position(at)].name.as_str();
    let mut parts = Vec::new();
    for (at, values) in bounds.fixed.iter().enumerate() {
        parts.push(match values.as_slice() {
            [value] => format!("{} = {value}", name(at)),
            values => {
                let shown: Vec<String> = values.iter().map(ToString::to_string).collect();
                format!("{} IN ({})", name(at), shown.join(", "))
            }
        });
    }
    for (bound, strict, loose) in [(&bounds.lower, ">", ">="), (&bounds.upper, "<", "<=")] {
        if let Some(bound) = bound {
            let sign = if bound.inclusive { loose } else { strict };
            parts.push(format!("{} {sign} {}", name(bounds.fixed.len()), bound.value));
        }
    }
    if parts.is_empty() { write!(f, " key: all") } else { write!(f, " key: {}", parts.join(", ")) }
}
