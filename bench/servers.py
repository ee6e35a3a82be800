"""The two systems: three processes of FlareDB; PostgreSQL with two standbys of which any one must confirm."""

import glob
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time

READY_SECONDS = 60
TICKS = os.sysconf("SC_CLK_TCK")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def cpu_seconds(root_pids):
    """User and system time of these processes and all below them, ended children included."""
    parents, times = {}, {}
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            text = pathlib.Path(stat).read_text()
        except OSError:
            continue  # Ended in between; its parent has the time.
        pid, rest = int(text.split(" ", 1)[0]), text.rsplit(")", 1)[1].split()
        parents[pid] = int(rest[1])
        times[pid] = sum(int(t) for t in rest[11:15]) / TICKS
    def belongs(pid):
        while pid in parents:
            if pid in root_pids:
                return True
            pid = parents[pid]
        return False
    return sum(seconds for pid, seconds in times.items() if belongs(pid))


SCHEDULERS = ("balance-leader", "balance-region", "hot-region")


class FlareDB:
    """Three founders, and those that `join` brings. `pinned`: PD's balancing is off, and node 1 leads what there is at first.
    `flags` go to every node."""

    name = "FlareDB"

    def __init__(self, folder, flags=(), pinned=True):
        self.folder, self.flags, self.pinned = folder, list(flags), pinned
        self.processes = []

    def __enter__(self):
        binary = os.environ.get("FLAREDB_BIN") or "target/release/flaredb"
        self.binary = str(pathlib.Path(binary).resolve())
        self.folder.mkdir()
        ports = free_ports(9)
        self.grpc, self.sql, self.http = ports[:3], ports[3:6], ports[6:]
        self.founders = self.reached_at()
        self.processes = [self.start(n) for n in range(3)]
        self.ctl("cluster", "wait-ready", "--timeout", str(READY_SECONDS))
        if self.pinned:
            # Clients go to the node that leads: as PostgreSQL's do, which has one primary for everything.
            self.leader = self.store(0)
            # And there the leaderships stay.
            self.switch("disable", *SCHEDULERS)
            for region in self.ctl("region", "list"):
                self.lead(region["id"])
        return self

    def reached_at(self):
        """Where the founders find each other."""
        return list(self.grpc)

    def advertised(self, n):
        """Flags that say where others find a node, if that is not where it listens."""
        return []

    def switch(self, verb, *schedulers):
        for scheduler in schedulers:
            self.ctl("scheduler", verb, scheduler)

    def join(self):
        """One more node; its number."""
        n, ports = len(self.processes), free_ports(3)
        for known, port in zip((self.grpc, self.sql, self.http), ports):
            known.append(port)
        self.processes.append(self.start(n))
        return n

    def store(self, n):
        """The store id of a node."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            for store in self.ctl("store", "list"):
                if store["sql"] == f"127.0.0.1:{self.sql[n]}":
                    return store["id"]
            time.sleep(0.1)
        raise SystemExit(f"FlareDB: node {n + 1} did not join within {READY_SECONDS} s")

    def lead(self, region):
        """PD itself moves with region 1, and a new PD needs a moment to hear of all leaders."""
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self.ctl("region", "transfer-leader", str(region), str(self.leader))
            except SystemExit:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()

    def start(self, n):
        join = ",".join(f"127.0.0.1:{p}" for p in self.founders)
        command = [self.binary, "start", "--data-dir", str(self.folder / f"node{n + 1}"), "--join", join]
        command += ["--listen", f"127.0.0.1:{self.grpc[n]}", "--sql-listen", f"127.0.0.1:{self.sql[n]}"]
        command += ["--http-listen", f"127.0.0.1:{self.http[n]}", "--log", "warn", *self.advertised(n), *self.flags]
        with open(self.folder / f"node{n + 1}.log", "a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, *nodes):
        """kill -9, all before the first is waited for."""
        for n in nodes:
            self.processes[n].kill()
        for n in nodes:
            self.processes[n].wait()

    def restart(self, *nodes):
        for n in nodes:
            self.processes[n] = self.start(n)

    def pd_leader(self):
        address = self.ctl("pd", "leader")["address"]
        return self.grpc.index(int(address.rsplit(":", 1)[1]))

    def ctl(self, *verb):
        reasons = []
        for n in range(len(self.grpc)):
            said, reason = self.ask(n, *verb)
            if said is not None:
                return said
            reasons.append(reason)
        raise SystemExit(f"FlareDB: ctl {' '.join(map(str, verb))}: {'; '.join(reasons)}")

    def ask(self, n, *verb):
        """What `ctl` says through one node, and else the reason."""
        command = [self.binary, "ctl", "--endpoint", f"127.0.0.1:{self.grpc[n]}", "--output", "json", *map(str, verb)]
        done = subprocess.run(command, capture_output=True, text=True)
        return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr.strip())

    def sql_port(self):
        return self.sql[0]

    def cpu_seconds(self):
        return cpu_seconds({p.pid for p in self.processes})


class Postgres:
    name = "PostgreSQL"

    def __init__(self, folder):
        self.folder = folder
        self.pids = set()

    def __enter__(self):
        self.folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self.bin = max(glob.glob("/usr/lib/postgresql/*/bin"), default=None, key=lambda p: int(p.split("/")[-2]))
        if self.bin is None:
            raise SystemExit("PostgreSQL's server is missing: apt-get install postgresql")
        self.ports = free_ports(3)
        primary = self.folder / "primary"
        self.do("initdb", "-D", primary, "-A", "trust", "-U", "postgres", "--no-sync")
        names = ", ".join(f"standby{n}" for n in (1, 2))
        with open(primary / "postgresql.conf", "a") as conf:
            conf.write("wal_level = replica\nmax_wal_senders = 4\nmax_connections = 100\nshared_buffers = 256MB\n")
            conf.write("max_wal_size = 4GB\n")
        self.start(primary, self.ports[0])
        for n in (1, 2):
            standby = self.folder / f"standby{n}"
            source = f"host=127.0.0.1 port={self.ports[0]} user=postgres application_name=standby{n}"
            self.do("pg_basebackup", "-D", standby, "-R", "--checkpoint=fast", "--no-sync", "-d", source)
            self.start(standby, self.ports[n])
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({names})'")
        self.sql("SELECT pg_reload_conf()")
        self.wait_for("SELECT count(*) = 2 FROM pg_stat_replication WHERE sync_state = 'quorum'")
        return self

    def __exit__(self, *_):
        for folder in ("standby1", "standby2", "primary"):
            if (self.folder / folder / "postmaster.pid").exists():
                self.do("pg_ctl", "-D", self.folder / folder, "-m", "immediate", "stop")

    def do(self, program, *arguments):
        command = [f"{self.bin}/{program}", *map(str, arguments)]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/")
        if done.returncode != 0:
            raise SystemExit(f"PostgreSQL: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return done.stdout

    def start(self, folder, port):
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        log = self.folder / f"{folder.name}.log"
        # pg_ctl's child keeps what it inherits open: it must not be our pipe.
        command = [f"{self.bin}/pg_ctl", "-D", str(folder), "-l", str(log), "-o", options, "-w", "start"]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        self.pids.add(int((folder / "postmaster.pid").read_text().split()[0]))

    def sql(self, statement):
        return self.do("psql", "-h", "127.0.0.1", "-p", self.ports[0], "-U", "postgres", "-Atqc", statement).strip()

    def wait_for(self, condition):
        end = time.monotonic() + READY_SECONDS
        while self.sql(condition) != "t":
            if time.monotonic() > end:
                raise SystemExit(f"PostgreSQL: not within {READY_SECONDS} s: {condition}")
            time.sleep(0.1)

    def sql_port(self):
        return self.ports[0]

    def cpu_seconds(self):
        return cpu_seconds(self.pids)
