#!/usr/bin/env python3
"""Measures the candidates, as whoever runs it, and writes what was measured as JSON.

Called by scripts/bench, in namespaces that are this run's own. In each repetition each group of workloads is run by
all candidates one after the other, so that a machine that slows down slows all of them; who is first changes from
repetition to repetition.
"""
import argparse
import fnmatch
import json
import os
import signal
import sys
import time
from pathlib import Path

import candidates
import workloads
from candidates import Candidate, Failed, Mounted
from workloads import Group, Place, Settings, Workload


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--data", type=Path, help="the layers, as layers.py makes them")
    parser.add_argument("--scratch", type=Path, help="where uppers and mountpoints are made")
    parser.add_argument("--programs", type=Path, help="the directory of unionfs-rs and ops")
    parser.add_argument("--home", type=Path, help="an empty directory")
    parser.add_argument("--debs", type=Path)
    parser.add_argument("--toolchain", type=Path)
    parser.add_argument("--candidate", action="append", default=[], metavar="KIND[:WORD]...",
                        help="plain, kernel, mergerfs:PROGRAM, fuse-overlayfs:NAME:LABEL:PROGRAM, ours:TRANSPORT:IO")  # fmt: skip
    parser.add_argument("--skipped", action="append", default=[], metavar="NAME=REASON", help="a candidate that is not there")
    parser.add_argument("--only", default="", help="workloads or groups, parted by commas; * and ? as in a shell")
    parser.add_argument("--size", choices=workloads.SIZES, default="full")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=600)
    parser.add_argument("--rootless", action="store_true")
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the workloads and end")
    return parser.parse_args()


def make_candidate(words: str, rootless: bool, programs: Path) -> Candidate:
    kind, *rest = words.split(":")
    match kind, rest:
        case "plain", []:
            return candidates.plain()
        case "kernel", []:
            return candidates.kernel(rootless)
        case "mergerfs", [program]:
            return candidates.mergerfs(program)
        case "fuse-overlayfs", [name, label, program]:
            return candidates.fuse_overlayfs(name, label, program)
        case "ours", [transport, io]:
            return candidates.ours(str(programs / "unionfs-rs"), transport, io)
    raise SystemExit(f"no such candidate: {words}")


def is_chosen(only: list[str], group: Group, workload: Workload) -> bool:
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only for name in (group.name, workload.name))


def with_what_they_need(group: Group, chosen: set[str]) -> list[Workload]:
    """The chosen workloads, and those that must have run before them, in the group's order."""
    needed = set(chosen)
    for workload in reversed(group.workloads):
        if workload.name in needed:
            needed |= set(workload.after)
    return [workload for workload in group.workloads if workload.name in needed]


