//! A statement goes one of two ways: by a key plan, whose expressions `sql::eval` computes, or through DataFusion. The same
//! expression over the same row must give the same type, and the same text or the same SQLSTATE, on both.
//!
//! `WHERE k = 1` is a key plan, `WHERE k + 0 = 1` is none; EXPLAIN says so. An expression that no key plan takes goes the
//! general way twice, which is fine; how many of the listed ones may is bounded.

mod support;

use std::sync::Arc;

use bytes::{Buf, BytesMut};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use sql::{Gateway, Session, Step};
use support::{connect, gateway, local};

/// Generated expressions a run compares.
const GENERATED: u32 = 200;

const TABLE: &str = "CREATE TABLE one (k int4 PRIMARY KEY, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric(12,3), \
     t text, v varchar(5), c char(4), b bool, d date, ts timestamp, tz timestamptz, u uuid, y bytea)";

const ROWS: [&str; 5] = [
    "(1, 1, 10, 100, 1.5, 2.5, 12.345, 'abc', 'abcde', 'ab', true, '2024-02-29', '2024-02-29 12:34:56.789', \
     '2024-02-29 23:30:00+00', '00000000-0000-0000-0000-000000000001', '\\x01ff')",
    "(2, -32768, -2147483648, -9223372036854775808, -0.25, 1e15, -0.001, '', '', '', false, '1969-12-31', \
     '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59+00', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '\\x')",
    "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "(4, 32767, 2147483647, 9223372036854775807, 'NaN', 'Infinity', 999999999.999, '12', '12', '12', true, 'infinity', \
     'infinity', '-infinity', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\\x3132')",
    "(5, 0, 0, 0, 0, '-0', 0, ' x ', ' x', 'x', false, '2000-01-01', '2000-01-01 00:00:00', '2000-07-01 00:00:00+00', \
     '00000000-0000-0000-0000-000000000000', '\\x00')",
];

/// Time zones: what depends on one must depend on it both ways.
const ZONES: [&str; 2] = ["UTC", "Europe/Berlin"];

const LISTED: &str = "
    k; i2 + 1; i2 + i2; i4 + i4; i4 - 1; i8 + 1; i8 - 1; i4 * i4; i2 * i2; i8 * 2; i4 / 2; i4 / i2; i4 % 3; i8 % -1; i8 / -1; -i2; -i4; -i8
    i4 / 0; i4 % 0; 1 / i2; 1.0 / i2; f8 / 0; f4 / 0; f8 / i2; 5 / i4; i2 % i2
    f4 + f4; f4 + f8; f4 * 2; f4 * f4; f8 * f8; f8 - f8; f8 + 1; -f4; -f8; f8 * 1e300; f8 / 1e-300; f4 + 1.5; f8 + n; f4 * n
    n + 1; n - n; n * n; n * 2.5; n + i8; -n; n + 0.0001; n * i8; n * n * n * n
    i4 = 10; i4 <> 10; i4 < i8; i2 >= i4; i4 = 10.0; i4 = 10.5; i8 > 1e3; f4 = 1.5; f4 = f8; f8 > i4; f8 = 1e15; n = 12.345; n = f8; n > i4; n < f4
    f8 = f8; f4 = f4; f8 > 1; f8 < 0; f8 = 0; f8 = 'NaN'; f4 > f8; f8 >= 'Infinity'
    t = 'abc'; t < 'b'; t > ''; v = t; v = 'abcde'; t = v; c = 'ab'; c = 'ab  '; c < 'b'; c = c; t <> v; c = 12; t = 12
    b; NOT b; b AND i4 > 0; b OR i4 > 0; b AND NULL; b OR NULL; b = true; b = 't'; b > false; NOT NULL; b AND 1 / i2 > 0; i2 = 0 OR 1 / i2 > 0
    i4 IS NULL; i4 IS NOT NULL; t IS NULL; NULL IS NULL; (i4 + i8) IS NULL
    i4 BETWEEN 0 AND 100; i4 BETWEEN i2 AND i8; f8 BETWEEN 0 AND 3; t BETWEEN 'a' AND 'b'; d BETWEEN '2000-01-01' AND '2024-12-31'
    d = '2024-02-29'; d < '2000-01-01'; d > ts; d = ts; ts = '2024-02-29 12:34:56.789'; ts > d; tz > '2024-01-01'; tz = ts; tz > d; tz < ts
    u = '00000000-0000-0000-0000-000000000001'; u < 'ffffffff-ffff-ffff-ffff-ffffffffffff'; u = 'x'; y = '\\x01ff'; y < '\\x02'; y = y
    i4::int2; i8::int4; i8::int2; f8::int4; f8::int8; f4::int2; n::int4; n::int8; i4::float4; i8::float4; i8::float8; n::float8; n::float4; f8::float4; f4::float8
    i4::numeric; i8::numeric(5,2); n::numeric(6,1); n::numeric(12,6); f8::numeric(10,2); f4::numeric(6,3); i2::numeric(4,2); n::numeric
    i4::text; i8::text; f4::text; f8::text; n::text; b::text; d::text; ts::text; tz::text; u::text; y::text; c::text; v::text; t::varchar(2); t::char(2); c::varchar(1)
    t::int4; t::float8; t::numeric; t::bool; v::int8; c::int2; t::date; t::bytea; t::uuid; b::int4; i4::bool; i8::bool; b::int8; d::timestamp; ts::date; tz::date; tz::timestamp; ts::timestamptz; d::timestamptz
    '5'::int4 + i4; '1.5' + n; 'x' + i4; i4 + '7'; '2024-01-01' = d; d = 'x'; i4 = 'x'; NULL + i4; NULL = i4; i4 = NULL; '1' = i8; 3000000000 + i4; 99999999999 * i8
    1; 1.5; 'a'; NULL; true; -1; 2147483647 + 1; 2147483648 - 1; -(-5); 1 + 2 * 3; (1 + 2) * 3; 7 / 2; -7 / 2; -7 % 3; 1.10; 1.0 * 1.0; 0.1 + 0.2; 1e3; 5 % 0; 1 / 0.0
    now() = now(); now() > '2000-01-01'; current_date > '2000-01-01'; localtimestamp > '2000-01-01'; now()::date = current_date; now()::timestamp = localtimestamp
    i2 = 1 AND t = 'abc' AND NOT (f8 > 3); NOT (i4 > 0 OR b); i4 + i2 > i8 - 5; (i4 > 5) = b; (i4 > 5) < (i2 > 5); i4 / 2.0; n / 3; n % 2; f8 % 2; i4 + t; d + 1; ts = tz; b + 1; d = i4; y = t
    + i4; - t; NOT i4; i4 AND b; i2 < 40000; i2 = 40000; i4 = 3000000000; i4 > 2147483648; i8 < 9223372036854775808; i4 > 0.5; nothing; one.i4; other.i4
";

/// Listed expressions of which a key plan need not know anything (functions, division of numerics and the like).
const MAX_GENERAL: usize = 100;

#[tokio::test(flavor = "current_thread")]
async fn listed_expressions_agree() {
    let (_gateway, mut session) = start().await;
    let (mut differ, mut general) = (Vec::new(), 0);
    let expressions: Vec<&str> = LISTED.split([';', '\n']).map(str::trim).filter(|expr| !expr.is_empty()).collect();
    for zone in ZONES {
        ask(&mut session, &format!("SET timezone = '{zone}'")).await.expect("a zone");
        let timed = |expr: &&str| ["ts", "tz", "timestamp", "now", "current"].iter().any(|part| expr.contains(part));
        for expr in expressions.iter().copied().filter(|expr| zone == ZONES[0] || timed(expr)) {
            let explained = ask(&mut session, &format!("EXPLAIN SELECT {expr} FROM one WHERE k = 1")).await;
            general += usize::from(zone == ZONES[0] && !explained.is_ok_and(|plan| plan.contains("Key plan")));
            for row in 1..=ROWS.len() {
                differ.extend(difference(&mut session, expr, row).await);
            }
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
    assert!(general <= MAX_GENERAL, "{general} expressions have no key plan");
}

#[test]
fn generated_expressions_agree() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (_gateway, session) = runtime.block_on(start());
    let session = std::cell::RefCell::new(session);
    let config = ProptestConfig { cases: GENERATED, failure_persistence: None, ..ProptestConfig::default() };
    // The same expressions in every run: CI is no place to find new ones.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::default()));
    let checked = runner.run(&(expression(), 1..=ROWS.len()), |(expr, row)| {
        let differs = runtime.block_on(difference(&mut session.borrow_mut(), &expr, row));
        prop_assert!(differs.is_none(), "{}", differs.unwrap_or_default());
        Ok(())
    });
    checked.unwrap_or_else(|failed| panic!("{failed}"));
}

/// Expressions of columns and literals, well typed more often than not.
fn expression() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        prop::sample::select(vec!["k", "i2", "i4", "i8", "f4", "f8", "n"]).prop_map(str::to_owned),
        prop::sample::select(vec![
            "0",
            "1",
            "-1",
            "2",
            "7",
            "100",
            "32768",
            "2147483648",
            "0.5",
            "-1.25",
            "1e3",
            "NULL",
            "'3'"
        ])
        .prop_map(str::to_owned),
    ];
    let number = number.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), prop::sample::select(vec!["+", "-", "*", "/", "%"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.clone().prop_map(|a| format!("(- {a})")),
            (
                inner,
                prop::sample::select(vec!["int2", "int4", "int8", "float4", "float8", "numeric(10,2)", "text::int8"])
            )
                .prop_map(|(a, to)| format!("({a})::{to}")),
        ]
    });
    let other = prop::sample::select(vec![
        ("t", "'abc'"),
        ("v", "t"),
        ("c", "'ab'"),
        ("d", "'2024-02-29'"),
        ("ts", "d"),
        ("tz", "'2024-02-29'"),
        ("u", "u"),
        ("y", "'\\x01'"),
    ]);
    let comparison = prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">="]);
    let truth = prop_oneof![
        prop::sample::select(vec!["b", "true", "false", "NULL"]).prop_map(str::to_owned),
        (number.clone(), comparison.clone(), number.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        (other, comparison).prop_map(|((a, b), op)| format!("({a} {op} {b})")),
        number.clone().prop_map(|a| format!("({a} IS NULL)")),
    ];
    let truth = truth.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), prop::sample::select(vec!["AND", "OR"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.prop_map(|a| format!("(NOT {a})")),
        ]
    });
    prop_oneof![number, truth]
}

