"""A thousand regions whose leader's node dies, and ten thousand that nobody uses."""

import concurrent.futures
import contextlib
import os
import pathlib
import statistics
import threading
import time
import urllib.request

import psycopg

from lives import tables
from lives.bars import percentile, wait_for

WRITERS = 16
FAILED_OVER = 1_000
IDLE = 10_000
# Of idleness that is measured.
IDLE_SECONDS = 20
PATIENCE_SECONDS = 300
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def sweep(cluster, nodes, table, ids, deadline_seconds=PATIENCE_SECONDS):
    """Writes one row of every region, by several writers through `nodes`; when each was acknowledged, s from now."""
    started, acknowledged, failed = time.monotonic(), [], []

    def write(seat):
        session = None
        for row in ids[seat::WRITERS]:
            while True:
                try:
                    session = session or tables.connect(cluster, nodes[seat % len(nodes)])
                    session.execute(f"UPDATE {table} SET n = n + 1 WHERE id = %s", (row,), prepare=True)
                    acknowledged.append(time.monotonic() - started)
                    break
                except psycopg.Error as error:
                    if session is not None and session.closed:
                        session = None
                    if time.monotonic() - started > deadline_seconds:
                        failed.append(f"row {row}: {error}")
                        return

    threads = [threading.Thread(target=write, args=(seat,)) for seat in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"not written within {deadline_seconds} s: {failed[:3]}")
    return sorted(acknowledged)


def failover(cluster, bars):
    """All of a thousand regions are led by a node that is killed: while they are used, and while they sleep."""
    victim = next(n for n in (2, 1) if n != cluster.pd_leader())
    others = [n for n in range(3) if n != victim]
    session = tables.connect(cluster, others[0])
    tables.create(session, "thousand", 1)
    [region] = tables.regions_of(cluster, "thousand")
    store = cluster.store(victim)
    cluster.ctl("region", "transfer-leader", str(region["id"]), str(store))
    started = time.monotonic()
    rows = FAILED_OVER * 10
    tables.cut(session, "thousand", tables.borders(rows, FAILED_OVER))
    bars.say(f"       {FAILED_OVER} regions made in {time.monotonic() - started:.1f} s")
    tables.fill(session, "thousand", ((row, 0) for row in range(2, rows + 1)))
    ids = [1 + rows * n // FAILED_OVER for n in range(FAILED_OVER)]
    for state in ("asleep", "in use"):
        all_led_by(cluster, store, others[0])
        if state == "asleep":
            asleep(cluster, range(3), FAILED_OVER)
            base = ""
        else:
            sweep(cluster, others, "thousand", ids)
            base = f"; the same writes with all nodes take {sweep(cluster, others, 'thousand', ids)[-1]:.2f} s"
        cluster.kill(victim)
        took = sweep(cluster, others, "thousand", ids)
        text = f"first {took[0]:.2f}, median {statistics.median(took):.2f}{base}"
        bars.bar(f"last of {FAILED_OVER:,} regions, {state}, written after kill -9", took[-1], 3, "s", text)
        cluster.restart(victim)
        wait_for("all replicas", PATIENCE_SECONDS, lambda: metric(cluster, victim, "flaredb_store_regions") > FAILED_OVER)
        cluster.ctl("cluster", "wait-ready", "--timeout", str(PATIENCE_SECONDS))


def all_led_by(cluster, store, through):
    """Hands over what another store leads of the thousand."""
    def hand_over(region):
        verb = ["region", "transfer-leader", region["id"], store]
        wait_for(f"{' '.join(map(str, verb))}", PATIENCE_SECONDS, lambda: cluster.ask(through, *verb)[0])

    others = [r for r in tables.regions_of(cluster, "thousand") if r["leader_store"] != store]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(hand_over, others))


