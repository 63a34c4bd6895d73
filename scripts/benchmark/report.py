#!/usr/bin/env python3
"""Makes the report of what run.py has measured: Markdown tables, one JSON file, and plots for the documents.

    report.py --json OUT [--fact KEY=VALUE]... [--docs DIR] [--smoke] PARTY=FILE...

A median is of the repetitions. Whatever failed or was skipped is named with its reason.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Callable

import plot

BASE, PEER = "kernel", "fuse-overlayfs-2"
BEGIN, END = "<!-- results: begin (scripts/bench --write-docs) -->", "<!-- results: end -->"
PARTIES = {"root": "As root", "rootless": "As a plain user, in a user namespace"}


def machine() -> dict[str, str]:
    facts = {"date": time.strftime("%Y-%m-%d"), "kernel": os.uname().release, "processors": str(os.cpu_count())}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            facts["processors"] += " × " + line.split(":", 1)[1].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            facts["memory"] = f"{int(line.split()[1]) / (1 << 20):.0f} GiB"
    return facts


class Party:
    """What was measured as root, or rootless."""

    def __init__(self, name: str, found: dict) -> None:
        self.name, self.found = name, found
        self.candidates: list[dict] = found["candidates"]
        self.workloads: list[dict] = found["workloads"]

    def cell(self, workload: str, candidate: str) -> dict:
        return self.found["cells"].get(workload, {}).get(candidate, {"values": [], "failed": None, "skipped": "not run"})

    def median(self, workload: str, candidate: str) -> float | None:
        """None where there is no figure; a workload that failed once has none."""
        cell = self.cell(workload, candidate)
        return None if cell["failed"] or not cell["values"] else statistics.median(cell["values"])

    def ratio(self, workload: str, candidate: str, base: str) -> float | None:
        value, reference = self.median(workload, candidate), self.median(workload, base)
        return value / reference if value and reference else None

    def mean(self, candidate: str, base: str, belongs: Callable[[dict], bool]) -> tuple[float, int] | None:
        """The geometric mean of the ratios of times, and of how many."""
        chosen = [w["name"] for w in self.workloads if w["unit"] == "s" and belongs(w)]
        ratios = [r for r in (self.ratio(name, candidate, base) for name in chosen) if r]
        return (math.exp(statistics.fmean(map(math.log, ratios))), len(ratios)) if ratios else None

    def has(self, candidate: str) -> bool:
        return any(c["name"] == candidate for c in self.candidates)

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(w["kind"] for w in self.workloads))


def figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio >= 0.95 else f"{ratio:.2f}×"


class Notes:
    """Reasons, each once, and the number that stands for it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def medians(party: Party) -> list[str]:
    notes = Notes()

    def shown(workload: dict, candidate: dict) -> str:
        value = party.median(workload["name"], candidate["name"])
        if value is None:
            cell = party.cell(workload["name"], candidate["name"])
            if cell["failed"]:
                return f"**failed** [{notes.number(cell['failed'])}]"
            return f"— [{notes.number(cell['skipped'])}]" if cell["skipped"] else "—"
        ratio = party.ratio(workload["name"], candidate["name"], BASE)
        text = figure(value) + (f" ({times(ratio)})" if ratio and candidate["name"] != BASE else "")
        return f"**{text}**" if candidate["ours"] else text

    rows = []
    for kind in party.kinds():
        rows.append([f"*{kind}*"] + [""] * len(party.candidates))
        for workload in (w for w in party.workloads if w["kind"] == kind):
            unit = "" if workload["unit"] == "s" else f", {workload['unit']}"
            rows.append([workload["name"] + unit] + [shown(workload, candidate) for candidate in party.candidates])
    lines = table(["workload"] + [candidate["label"] for candidate in party.candidates], rows)
    return lines + [""] + [f"{number}. {text}" for number, text in enumerate(notes.texts, 1)]


def means(party: Party, base: str, label: str) -> list[str]:
    others = [candidate for candidate in party.candidates if candidate["name"] != base]

    def shown(candidate: dict, belongs: Callable[[dict], bool]) -> str:
        found = party.mean(candidate["name"], base, belongs)
        text = f"{times(found[0])} ({found[1]})" if found else "—"
        return f"**{text}**" if candidate["ours"] and found else text

    chosen: dict[str, Callable[[dict], bool]] = {kind: lambda w, kind=kind: w["kind"] == kind for kind in party.kinds()}
    chosen |= {"**core**": lambda w: w["core"], "**all**": lambda w: True}
    rows = [[kind] + [shown(candidate, belongs) for candidate in others] for kind, belongs in chosen.items()]
    return [f"Time against {label}, geometric means (of how many workloads):", ""] + table(
        ["kind"] + [candidate["label"] for candidate in others], rows
    )


