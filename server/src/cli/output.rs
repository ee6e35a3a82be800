//! How `ctl` prints: columns for people, JSON for programs.

use clap::ValueEnum;
use serde_json::{Map, Value};

/// `--output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns with a head line.
    #[default]
    Table,
    /// An array of objects, or one object.
    Json,
}

/// Rows with named columns.
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// With no rows yet.
    pub fn new(columns: &'static [&'static str]) -> Self {
        Table { columns, rows: Vec::new() }
    }
    /// Adds a row; as many values as there are columns.
    pub fn row(&mut self, values: Vec<Value>) {
        assert_eq!(values.len(), self.columns.len(), "a value for each column");
        self.rows.push(values);
    }
    /// As `--output` says; ends with a newline.
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Table => self.as_columns(),
            Output::Json => {
                let objects: Vec<_> = self.rows.iter().map(|row| self.object(row)).collect();
                format!("{:#}\n", Value::Array(objects))
            }
        }
    }
    /// For a table that is about one thing: the object alone in JSON, a line a column for people.
    pub fn render_one(&self, output: Output) -> String {
        let row = self.rows.first().expect("a table about one thing has one row");
        match output {
            Output::Json => format!("{:#}\n", self.object(row)),
            Output::Table => {
                let width = self.columns.iter().map(|c| c.len()).max().unwrap_or(0);
                let line = |(c, v): (&&str, &Value)| format!("{c:width$}  {}\n", text(v));
                self.columns.iter().zip(row).map(line).collect()
            }
        }
    }

    fn object(&self, row: &[Value]) -> Value {
        Value::Object(self.columns.iter().map(|c| c.to_string()).zip(row.iter().cloned()).collect::<Map<_, _>>())
    }
    fn as_columns(&self) -> String {
        let head = self.columns.iter().map(|c| c.to_uppercase()).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> =
            std::iter::once(head).chain(self.rows.iter().map(|row| row.iter().map(text).collect())).collect();
        let width = |i: usize| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        lines.iter().fold(String::new(), |mut out, line| {
            let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}")).collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
            out
        })
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_for_people_and_for_programs() {
        let mut table = Table::new(&["id", "peers"]);
        table.row(vec![json!(1), json!(["s1", "s2"])]);
        table.row(vec![json!(10), Value::Null]);
        assert_eq!(table.render(Output::Table), "ID  PEERS\n1   s1,s2\n10  -\n");
        let parsed: Value = serde_json::from_str(&table.render(Output::Json)).unwrap();
        assert_eq!(parsed, json!([{"id": 1, "peers": ["s1", "s2"]}, {"id": 10, "peers": null}]));
        assert_eq!(table.render_one(Output::Table), "id     1\npeers  s1,s2\n");
    }
}