def metric(cluster, node, name):
    """The sum of a metric over its labels."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.http[node]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))
    return 0


def asleep(cluster, nodes, regions):
    """Waits until as many replicas sleep on each of the nodes; how long that took, s."""
    fewest = lambda: min(metric(cluster, n, "flaredb_store_regions_hibernating") for n in nodes)
    return wait_for(f"{regions} replicas to fall asleep", PATIENCE_SECONDS, lambda: fewest() >= regions, every=1)[1]


def usage(cluster, node):
    """CPU seconds and bytes of memory of a node's process."""
    stat = pathlib.Path(f"/proc/{cluster.processes[node].pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(t) for t in stat[11:13]) / TICKS, int(stat[21]) * PAGE


def rest(cluster):
    """Of each node: percent of a core while nothing is asked of the cluster, and memory."""
    before = [usage(cluster, n)[0] for n in range(3)]
    time.sleep(IDLE_SECONDS)
    after = [usage(cluster, n) for n in range(3)]
    return [(cpu - old) / IDLE_SECONDS * 100 for (cpu, _), old in zip(after, before)], [memory for _, memory in after]


def percents(values):
    return " / ".join(f"{v:.1f}" for v in values)


def idle(cluster, bars):
    """Three stores hold 1,000 and then 10,000 regions that nobody uses, all led by the first; then one, and all, start again
    with them."""
    session = tables.connect(cluster, 0)
    base_cpu, base_memory = rest(cluster)
    bars.say(f"       base line: {percents(base_cpu)} % of a core, {percents([m / 2**20 for m in base_memory])} MiB")
    tables.create(session, "sleepers", 1)
    rows, made = IDLE, 1
    for wanted in (1_000, IDLE):
        keys = [1 + rows * n // IDLE for n in range(1, IDLE)][made - 1 : wanted - 1]
        started = time.monotonic()
        again = tables.cut(session, "sleepers", keys)
        bars.say(f"       {wanted - made} regions made in {time.monotonic() - started:.1f} s, {again} statements repeated")
        made = wanted
        settled = settle(cluster, wanted)
        cpu, memory = rest(cluster)
        each = [(m - b) / wanted / 1024 for m, b in zip(memory, base_memory)]
        beside = f"{percents(cpu)} on the three nodes; without regions {percents(base_cpu)}; at rest after {settled:.0f} s"
        if wanted == IDLE:
            bars.bar(f"CPU of a store with {wanted:,} idle regions", max(cpu), 2, "% of a core", beside)
            bars.bar(f"memory of each of {wanted:,} idle regions", max(each), 50, "KiB", f"{percents(each)} on the three nodes")
        else:
            bars.say(f"       {wanted:,} idle regions: {beside} %; memory {percents(each)} KiB each")
    restart(cluster, bars, base_memory)


def settle(cluster, regions):
    """Until everything sleeps."""
    started = time.monotonic()
    wait_for("PD to have nothing to do", PATIENCE_SECONDS, lambda: not cluster.ctl("operator", "list"), every=1)
    asleep(cluster, range(3), regions)
    return time.monotonic() - started


def restart(cluster, bars, base_memory):
    victim = next(n for n in (2, 1) if n != cluster.pd_leader())
    cluster.kill(victim)
    started = time.monotonic()
    cluster.restart(victim)
    wait_for("the node to serve SQL", PATIENCE_SECONDS, lambda: answers(cluster, victim, "SELECT 1"), every=0.02)
    sql = time.monotonic() - started
    wait_for("all of its replicas", PATIENCE_SECONDS, lambda: metric(cluster, victim, "flaredb_store_regions") > IDLE, every=0.05)
    took = time.monotonic() - started
    bars.bar(f"restart of a store with {IDLE:,} regions after kill -9", took, 10, "s", f"SQL after {sql:.2f}")
    cluster.kill(0, 1, 2)
    started = time.monotonic()
    cluster.restart(0, 1, 2)
    write = "UPDATE sleepers SET n = n + 1 WHERE id = 1"
    wait_for("a write", PATIENCE_SECONDS, lambda: answers(cluster, 0, write), every=0.05)
    first = time.monotonic() - started
    cluster.ctl("cluster", "wait-ready", "--timeout", str(PATIENCE_SECONDS))
    ready = time.monotonic() - started
    bars.bar("restart of all three, first write", first, 10, "s", f"every one of {IDLE:,} regions led and known to PD after {ready:.1f}")
    settle(cluster, IDLE)
    cpu, memory = rest(cluster)
    each = [(m - b) / IDLE / 1024 for m, b in zip(memory, base_memory)]
    bars.say(f"       at rest after that: {percents(cpu)} % of a core, {percents(each)} KiB a region")


def answers(cluster, node, statement):
    with contextlib.suppress(psycopg.Error):
        with tables.connect(cluster, node) as session:
            session.execute(statement)
            return True
    return False
