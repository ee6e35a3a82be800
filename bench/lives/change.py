"""One region that is split, merged, moved and handed over under a paced load, each many times."""

import os
import statistics
import time

from lives import load, tables
from lives.bars import percentile, wait_for

ROWS = 20_000
RATE = 400
CLIENTS = 4
ROUNDS = 40
# Before and after what is done, so that it meets a cluster at rest; also where the base line is taken.
QUIET_SECONDS = 0.4
MOVES = 4
MOVED_BYTES = 64 << 20
ROW_BYTES = 1024
# A transaction takes so much.
FILLS = 8


class Watch:
    """Windows of time in which something was done, and as long ones in which nothing was."""

    def __init__(self):
        self.busy, self.quiet = [], []

    def during(self, act):
        time.sleep(QUIET_SECONDS)
        began, started = time.time(), time.monotonic()
        result = act()
        took = time.monotonic() - started
        self.busy.append((began, began + took))
        self.quiet.append((began - min(QUIET_SECONDS, took + 0.05), began - 0.02))
        return result, took * 1000

    def stalls(self, done):
        """The longest a client waited in each window, of both kinds."""
        return [[load.worst_ms(done, *window) for window in windows] for windows in (self.busy, self.quiet)]


def beside(quiet):
    return f"without: median {statistics.median(quiet):.1f}, p99 {percentile(quiet, 99):.1f}, {len(quiet)} windows as long"


def pairs(cluster, table):
    """Store of the leader, id, of the table's regions in key order."""
    return [(r["leader_store"], r["id"]) for r in tables.regions_of(cluster, table)]


def split(cluster, bars):
    """Cut in the middle by SQL and merged again, over and over."""
    session = tables.connect(cluster, 0)
    tables.create(session, "halves", ROWS)
    splits, merges, applied, merged = Watch(), Watch(), [], []

    def cut():
        session.execute(f"ALTER TABLE halves SPLIT AT VALUES ({ROWS // 2})")
        for row in (ROWS // 2 - 1, ROWS // 2):
            session.execute("UPDATE halves SET n = n + 1 WHERE id = %s", (row,), prepare=True)

    with load.Load(cluster, [0], "halves", (1, ROWS), RATE, CLIENTS) as paced:
        time.sleep(3)
        for _ in range(ROUNDS):
            applied.append(splits.during(cut)[1])
            [(_, left), (_, right)] = wait_for("both halves in PD's list", 10, lambda: two(cluster))[0]
            merged.append(merges.during(lambda: cluster.ctl("region", "merge", str(right), str(left)))[1])
        done, errors = paced.done(time.time()), paced.errors()
    bars.holds("no client error while regions split and merge", not errors, "; ".join(errors[:3]))
    stalls, quiet = splits.stalls(done)
    bars.bar("split applied, p99", percentile(applied, 99), 100, "ms", f"median {statistics.median(applied):.1f}, of {ROUNDS}")
    text = f"median {statistics.median(stalls):.1f}; {beside(quiet)}; {RATE} writes/s on that region"
    bars.bar("p99 of what a client waits at a split", percentile(stalls, 99), 10, "ms", text)
    stalls, quiet = merges.stalls(done)
    text = f"{statistics.median(stalls):.1f}, p99 {percentile(stalls, 99):.1f} ms; {beside(quiet)}"
    bars.say(f"       merge by ctl, process included: median {statistics.median(merged):.0f} ms; a client waits {text}")


def two(cluster):
    found = pairs(cluster, "halves")
    return found if len(found) == 2 and all(leader for leader, _ in found) else None


def transfer(cluster, bars):
    """One region's leadership goes from store to store."""
    session = tables.connect(cluster, 0)
    tables.create(session, "office", ROWS)
    stores = [cluster.store(n) for n in range(3)]
    watch, took = Watch(), []
    with load.Load(cluster, [0], "office", (1, ROWS), RATE, CLIENTS) as paced:
        time.sleep(3)
        for n in range(ROUNDS):
            [(_, region)] = pairs(cluster, "office")
            to = stores[(n + 1) % 3]
            took.append(watch.during(lambda: cluster.ctl("region", "transfer-leader", str(region), str(to)))[1])
        done, errors = paced.done(time.time()), paced.errors()
    bars.holds("no client error while leaderships move", not errors, "; ".join(errors[:3]))
    stalls, quiet = watch.stalls(done)
    text = f"median {statistics.median(stalls):.1f}; {beside(quiet)}; the command {statistics.median(took):.0f} ms, process included"
    bars.bar("p99 of what a client waits at a hand-over", percentile(stalls, 99), 20, "ms", text)


def move(cluster, bars):
    """A region of 64 MiB to a fourth node and back, beside a paced load on another region."""
    session = tables.connect(cluster, 0)
    session.execute("CREATE TABLE heavy (id bigint PRIMARY KEY, v text) SPLIT INTO 1")
    tables.create(session, "light", ROWS)
    rows = MOVED_BYTES // ROW_BYTES
    for part in range(0, rows, rows // FILLS):
        tables.fill(session, "heavy", ((i, os.urandom(ROW_BYTES // 2).hex()) for i in range(part, part + rows // FILLS)))
    fourth = cluster.store(cluster.join())
    [region] = tables.regions_of(cluster, "heavy")
    wait_for("PD to know its size", 60, lambda: tables.regions_of(cluster, "heavy")[0]["bytes"] >= MOVED_BYTES * 0.9)
    home = cluster.store(2)
    watch, took = Watch(), []
    with load.Load(cluster, [0], "light", (1, ROWS), RATE, CLIENTS) as paced:
        time.sleep(3)
        for n in range(MOVES):
            source, target = (home, fourth) if n % 2 == 0 else (fourth, home)
            verb = ["region", "move", str(region["id"]), "--from", str(source), "--to", str(target)]
            took.append(watch.during(lambda: cluster.ctl(*verb))[1] / 1000)
            time.sleep(2)
        done, errors = paced.done(time.time()), paced.errors()
    size = tables.regions_of(cluster, "heavy")[0]["bytes"] >> 20
    bars.holds("no client error while a region moves", not errors, "; ".join(errors[:3]))
    bars.bar("move of a 64 MiB region, the slowest", max(took), 5, "s", f"median {statistics.median(took):.2f}, of {MOVES}; {size} MiB by PD")
    stalls, quiet = watch.stalls(done)
    bars.say(f"       a client of another region waits {max(stalls):.1f} ms at most; {beside(quiet)}")
