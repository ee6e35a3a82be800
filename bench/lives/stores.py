"""Nodes that come, leave and die under a paced load."""

import collections
import threading
import time

from lives import load, tables
from lives.bars import percentile, wait_for

TABLE = "spread"
ROWS = 40_000
REGIONS = 200
CLIENTS = 4
# Of what the machine can do.
PACE = 0.25
QUIET_SECONDS = 15
BALANCED_SECONDS = 120
# Silence after which a node is given up.
DOWN_SECONDS = 15
FLAGS = ["--down-after", str(DOWN_SECONDS)]


def rate(cluster, bars):
    most = load.most(cluster, [0, 1, 2], TABLE, (1, ROWS), CLIENTS)
    bars.say(f"       unpaced: {most:,.0f} writes/s; paced at {PACE:.0%} of that")
    return max(50, int(most * PACE))


def spread(cluster):
    """Replicas and leaderships by store."""
    replicas, leaders = collections.Counter(), collections.Counter()
    for region in cluster.ctl("region", "list"):
        replicas.update(store_of(peer) for peer in region["peers"])
        leaders[region["leader_store"]] += 1
    return replicas, leaders


def store_of(peer):
    return int(peer.split("@s")[1].split(" ")[0])


def uneven(counts, stores):
    """The largest distance from the mean, as a part of it."""
    mean = sum(counts[s] for s in stores) / len(stores)
    return max(abs(counts[s] - mean) for s in stores) / mean


def seconds_p99(done, begin, end):
    """The p99 of each second between the two instants."""
    seconds = collections.defaultdict(list)
    for d in done:
        if begin <= d.end < end:
            seconds[int(d.end - begin)].append(d.took_ms)
    return [percentile(took, 99) for took in seconds.values()]


def judge(bars, name, done, quiet, busy):
    base = percentile([d.took_ms for d in done if quiet[0] <= d.end < quiet[1]], 99)
    worst = sorted(seconds_p99(done, *busy))
    text = f"{worst[-1]:.0f} ms, median second {percentile(worst, 50):.1f}; quiet part {base:.1f} ms"
    bars.bar(f"{name}: p99 of the worst second", worst[-1] / base, 10, "times the quiet part's", text)


def out(cluster, bars):
    """A fourth and a fifth node join a cluster of 200 regions."""
    session = tables.connect(cluster, 0)
    tables.create(session, TABLE, ROWS, REGIONS)
    wait_for("the first three to be even", 120, lambda: max(uneven(c, [1, 2, 3]) for c in spread(cluster)) < 0.1, every=1)
    pace = rate(cluster, bars)
    with load.Load(cluster, [0, 1, 2], TABLE, (1, ROWS), pace, CLIENTS) as paced:
        time.sleep(3)
        quiet = (time.time(), time.time() + QUIET_SECONDS)
        time.sleep(QUIET_SECONDS)
        joined = time.time()
        stores = [1, 2, 3, cluster.store(cluster.join()), cluster.store(cluster.join())]
        took = even(cluster, bars, stores)
        done, errors = paced.done(time.time()), paced.errors()
    replicas, leaders = spread(cluster)
    text = f"replicas {[replicas[s] for s in stores]}, leaders {[leaders[s] for s in stores]}"
    bars.bar("five stores even within 10 %", took, BALANCED_SECONDS, "s", text)
    bars.holds("no client error while they join", not errors, "; ".join(errors[:3]))
    judge(bars, "scale out", done, quiet, (joined, joined + took))
    bars.say(f"       {len(done)} writes, {pace}/s")


def even(cluster, bars, stores):
    started = time.monotonic()
    while True:
        replicas, leaders = spread(cluster)
        if max(uneven(replicas, stores), uneven(leaders, stores)) <= 0.1:
            return time.monotonic() - started
        if time.monotonic() - started > 2 * BALANCED_SECONDS:
            bars.say(f"       uneven: replicas {[replicas[s] for s in stores]}, leaders {[leaders[s] for s in stores]}")
            return time.monotonic() - started
        time.sleep(1)


class Lowest:
    """Looks at all regions again and again: how few voters any had."""

    def __init__(self, cluster):
        self.cluster, self.voters, self.looks, self.stop = cluster, 9, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.stop.wait(0.5):
            said, _ = self.cluster.ask(0, "region", "list")
            for region in said or []:
                voters = sum(not peer.endswith(" learner") for peer in region["peers"])
                self.voters = min(self.voters, voters)
            self.looks += said is not None

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def drain(cluster, bars):
    """One of five is drained and removed; then another dies for good."""
    gone, dead = 3, 4
    leaving, lost = cluster.store(gone), cluster.store(dead)
    pace = rate(cluster, bars)
    with load.Load(cluster, [0, 1, 2], TABLE, (1, ROWS), pace, CLIENTS) as paced:
        time.sleep(3)
        quiet = (time.time(), time.time() + QUIET_SECONDS)
        time.sleep(QUIET_SECONDS)
        began = time.time()
        with Lowest(cluster) as lowest:
            cluster.ctl("store", "remove", str(leaving))
        ended = time.time()
        cluster.processes[gone].wait(60)
        done, errors = paced.done(time.time()), paced.errors()
        replicas, _ = spread(cluster)
        bars.holds("no client error while a node is drained and removed", not errors, "; ".join(errors[:3]))
        bars.holds("no region had fewer than 3 voters meanwhile", lowest.voters >= 3, f"{lowest.voters} in {lowest.looks} looks")
        bars.holds("nothing is left on it", replicas[leaving] == 0, f"removed after {ended - began:.1f} s, its process ended")
        judge(bars, "drain", done, quiet, (began, ended))
        killed = time.monotonic()
        cluster.kill(dead)
        whole = lambda: is_whole(cluster, lost)
        took = wait_for("every region to have 3 replicas again", 300, whole, every=0.5)[1]
        errors = paced.errors()
    bars.holds(
        "kill -9 for good: every region at 3 replicas again",
        True,
        f"{took:.1f} s after it, {DOWN_SECONDS} of them the limit of silence; {len(errors)} client errors",
    )


def is_whole(cluster, lost):
    said, _ = cluster.ask(0, "region", "list")
    return said and all(
        len(r["peers"]) == 3 and not any(" " in p or store_of(p) == lost for p in r["peers"]) for r in said
    )