def spread(party: Party) -> str | None:
    """How far the repetitions lie apart, over all figures."""
    found = []
    for row in party.found["cells"].values():
        for cell in row.values():
            if len(cell["values"]) > 1 and statistics.median(cell["values"]) > 0:
                found.append((max(cell["values"]) - min(cell["values"])) / statistics.median(cell["values"]))
    if not found:
        return None
    return f"Between the slowest and the fastest repetition of a figure lie {100 * statistics.median(found):.0f} % of it (median over all figures)."


def different_work(party: Party) -> list[str]:
    """A candidate that has done less, or more, than another one: its time is of something else."""
    lines = []
    for candidate in party.candidates:
        found = []
        for workload in party.workloads:
            mine, other = (party.cell(workload["name"], name).get("count") for name in (candidate["name"], BASE))
            if mine and other and mine != other:
                found.append(f"{workload['name']} {mine} for {other}")
        if found:
            lines.append(f"- {candidate['label']} saw another number of entries than the kernel: {', '.join(found)}")
    return lines


def section(party: Party, level: str) -> list[str]:
    count = party.found["repetitions"]
    how = f"median of {count} repetitions" if count > 1 else "one repetition"
    lines = [f"{level} {PARTIES[party.name]}", "", f"Seconds where no unit is named, {how}; in parentheses the ratio to the kernel's overlayfs.", ""]
    lines += medians(party) + [""]
    for base, label in ((BASE, "the kernel's overlayfs"), (PEER, "fuse-overlayfs 2.0")):
        if party.has(base):
            lines += means(party, base, label) + [""]
    if text := spread(party):
        lines += [text, ""]
    remarks = different_work(party) + [f"- {warning}" for warning in party.found["warnings"]]
    return lines + remarks + ([""] if remarks else [])


def describe(facts: dict[str, str]) -> str:
    return "Measured with: " + "; ".join(f"{key} {value}" for key, value in facts.items()) + "."


def write_docs(docs: Path, facts: dict[str, str], parties: list[Party]) -> None:
    document, plots = docs / "PERFORMANCE.md", docs / "performance"
    plots.mkdir(exist_ok=True)
    lines = [describe(facts), ""]
    for party in parties:
        text = section(party, "###")
        if party.has(BASE):
            (plots / f"{party.name}.svg").write_text(plot.draw(party, BASE))
            picture = f"![The time of each workload as a multiple of the kernel's](performance/{party.name}.svg)"
            text[2:2] = [picture, ""]
        lines += text
    before, rest = document.read_text().split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(before + BEGIN + "\n\n" + "\n".join(lines).rstrip() + "\n\n" + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--fact", action="append", default=[])
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--smoke", action="store_true", help="only whether everything ran")
    parser.add_argument("results", nargs="*", metavar="PARTY=FILE")
    arguments = parser.parse_args()
    facts = machine() | dict(fact.split("=", 1) for fact in arguments.fact)
    parties = []
    for name, path in (words.split("=", 1) for words in arguments.results):
        parties.append(Party(name, json.loads(Path(path).read_text())))
    whole = {"machine": facts} | {party.name: party.found for party in parties}
    text = json.dumps(whole, indent=1) + "\n"
    arguments.json.write_text(text)

    failures = 0
    for party in parties:
        cells = [(w["name"], c, party.cell(w["name"], c["name"])) for w in party.workloads for c in party.candidates]
        failures += sum(1 for _, candidate, cell in cells if cell["failed"] and candidate["ours"])
        if arguments.smoke:
            measured = sum(1 for _, _, cell in cells if cell["values"] and not cell["failed"])
            failed = [(name, candidate["label"], cell["failed"]) for name, candidate, cell in cells if cell["failed"]]
            print(f"\n{PARTIES[party.name]}: {measured} of {len(cells)} ran, {len(failed)} failed, the others do not apply")
            for name, label, reason in failed:
                print(f"   {name} on {label}: {reason}")
    if not arguments.smoke:
        print("\n" + describe(facts) + "\n")
        for party in parties:
            print("\n".join(section(party, "##")))
    if arguments.docs:
        write_docs(arguments.docs, facts, parties)
        (arguments.docs / "performance/results.json").write_text(text)
    # What fails on a peer is a finding; what fails on ours is a failure.
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
