"""psycopg (3) against the port in argv[1]. Fails with a traceback."""

import datetime
import decimal
import sys
import uuid

import psycopg

DSN = f"host=127.0.0.1 port={sys.argv[1]} user=postgres dbname=postgres connect_timeout=10"

ROW = {
    "id": 1,
    "small": -7,
    "big": 2**40,
    "n": decimal.Decimal("12345.67"),
    "d": 0.1,
    "t": "Zürich",
    "b": True,
    "bin": b"\x00\xff",
    "day": datetime.date(2026, 11, 23),
    "at": datetime.datetime(2026, 11, 23, 10, 11, 12, 500),
    "u": uuid.UUID(int=42),
}


def typed_parameters(connection):
    connection.execute(
        "CREATE TABLE v (id int PRIMARY KEY, small int2, big int8, n numeric(10,2), d float8, t text, b bool,"
        " bin bytea, day date, at timestamp, u uuid)"
    )
    columns = ", ".join(ROW)
    for number, style in enumerate(["%s", "%t", "%b"]):
        values = {**ROW, "id": number}
        connection.execute(f"INSERT INTO v ({columns}) VALUES ({', '.join([style] * len(ROW))})", list(values.values()))
    connection.commit()
    for binary in (False, True):
        found = connection.cursor(binary=binary).execute(f"SELECT {columns} FROM v ORDER BY id").fetchall()
        for number, row in enumerate(found):
            assert row == tuple({**ROW, "id": number}.values()), (binary, row)
        assert len(found) == 3


def transactions(connection):
    connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
    connection.commit()
    try:
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (1)")
            raise RuntimeError
    except RuntimeError:
        pass
    with connection.transaction():
        connection.execute("INSERT INTO t VALUES (2)")
    assert connection.execute("SELECT a FROM t").fetchall() == [(2,)]
    connection.commit()
    many = connection.cursor()
    many.executemany("INSERT INTO t VALUES (%s)", [(n,) for n in range(10, 20)])
    connection.commit()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (11,)
    with connection.pipeline():
        answers = [connection.execute("SELECT %s::int", [n]) for n in range(5)]
    assert [answer.fetchone() for answer in answers] == [(n,) for n in range(5)]
    connection.commit()


def copying(connection):
    connection.execute("CREATE TABLE c (a int PRIMARY KEY, b text)")
    with connection.cursor().copy("COPY c FROM STDIN") as copy:
        for n in range(100):
            copy.write_row((n, None if n % 2 else f"line\n{n}"))
    with connection.cursor().copy("COPY c TO STDOUT") as copy:
        rows = list(copy.rows())
    assert len(rows) == 100 and rows[0] == ("0", "line\n0") and rows[1] == ("1", None), rows[:2]
    connection.commit()


def server_side_cursors(connection):
    with connection.cursor(name="numbers") as cursor:
        cursor.itersize = 10
        cursor.execute("SELECT a FROM c WHERE a >= %s ORDER BY a", (50,))
        assert cursor.fetchmany(2) == [(50,), (51,)]
        assert sum(1 for _ in cursor) == 48
    connection.commit()


def errors(connection):
    for statement, state in [("SELECT * FROM missing", "42P01"), ("INSERT INTO t VALUES (2)", "23505")]:
        try:
            connection.execute(statement)
            connection.commit()
        except psycopg.Error as error:
            assert error.sqlstate == state, error
            connection.rollback()
        else:
            raise AssertionError(f"{statement} worked")


with psycopg.connect(DSN) as connection:
    assert connection.info.server_version // 10000 == 15
    typed_parameters(connection)
    transactions(connection)
    copying(connection)
    server_side_cursors(connection)
    errors(connection)
