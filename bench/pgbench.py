"""Runs pgbench and reads what it prints."""

import dataclasses
import os
import re
import statistics
import subprocess
import tempfile
import time

COMMITS = 2000


@dataclasses.dataclass
class Result:
    tps: float
    cpu_us: float  # of all server processes, per transaction


def _run(system, *arguments):
    command = ["pgbench", "-h", "127.0.0.1", "-p", str(system.sql_port()), "-U", "postgres", *arguments, "postgres"]
    environment = {**os.environ, "PGOPTIONS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{system.name}: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _number(pattern, text, default=None):
    found = re.search(pattern, text)
    if found is None and default is None:
        raise SystemExit(f"pgbench did not print {pattern!r}:\n{text}")
    return float(found.group(1)) if found else default


def initialise(system, scale):
    started = time.monotonic()
    _run(system, "-i", "-q", "-s", str(scale))
    return time.monotonic() - started


def run(system, workload, mode, clients, seconds):
    before = system.cpu_seconds()
    options = ["-n", "-b", workload, "-M", mode, "-c", str(clients), "-j", "2", "-T", str(seconds)]
    out = _run(system, *options)
    cpu = system.cpu_seconds() - before
    transactions = _number(r"number of transactions actually processed: (\d+)", out)
    failed = _number(r"number of failed transactions: (\d+)", out, 0)
    if failed:
        raise SystemExit(f"{system.name}: {failed:.0f} transactions failed in {workload}")
    return Result(
        tps=_number(r"tps = ([\d.]+) \(without initial connection time\)", out),
        cpu_us=cpu * 1e6 / transactions,
    )


def execute(system, *statements):
    psql = ["psql", "-h", "127.0.0.1", "-p", str(system.sql_port()), "-U", "postgres", "-qc"]
    for statement in statements:
        subprocess.run([*psql, statement], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def latency_ms(system, *statements, **numbers):
    """Median milliseconds of a transaction of one connection, from pgbench's own log of each. `numbers` are its variables: drawn
    from these ranges."""
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "script.sql")
        with open(script, "w") as file:
            drawn = (f"\\set {name} random({first}, {last})" for name, (first, last) in numbers.items())
            file.write("\n".join([*drawn, *(f"{statement};" for statement in statements), ""]))
        prefix = os.path.join(folder, "log")
        _run(system, "-n", "-f", script, "-M", "prepared", "-c", "1", "-t", str(COMMITS), "-l", f"--log-prefix={prefix}")
        [name] = [name for name in os.listdir(folder) if name.startswith("log")]
        with open(os.path.join(folder, name)) as log:
            return statistics.median(int(line.split()[2]) for line in log) / 1000
