"""Figures, and whether they keep what issue "regions" promises."""

import time


class Bars:
    def __init__(self):
        self.missed = []

    def say(self, text):
        print(f"  {text}", flush=True)

    def bar(self, name, value, most, unit, beside=""):
        """`value` must not be above `most`; `beside` says what the same run shows without."""
        held = value <= most
        if not held:
            self.missed.append(name)
        beside = f" ({beside})" if beside else ""
        self.say(f"{'PASS  ' if held else 'MISSED'} {name}: {value:,.4g} {unit}, at most {most:,.4g}{beside}")

    def holds(self, name, held, detail=""):
        if not held:
            self.missed.append(name)
        self.say(f"{'PASS  ' if held else 'MISSED'} {name}{': ' if detail else ''}{detail}")


def percentile(values, part):
    """The smallest of `values` that at least `part` of them are not above."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-len(ordered) * part // 100) - 1))]


def wait_for(what, seconds, condition, every=0.1):
    """Polls until `condition` gives something, and returns that and how long it took, s."""
    started = time.monotonic()
    while True:
        found = condition()
        if found:
            return found, time.monotonic() - started
        if time.monotonic() - started > seconds:
            raise SystemExit(f"not within {seconds} s: {what}")
        time.sleep(every)