/// What the two ways make of an expression over one row, where that differs.
async fn difference(session: &mut Session, expr: &str, row: usize) -> Option<String> {
    let by_key = ask(session, &format!("SELECT {expr} FROM one WHERE k = {row}")).await;
    let general = ask(session, &format!("SELECT {expr} FROM one WHERE k + 0 = {row}")).await;
    (by_key != general).then(|| format!("{expr} in row {row}: by key {by_key:?}, through DataFusion {general:?}"))
}

async fn start() -> (Arc<Gateway>, Session) {
    let gateway = gateway(&local()).await;
    let mut session = connect(&gateway);
    ask(&mut session, TABLE).await.expect("the table is made");
    ask(&mut session, &format!("INSERT INTO one VALUES {}", ROWS.join(", "))).await.expect("the rows are written");
    (gateway, session)
}

/// A statement's result: types and rows as text, or the SQLSTATE.
async fn ask(session: &mut Session, sql: &str) -> Result<String, String> {
    let failed = |error: sql::SqlError| error.sqlstate.to_string();
    session.simple(sql).await.map_err(failed)?;
    let mut out = String::new();
    while let Some(step) = session.next().await.map_err(failed)? {
        match step {
            Step::Fields(fields) => {
                out.extend(fields.iter().map(|field| format!("{} ", field.column_type.pg_type.sql_name())));
            }
            Step::Rows(batch) => {
                for row in 0..batch.len() {
                    let mut bytes = BytesMut::new();
                    batch.encode_row(row, &[], &mut bytes).map_err(failed)?;
                    out.push_str(&shown(&bytes));
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

fn shown(mut row: &[u8]) -> String {
    let count = row.get_i16();
    let column = |_| match row.get_i32() {
        -1 => "NULL".to_owned(),
        len => String::from_utf8_lossy(&row.copy_to_bytes(len as usize)).into_owned(),
    };
    (0..count).map(column).collect::<Vec<_>>().join("|") + "\n"
}