class Results:
    """What was measured; `save` writes it whole, after each group, so that a run cut short leaves what it has."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.candidates: list[dict] = []
        self.workloads: list[dict] = []
        self.cells: dict[str, dict[str, dict]] = {}
        self.warnings: list[str] = []
        self.repetitions = 0

    def cell(self, workload: str, candidate: str) -> dict:
        return self.cells.setdefault(workload, {}).setdefault(candidate, {"values": [], "failed": None, "skipped": None})

    def fail(self, workload: str, candidate: str, reason: str) -> None:
        self.cell(workload, candidate)["failed"] = reason
        print(f"   {workload} on {candidate} failed: {reason}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            print(f"   {text}", file=sys.stderr, flush=True)

    def save(self) -> None:
        part = self.out.with_name(self.out.name + ".part")
        found = {key: value for key, value in vars(self).items() if key != "out"}
        part.write_text(json.dumps(found, indent=1))
        part.rename(self.out)


class Runner:
    def __init__(self, arguments: argparse.Namespace, settings: Settings, results: Results) -> None:
        self.settings, self.results, self.scratch = settings, results, arguments.scratch
        self.only = [name for name in arguments.only.split(",") if name]
        self.measured = []
        for words in arguments.candidate:
            if arguments.rootless and words.endswith(":passthrough"):
                results.warn("unionfs-rs with --io passthrough is not measured: it is for the machine's root")
            else:
                self.measured.append(make_candidate(words, arguments.rootless, arguments.programs))
        self.groups = [g for g in workloads.groups(settings) if any(is_chosen(self.only, g, w) for w in g.workloads)]
        if not self.measured:
            raise SystemExit("there is no candidate to measure")
        if not self.groups:
            raise SystemExit(f"no workload is called {arguments.only} (see --list)")

    def describe(self) -> None:
        for candidate in self.measured:
            self.results.candidates.append({"name": candidate.name, "label": candidate.label, "ours": candidate.ours})
        for group in self.groups:
            for workload in group.workloads:
                if is_chosen(self.only, group, workload):
                    about = {"name": workload.name, "what": workload.what, "state": workload.state, "unit": workload.unit}
                    about |= {"group": group.name, "kind": group.kind, "core": workload.name in workloads.CORE}
                    self.results.workloads.append(about)

    def repetition(self, number: int) -> None:
        turn = number % len(self.measured)
        for group in self.groups:
            begin = time.monotonic()
            for candidate in self.measured[turn:] + self.measured[:turn]:
                self.group(group, candidate)
            self.results.save()
            print(f"   repetition {number + 1}: {group.name} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
        self.results.repetitions = number + 1
        self.results.save()

    def group(self, group: Group, candidate: Candidate) -> None:
        stack = group.stack(self.settings)
        mounted = Mounted(candidate, stack, self.scratch)
        chosen = set()
        for workload in group.workloads:
            if is_chosen(self.only, group, workload):
                reason = obstacle(group, workload, mounted, self.settings)
                if reason is None:
                    chosen.add(workload.name)
                else:
                    self.results.cell(workload.name, candidate.name)["skipped"] = reason
        if not chosen:
            return
        self.warm(group, stack)
        try:
            with mounted:
                self.workloads(group, chosen, Place(mounted, self.settings))
        except Failed as failure:
            for name in chosen:
                self.results.fail(name, candidate.name, str(failure))
        for complaint in mounted.complaints:
            self.results.warn(f"{candidate.label}, {group.name}: {complaint}")

    def warm(self, group: Group, stack: candidates.Stack) -> None:
        """Reads the layers' data, and lets what was written before reach the disk."""
        plain = Mounted(candidates.plain(), stack, self.scratch)
        place = Place(plain, self.settings)
        tops = [stack.base / name for name in stack.lowers] + ([stack.base / "merged"] if group.plain else [])
        for path in (top / name for top in tops for name in group.warmed):
            if path.is_dir():
                place.ops("read", path)
            elif path.exists():
                place.ops("seqread", path)
        os.sync()

    def workloads(self, group: Group, chosen: set[str], place: Place) -> None:
        name = place.mounted.candidate.name
        broken: dict[str, str] = {}
        for workload in with_what_they_need(group, chosen):
            try:
                missing = next((before for before in workload.after if before in broken), None)
                if missing:
                    raise Failed(f"{missing}, which comes before it, failed")
                place.count = None
                value = workload.run(place)
            except (Failed, OSError) as failure:
                broken[workload.name] = str(failure)
                if workload.name in chosen:
                    # A path of this machine says nothing to who reads the report.
                    self.results.fail(workload.name, name, str(failure).replace(str(place.mounted.scratch), "…"))
            else:
                if workload.name in chosen:
                    cell = self.results.cell(workload.name, name)
                    cell["values"].append(value)
                    cell["count"] = place.count


def obstacle(group: Group, workload: Workload, mounted: Mounted, settings: Settings) -> str | None:
    if group.copies_up and not mounted.candidate.copies_up:
        return "nothing is copied up"
    if not group.plain and mounted.candidate.command is None:
        return "there is no plain copy of these layers"
    return workload.obstacle(mounted, settings)


def main() -> None:
    # As an exception, so that the guards take their mounts down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    arguments = parse()
    settings = Settings(
        data=arguments.data, programs=arguments.programs, home=arguments.home, debs=arguments.debs,
        toolchain=arguments.toolchain, sizes=workloads.SIZES[arguments.size], timeout=arguments.timeout,
        rootless=arguments.rootless, drop_caches=arguments.drop_caches or arguments.list,
        million=arguments.million or arguments.list,
    )  # fmt: skip
    if arguments.list:
        for group in workloads.groups(settings):
            for workload in group.workloads:
                print(f"{workload.name:22} {group.name:10} {workload.state:8} {workload.what}")
        return
    (settings.home / "gitconfig").write_text("[safe]\n\tdirectory = *\n[user]\n\tname = bench\n\temail = bench@localhost\n")
    results = Results(arguments.out)
    runner = Runner(arguments, settings, results)
    runner.describe()
    for name, reason in (words.split("=", 1) for words in arguments.skipped):
        results.warn(f"{name} is not measured: {reason}")
    results.save()
    for number in range(arguments.reps):
        runner.repetition(number)


if __name__ == "__main__":
    main()
