"""Tables cut into regions."""

import time

import psycopg

# SPLIT makes so many at a time.
REGIONS_A_STATEMENT = 400
# Statements that may be refused for the moment.
AGAIN_MAX = 30


def connect(cluster, node):
    return psycopg.connect(host="127.0.0.1", port=cluster.sql[node], user="postgres", dbname="postgres", autocommit=True)


def create(session, name, rows, regions=1):
    """`rows` rows (id 1 to rows, n = 0) in so many regions of their own."""
    session.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, n bigint) SPLIT INTO 1")
    cut(session, name, borders(rows, regions))
    fill(session, name, ((row, 0) for row in range(1, rows + 1)))


def fill(session, name, rows):
    with session.cursor().copy(f"COPY {name} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def borders(rows, regions):
    return [1 + rows * n // regions for n in range(1, regions)]


def cut(session, name, keys):
    """Cuts at the ids, as many at a time as one statement takes. How often one had to be said again."""
    again = 0
    for begin in range(0, len(keys), REGIONS_A_STATEMENT):
        values = ", ".join(f"({key})" for key in keys[begin : begin + REGIONS_A_STATEMENT])
        while True:
            try:
                session.execute(f"ALTER TABLE {name} SPLIT AT VALUES {values}")
                break
            # Not just now (57P03), or not all of it (55000).
            except (psycopg.errors.CannotConnectNow, psycopg.errors.ObjectNotInPrerequisiteState):
                again += 1
                if again > AGAIN_MAX:
                    raise
                time.sleep(1)
    return again


def regions_of(cluster, table):
    return cluster.ctl("region", "list", "--table", table)
