"""Paced clients, and how long each of their transactions took from the moment it was due.

pgbench at a given rate writes a line per transaction: what had to wait because earlier ones stood still counts as waiting.
"""

import contextlib
import dataclasses
import pathlib
import re
import subprocess
import tempfile
import time

# pgbench writes its log in pieces of 4 KiB: a slow client's last second comes late.
FLUSH_SECONDS = 60

UPDATE = """\\set id random({first}, {last})
UPDATE {table} SET n = n + 1 WHERE id = :id;
"""


@dataclasses.dataclass
class Done:
    """One transaction; wall clock, s."""

    due: float
    end: float

    @property
    def took_ms(self):
        return (self.end - self.due) * 1000


def options(port, script, clients):
    return ["pgbench", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-n", "-f", script, "-M", "prepared", "-c", str(clients)]


class Load:
    """Updates of random rows of `table`, `rate` a second in all, through the nodes in turn. A context."""

    def __init__(self, cluster, nodes, table, rows, rate, clients=4):
        self.cluster, self.nodes, self.rate, self.clients = cluster, nodes, rate, clients
        self.text = UPDATE.format(table=table, first=rows[0], last=rows[1])

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="flaredb-load-")))
        script = self.folder / "script.sql"
        script.write_text(self.text)
        self.processes = []
        for node in self.nodes:
            command = options(self.cluster.sql[node], str(script), self.clients)
            command += ["-T", "100000", "-R", str(self.rate / len(self.nodes)), "-l", f"--log-prefix={self.folder}/log{node}"]
            with open(self.folder / f"errors{node}", "w") as errors:
                self.processes.append(subprocess.Popen([*command, "postgres"], stdout=subprocess.DEVNULL, stderr=errors))
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
        self.stack.close()

    def errors(self):
        """What clients were told, one line each."""
        said = []
        for node in self.nodes:
            for line in (self.folder / f"errors{node}").read_text().splitlines():
                if "error" in line.lower():
                    said.append(f"node {node + 1}: {line}")
        return said + [f"{failed} transactions failed" for failed in [self._read()[1]] if failed]

    def done(self, until=None):
        """All transactions that have ended, in the order of their ends; waits until the log reaches `until` (wall clock)."""
        end = time.monotonic() + FLUSH_SECONDS
        while True:
            found, _, reached = self._read()
            if until is None or reached >= until or time.monotonic() > end:
                return sorted(found, key=lambda d: d.end)
            if all(p.poll() is not None for p in self.processes):
                return sorted(found, key=lambda d: d.end)
            time.sleep(0.2)

    def _read(self):
        found, failed, reached = [], 0, []
        for node in self.nodes:
            last = 0.0
            for log in self.folder.glob(f"log{node}.*"):
                # client, number, µs, script, s, µs of the end, µs late; the last line may be cut.
                for line in log.read_text().splitlines()[:-1]:
                    fields = line.split()
                    last = int(fields[4]) + int(fields[5]) / 1e6
                    if fields[2].isdigit():
                        found.append(Done(last - int(fields[2]) / 1e6, last))
                    else:
                        failed += 1
            reached.append(last)
        return found, failed, min(reached)


def worst_ms(done, begin, end):
    """The longest that a transaction took that was under way between the two instants; 0 when none was."""
    return max((d.took_ms for d in done if d.due < end and d.end > begin), default=0.0)


def most(cluster, nodes, table, rows, clients, seconds=5):
    """Transactions a second that the same clients get when nothing paces them."""
    with tempfile.TemporaryDirectory(prefix="flaredb-load-") as folder:
        script = pathlib.Path(folder) / "script.sql"
        script.write_text(UPDATE.format(table=table, first=rows[0], last=rows[1]))
        commands = [[*options(cluster.sql[n], str(script), clients), "-T", str(seconds), "postgres"] for n in nodes]
        started = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for c in commands]
        said = [process.communicate()[0] for process in started]
    found = [re.search(r"tps = ([\d.]+) \(without", text) for text in said]
    if None in found:
        raise SystemExit("pgbench: " + "\n".join(said)[-2000:])
    return sum(float(f.group(1)) for f in found)
