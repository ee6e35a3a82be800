//! COPY's text format against what PostgreSQL 15 says, and against its own output.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::{
    catalog::{ColumnDescriptor, TableDescriptor},
    copy::LineWriter,
    statement::{Command, parse_one},
    types::{Decimal, PgType},
};

fn column(id: u32, name: &str, column_type: ColumnType, nullable: bool, default: Option<&str>) -> ColumnDescriptor {
    let default = default.map(str::to_owned);
    ColumnDescriptor { nullable, default, ..ColumnDescriptor::new(id, name, column_type) }
}

fn target(columns: Vec<ColumnDescriptor>, hidden: bool) -> Target {
    let mut columns = columns;
    if hidden {
        let id = columns.len() as u32 + 1;
        let mut row_id = column(id, "flaredb_rowid", PgType::Int8.plain(), false, None);
        row_id.hidden = true;
        columns.push(row_id);
    }
    let key = vec![if hidden { columns.len() - 1 } else { 0 }];
    let primary_key = (!hidden).then(|| "t_pkey".into());
    Target::new(Arc::new(TableDescriptor { primary_key, ..TableDescriptor::new(100, "t", columns, key) }))
}

fn three() -> Target {
    target(
        vec![
            column(1, "a", PgType::Int4.plain(), false, None),
            column(2, "b", PgType::Text.plain(), true, Some("'d' ")),
            column(3, "c", ColumnType::characters(PgType::Varchar, 3).unwrap(), true, None),
        ],
        false,
    )
}

fn statement(sql: &str) -> Arc<CopyStatement> {
    match parse_one(sql).unwrap() {
        Command::Copy(copy) => copy,
        other => panic!("{other:?} is no COPY"),
    }
}

fn read(target: Target, sql: &str, chunks: &[&[u8]]) -> SqlResult<Vec<Vec<Datum>>> {
    let mut input = Input::new(target, &statement(sql), &FormatSettings::default(), 0)?;
    let mut rows = Vec::new();
    for chunk in chunks {
        input.feed(Bytes::copy_from_slice(chunk));
        while let Some(row) = input.next_row()? {
            rows.push(row);
        }
    }
    input.finish();
    while let Some(row) = input.next_row()? {
        rows.push(row);
    }
    Ok(rows)
}

fn refusal(sql: &str, data: &[u8]) -> (&'static str, String, String) {
    let error = read(three(), sql, &[data]).unwrap_err();
    (error.sqlstate.0, error.message.clone(), error.place.clone().unwrap_or_default())
}

#[test]
fn lines_become_rows() {
    let rows = read(three(), "COPY t FROM STDIN", &[b"1\tx\\ty\t", b"abc\n2\t\\N\t\n\\.\n"]).unwrap();
    assert_eq!(rows[0], [Datum::Int4(1), Datum::text("x\ty"), Datum::text("abc")]);
    assert_eq!(rows[1], [Datum::Int4(2), Datum::Null, Datum::text("")]);
    let rows =
        read(three(), "COPY t (c, a) FROM STDIN WITH (DELIMITER '|', NULL '', HEADER)", &[b"c|a\n|7\n"]).unwrap();
    assert_eq!(rows, [[Datum::Int4(7), Datum::text("d"), Datum::Null]]);
}

#[test]
fn a_hidden_row_id_is_left_to_the_writer() {
    let target = target(vec![column(1, "a", PgType::Int4.plain(), true, None)], true);
    assert_eq!(read(target, "COPY t FROM STDIN", &[b"\\N\n"]).unwrap(), [[Datum::Null, Datum::Int8(0)]]);
}

