"""Regions that never rest under a bank whose sum must stay: moves, hand-overs, splits and merges at random."""

import collections
import contextlib
import random
import threading
import time

import psycopg

from lives import tables
from lives.bars import wait_for

TABLE = "bank"
ACCOUNTS = 4_000
EACH = 100
REGIONS = 16
WRITERS = 4
# Transfers a second of one writer, about.
PACE = 25
CHANGERS = 4
# Regions stay between, so that there is always something to split and to merge.
FEWEST, MOST = 12, 32
RETRIED = {"40001", "40P01"}


class Bank:
    """Writers and an auditor, until told to stop."""

    def __init__(self, cluster):
        self.cluster, self.stop = cluster, threading.Event()
        self.transfers, self.audits, self.repeats, self.errors, self.wrong = 0, 0, 0, collections.Counter(), []
        self.threads = [threading.Thread(target=self.write, args=(n,)) for n in range(WRITERS)]
        self.threads.append(threading.Thread(target=self.audit))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def sessions(self, node, work):
        while not self.stop.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                with tables.connect(self.cluster, node) as session:
                    while not self.stop.is_set():
                        try:
                            work(session)
                        except psycopg.Error as error:
                            if error.sqlstate in RETRIED:
                                self.repeats += 1
                            else:
                                self.errors[f"{error.sqlstate}: {str(error).splitlines()[0]}"] += 1
                            if session.closed:
                                break

    def write(self, seat):
        chance = random.Random(seat)

        def transfer(session):
            source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
            with session.transaction():
                session.execute(f"UPDATE {TABLE} SET n = n - 1 WHERE id = %s", (source,), prepare=True)
                session.execute(f"UPDATE {TABLE} SET n = n + 1 WHERE id = %s", (target,), prepare=True)
            self.transfers += 1
            self.stop.wait(chance.expovariate(PACE))

        self.sessions(seat % 3, transfer)

    def audit(self):
        def look(session):
            found = session.execute(f"SELECT count(*), sum(n) FROM {TABLE}").fetchone()
            self.audits += 1
            if (found[0], int(found[1])) != (ACCOUNTS, ACCOUNTS * EACH):
                self.wrong.append(found)
            self.stop.wait(1)

        self.sessions(1, look)


class Changers:
    """Threads that change regions by `ctl`, each others' left alone."""

    def __init__(self, cluster, stores):
        self.cluster, self.stores, self.stop = cluster, stores, threading.Event()
        self.lock, self.busy = threading.Lock(), set()
        # Failed: operators. Refused: PD had begun something of its own between the look and the command.
        self.done, self.failed, self.refused = collections.Counter(), [], []
        # How ids look in keys: from a border between two regions.
        border = next(r["start"] for r in tables.regions_of(cluster, TABLE)[1:])
        self.prefix = border[:-16]
        self.threads = [threading.Thread(target=self.change, args=(random.Random(n),)) for n in range(CHANGERS)]

    def run(self, seconds):
        for thread in self.threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def change(self, chance):
        while not self.stop.is_set():
            with self.lock:
                picked = self.pick(chance)
                self.busy |= picked[1] if picked else set()
            if picked is None:
                self.stop.wait(0.05)
                continue
            kind, regions, verb = picked
            said, reason = self.cluster.ask(chance.randrange(3), "region", *verb)
            with self.lock:
                self.busy -= regions
                self.done[kind] += said is not None
                if said is None:
                    kept = self.refused if "PD refused" in reason else self.failed
                    kept.append(f"{kind}: region {' '.join(map(str, verb))}: {reason}")

    def pick(self, chance):
        """Something to do to regions that nobody else changes: what, to which, how it is said."""
        said, _ = self.cluster.ask(0, "region", "list", "--table", TABLE)
        free = [r for r in said or [] if r["id"] not in self.busy and r["leader_store"] and not any(" " in p for p in r["peers"])]
        if not free:
            return None
        kind = chance.choice(["move", "move", "transfer", "transfer", "border"])
        region = chance.choice(free)
        stores = {int(peer.split("@s")[1]) for peer in region["peers"]}
        if kind == "move":
            source, target = chance.choice(sorted(stores)), chance.choice(sorted(self.stores - stores))
            return kind, {region["id"]}, ["move", region["id"], "--from", source, "--to", target]
        if kind == "transfer":
            target = chance.choice(sorted(stores - {region["leader_store"]}))
            return kind, {region["id"]}, ["transfer-leader", region["id"], target]
        if len(said) < FEWEST or (len(said) < MOST and chance.random() < 0.5):
            return self.split(region)
        return self.merge(said, region)

    def split(self, region):
        first, last = self.row(region["start"], 1), self.row(region["end"], ACCOUNTS)
        if last - first < 2:
            return None
        key = self.prefix + f"{(first + last) // 2 + 2**63:016x}"
        return "split", {region["id"]}, ["split", region["id"], "--key", key]

    def row(self, key, otherwise):
        return int(key[-16:], 16) - 2**63 if key.startswith(self.prefix) and len(key) == len(self.prefix) + 16 else otherwise

    def merge(self, said, region):
        after = next((r for r in said if r["start"] == region["end"] and r["id"] not in self.busy), None)
        if after is None:
            return None
        return "merge", {region["id"], after["id"]}, ["merge", after["id"], region["id"]]


def churn(cluster, bars, minutes):
    session = tables.connect(cluster, 0)
    session.execute(f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, n bigint) SPLIT INTO 1")
    tables.fill(session, TABLE, ((row, EACH) for row in range(1, ACCOUNTS + 1)))
    tables.cut(session, TABLE, tables.borders(ACCOUNTS, REGIONS))
    stores = {cluster.store(n) for n in range(3)} | {cluster.store(cluster.join())}
    with Bank(cluster) as bank:
        changers = Changers(cluster, stores)
        changers.run(minutes * 60)
    report(cluster, bars, bank, changers)


def report(cluster, bars, bank, changers):
    done, failed = sum(changers.done.values()), len(changers.failed)
    counts = ", ".join(f"{n} {kind}s" for kind, n in sorted(changers.done.items()))
    bars.holds("99 of 100 operators succeed", done and done / (done + failed) >= 0.99, f"{counts}; {failed} failed, {len(changers.refused)} refused")
    for what in changers.failed[:20] + changers.refused[:3]:
        bars.say(f"       {what}")
    text = f"{bank.transfers} transfers, {bank.repeats} repeated after a conflict, {bank.audits} sums"
    bars.holds("the bank's sum stays", bank.audits > 0 and not bank.wrong, f"{text} {bank.wrong[:3] or ''}")
    bars.holds("no client error", not bank.errors, str(dict(bank.errors)) if bank.errors else "")
    wait_for("PD to have nothing to do", 120, lambda: cluster.ctl("operator", "list") == [], every=1)
    ended = collections.Counter((op["rule"], op["state"]) for op in cluster.ctl("operator", "list", "--all"))
    bars.say("       PD's last operators: " + ", ".join(f"{rule} {state} {n}" for (rule, state), n in sorted(ended.items())))
    said, reason = cluster.ask(0, "region", "verify", "--all")
    text = f"{len(said)} of them" if said else reason[-500:]
    bars.holds("all regions verify equal on all their stores", said is not None, text)
