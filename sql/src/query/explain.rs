//! What EXPLAIN shows: the plan, and for each scan the keys it will read and the regions that hold them.
//!
//! ```text
//! RegionScan: accounts [aid, balance] key: aid = $1
//! Access path of accounts: region scan
//!   Point: (7)
//!   Region 4 on store 2: 1 point
//! ```

use std::{fmt, sync::Arc};

use datafusion::{
    physical_expr::PhysicalExpr,
    physical_plan::{ExecutionPlan, displayable},
};
use proto::{KeyRange, keyspace::PREFIX_LEN};

use super::{
    bind::Change,
    plan::{QueryPlan, RunValues},
    scan::{
        bounds::{KeyBounds, Spans},
        exec::{RegionScan, intersect},
    },
};
use crate::{
    Reader,
    catalog::{Table, TableDescriptor},
    codec::key::{self, KeyColumn},
    error::SqlResult,
    types::{Datum, FormatSettings, text},
};

/// Points and ranges that are written out for one scan; of more only the number is shown.
const SHOWN_SPANS: usize = 8;

/// The lines of `EXPLAIN statement`.
pub async fn explain(plan: &QueryPlan, reader: Reader, values: &RunValues<'_>) -> SqlResult<Vec<String>> {
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
    for (table, spans) in scans {
        lines.push(format!("Access path of {}: region scan", table.shown_name()));
        lines.extend(access_lines(&client, &table, &spans?).await?);
    }
    Ok(lines)
}

fn collect(node: &Arc<dyn ExecutionPlan>, into: &mut Vec<(Table, SqlResult<Spans>)>) {
    if let Some(scan) = node.downcast_ref::<RegionScan>() {
        let spans = scan.bounds().spans().map_err(super::failure::from_datafusion);
        into.push((Arc::clone(scan.table()), spans));
    }
    node.children().into_iter().for_each(|child| collect(child, into));
}

/// The keys of an access path and the regions that hold them, one line each. Key plans show theirs with it too.
pub async fn access_lines(client: &kv::Client, table: &TableDescriptor, spans: &Spans) -> SqlResult<Vec<String>> {
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
            Spans::Points(_) => format!("  Point: {}", shown_key(table, &range.start)),
            Spans::Ranges(_) => format!("  Range: {}", shown_range(table, range)),
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
        let count = ranges.iter().filter(|range| intersect(range, &route.region.range).is_some()).count();
        if count > 0 {
            let leader =
                route.leader.map_or_else(|| "no known leader".to_owned(), |store| format!("store {}", store.0));
            let plural = if count == 1 { "" } else { "s" };
            lines.push(format!("  Region {} on {leader}: {count} {noun}{plural}", route.region.id.0));
        }
    }
    Ok(lines)
}

fn shown_range(table: &TableDescriptor, range: &KeyRange) -> String {
    if *range == table.rows() {
        return "all rows".to_owned();
    }
    let end = if range.end.is_empty() { "end".to_owned() } else { shown_key(table, &range.end) };
    format!("[{}, {end})", shown_key(table, &range.start))
}

/// The values of a key's columns as far as the key goes. A bound that was moved behind a value shows the bytes that don't decode.
pub fn shown_key(table: &TableDescriptor, key: &[u8]) -> String {
    let rows = table.rows();
    if key == rows.end {
        return "end".to_owned();
    }
    let mut rest = key.get(PREFIX_LEN..).unwrap_or_default();
    let mut parts = Vec::new();
    for at in &table.key {
        if rest.is_empty() {
            break;
        }
        let column_type = table.columns[*at].column_type;
        match key::decode(&mut rest, KeyColumn::primary(column_type.pg_type)) {
            Ok(datum) => parts.push(shown_datum(&datum, column_type)),
            Err(_) => {
                parts.push(format!("0x{}", rest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
                break;
            }
        }
    }
    format!("({})", parts.join(", "))
}

fn shown_datum(datum: &Datum, column_type: crate::types::ColumnType) -> String {
    let mut out = String::new();
    text::format(datum, column_type, &FormatSettings::default(), &mut out);
    if column_type.pg_type.is_text() { format!("'{}'", out.replace('\'', "''")) } else { out }
}

/// The bounds of a scan with the expressions they come from: ` key: a = $1, b > 5`.
pub fn fmt_bounds(
    table: &TableDescriptor,
    bounds: &KeyBounds<Arc<dyn PhysicalExpr>>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let name = |at: usize| table.columns[table.key[at]].name.as_str();
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