#[test]
fn refusals_name_line_and_column() {
    let copy = "COPY t FROM STDIN";
    let is = |sqlstate, message: &str, place: &str| (sqlstate, message.to_owned(), place.to_owned());
    assert_eq!(
        refusal(copy, b"1\tx\ty\n2\tx\n"),
        is("22P04", "missing data for column \"c\"", "COPY t, line 2: \"2\tx\"")
    );
    assert_eq!(
        refusal(copy, b"1\tx\ty\tz\n"),
        is("22P04", "extra data after last expected column", "COPY t, line 1: \"1\tx\ty\tz\"")
    );
    assert_eq!(
        refusal(copy, b"1\tx\ty\none\tx\ty\n"),
        is("22P02", "invalid input syntax for type integer: \"one\"", "COPY t, line 2, column a: \"one\"")
    );
    assert_eq!(
        refusal(copy, b"1\tx\tlong\n"),
        is("22001", "value too long for type character varying(3)", "COPY t, line 1, column c: \"long\"")
    );
    assert_eq!(
        refusal(copy, b"1\t\xff\ty\n"),
        is("22021", "invalid byte sequence for encoding \"UTF8\": 0xff", "COPY t, line 1")
    );
    assert_eq!(refusal(copy, b"1\t\\0\ty\n").0, "22021");
    assert_eq!(refusal(copy, b"1\tx\ty\n2\tx\ty\r\n").2, "COPY t, line 2");
    let (sqlstate, _, place) = refusal(copy, b"\\N\tx\ty\n");
    assert_eq!((sqlstate, &place[..]), ("23502", "COPY t, line 1: \"\\N\tx\ty\""));
    assert_eq!(refusal("COPY t (nope) FROM STDIN", b"").0, "42703");
    assert_eq!(refusal("COPY t (a, a) FROM STDIN", b"").0, "42701");
}

#[test]
fn long_lines_are_cut_in_messages() {
    let line = format!("1\t{}\n", "ä".repeat(500));
    let (_, _, place) = refusal("COPY t FROM STDIN", line.as_bytes());
    assert_eq!(place, format!("COPY t, line 1: \"1\t{}...\"", "ä".repeat(98)));
}

fn datum() -> impl Strategy<Value = [Datum; 4]> {
    let null = |strategy: BoxedStrategy<Datum>| prop_oneof![1 => Just(Datum::Null), 4 => strategy];
    let text =
        prop_oneof![any::<String>(), "[\\\\\\.N\t\n\r|,\u{1}\u{8}a]{0,8}"].prop_map(|text| text.replace('\0', "0"));
    (
        null(text.prop_map(|text| Datum::text(text.as_str())).boxed()),
        null(any::<Vec<u8>>().prop_map(|bytes| Datum::Bytea(bytes.into())).boxed()),
        null(any::<i64>().prop_map(Datum::Int8).boxed()),
        null(
            (any::<i32>(), 0u8..10)
                .prop_map(|(mantissa, scale)| Datum::Numeric(Decimal::new(i128::from(mantissa), scale).unwrap()))
                .boxed(),
        ),
    )
        .prop_map(|(a, b, c, d)| [a, b, c, d])
}

proptest! {
    #[test]
    fn what_goes_out_comes_in(
        rows in proptest::collection::vec(datum(), 0..8),
        delimiter in prop_oneof![Just("\t"), Just("|"), Just(","), Just("\u{1}")],
        cut in any::<proptest::sample::Index>(),
    ) {
        let types = [PgType::Text, PgType::Bytea, PgType::Int8, PgType::Numeric];
        let columns = types.iter().zip(1u32..).map(|(pg_type, id)| column(id, &format!("c{id}"), pg_type.plain(), true, None));
        let target = target(columns.collect(), true);
        let sql = format!("COPY t FROM STDIN (DELIMITER '{delimiter}')");
        let settings = FormatSettings::default();
        let mut output = LineWriter::new(types.map(PgType::plain).to_vec(), &statement(&sql), &settings);
        let mut lines = BytesMut::new();
        rows.iter().for_each(|row| output.row(row, &mut lines));
        let (head, tail) = lines.split_at(cut.index(lines.len() + 1));
        let back = read(target, &sql, &[head, tail]).unwrap();
        prop_assert_eq!(back.len(), rows.len());
        for (back, row) in back.iter().zip(&rows) {
            prop_assert_eq!(&back[..4], &row[..]);
        }
    }

    #[test]
    fn random_bytes_never_panic(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let _ = read(three(), "COPY t FROM STDIN", &chunks);
    }
}
