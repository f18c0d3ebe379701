"""Benchmark results: run them, tabulate them, draw them. `python -m fastdl.bench run | table | plot`.

Works in a checkout of the project, on the files of benchmarks/results; every figure in the documentation comes out of
here. The README there explains the keys.
"""

import argparse
import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = "fastdl"
MARKERS = ("<!-- results -->", "<!-- /results -->")


@dataclass(frozen=True)
class Row:
    """One implementation in one case: microseconds, the spread between quartiles, and what the file says of them."""

    info: dict[str, Any]
    spread_us: float
    cache: str
    bandwidth_bound: float  # bytes per second that a copy reached in the same run

    @property
    def us(self) -> float:
        """Median time per call on the device."""
        return float(self.info["device_us"])


@dataclass(frozen=True)
class Case:
    """All implementations of one op on one input, measured in one run."""

    machine: str
    source: dict[str, Any]  # machine_info and commit_info of the file
    rows: dict[str, Row]

    @property
    def info(self) -> dict[str, Any]:
        """What the rows share: op, shape, dtype, layout, direction, bytes, flops."""
        return next(iter(self.rows.values())).info

    @property
    def label(self) -> str:
        """Shape, dtype and layout in words."""
        i = self.info
        return f"{'×'.join(map(str, i['shape']))} {i['dtype']}" + (
            "" if i["layout"] == "contiguous" else f" {i['layout']}"
        )

    @property
    def best_peer(self) -> Row | None:
        """The fastest implementation that is not ours."""
        return min((row for name, row in self.rows.items() if name != OURS), key=lambda row: row.us, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer ours is, or None."""
        ours, peer = self.rows.get(OURS), self.best_peer
        return peer.us / ours.us if ours and peer else None

    @property
    def tied(self) -> bool:
        """Whether the difference to the best peer is below the spread: then it is none."""
        ours, peer = self.rows.get(OURS), self.best_peer
        return bool(ours and peer) and abs(ours.us - peer.us) <= max(ours.spread_us, peer.spread_us)  # type: ignore[union-attr]


def machine_name(info: dict[str, Any]) -> str:
    """Return the results folder's name for a machine: its GPU, or "cpu-" and its processor."""
    name = info["gpus"][0]["name"] if info.get("gpus") else f"cpu {info.get('cpu') or 'unknown'}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def load(paths: Iterable[Path]) -> list[Case]:
    """Read results files; of a case that several files hold, the newest counts."""
    files = [file for path in paths for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    contents = [(file, json.loads(file.read_text())) for file in files]
    newest: dict[tuple[str, str], Case] = {}
    for _, content in sorted(((f, c) for f, c in contents if "benchmarks" in c), key=lambda item: item[1]["datetime"]):
        machine = machine_name(content["machine_info"])
        groups: dict[str, dict[str, Row]] = defaultdict(dict)
        source = {**content["machine_info"], "commit": content["commit_info"], "datetime": content["datetime"]}
        copy = content["machine_info"]["bounds"]["copy_bytes_per_second"]
        for entry in content["benchmarks"]:
            if not entry["group"].endswith(" host"):
                stats, name = entry["stats"], entry["extra_info"]["implementation"]
                cache = entry.get("conditions", {}).get("cache", "cold")
                groups[entry["group"]][name] = Row(entry["extra_info"], stats["iqr"] * 1e6, cache, copy)
        for group, rows in groups.items():
            newest[machine, group] = Case(machine, source, rows)
    return list(newest.values())


def _by_machine(cases: Iterable[Case]) -> dict[str, list[Case]]:
    machines: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        machines[case.machine].append(case)
    return dict(sorted(machines.items()))


def _by_op(cases: Iterable[Case]) -> dict[str, list[Case]]:
    ops: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        ops[f"{case.info['op']}, {case.info['direction']}"].append(case)
    return {
        op: sorted(ops[op], key=lambda c: (c.info["dtype"], c.info["layout"], c.info["bytes"])) for op in sorted(ops)
    }


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _time(us: float) -> str:
    return f"{us:.3g} µs" if us < 1000 else f"{us / 1000:.3g} ms"


def _origin(cases: Sequence[Case]) -> str:
    """Say what the figures were measured on; several runs name their commits."""
    source = max((case.source for case in cases), key=lambda s: str(s["datetime"]))
    device = (
        source["gpus"][0]["name"] if source.get("gpus") else f"{source.get('cpu')}, {source.get('threads')} threads"
    )
    commits = sorted({c.source["commit"]["id"][:7] + "*" * bool(c.source["commit"].get("dirty")) for c in cases})
    toolkit = f", driver {source['driver']}, CUDA {source['torch_cuda']}" if source.get("gpus") else ""
    load_average = source.get("load")
    busy = ""
    if load_average and load_average[0] > 1.5 * (source.get("cores") or 1) and not source.get("gpus"):
        busy = f" (taken on a busy machine, load {load_average[0]:.1f} on {source['cores']} cores: read with care)"
    return (
        f"{device}{toolkit}, torch {source['torch']}, commit {', '.join(commits)}, {str(source['datetime'])[:10]}; "
        f"copy {source['bounds']['copy_bytes_per_second'] / 1e9:,.4g} GB/s in the same run{busy}."
    )


def summary(cases: Iterable[Case]) -> str:
    """Return one Markdown table per machine: each op against the best peer in the same run, losses counted."""
    parts = []
    for machine, of_machine in _by_machine(cases).items():
        rows = []
        for op, of_op in _by_op(of_machine).items():
            of_op = [case for case in of_op if case.ratio is not None]
            ratios = [case.ratio for case in of_op if case.ratio is not None]
            if not ratios:
                continue
            fractions = [c.rows[OURS].info["fraction_of_bound"] for c in of_op if c.rows[OURS].cache == "cold"]
            decided = [case.ratio for case in of_op if case.ratio is not None and not case.tied]
            wins, losses = sum(ratio > 1 for ratio in decided), sum(ratio <= 1 for ratio in decided)
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            rows.append([
                op, f"{mean:.2f}×", f"{min(ratios):.2f}–{max(ratios):.2f}×",
                f"{wins} / {len(ratios) - wins - losses} / {losses}",
                f"{statistics.median(fractions):.2f}" if fractions else "–",
            ])  # fmt: skip
        if rows:
            header = ["op", "speed against the best peer", "range", "won / level / lost", "fraction of bound"]
            parts.append(f"**{machine}**: {_origin(of_machine)}\n\n{_markdown(header, rows)}")
    return "\n\n".join(parts)


def tables(cases: Iterable[Case]) -> str:
    """Return every case in Markdown: a table per machine and op, a column per implementation."""
    parts = []
    for machine, of_machine in _by_machine(cases).items():
        parts.append(f"# {machine}\n\n{_origin(of_machine)} Warm rows (w) run from cache and may exceed the bound.")
        for op, of_op in _by_op(of_machine).items():
            names = sorted({n for case in of_op for n in case.rows}, key=lambda n: (n != OURS, n))
            rows = []
            for case in of_op:
                fastest = case.rows.get(OURS) or case.best_peer
                assert fastest is not None  # a case without rows is never made
                times = [_time(case.rows[n].us) if n in case.rows else "–" for n in names]
                ratio = "–" if case.ratio is None else f"{case.ratio:.2f}×" + " (level)" * case.tied
                fraction = f"{fastest.info['fraction_of_bound']:.2f}" + " w" * (fastest.cache == "warm")
                rows.append([case.label, *times, ratio, fraction])
            header = ["case", *names, "against the best peer", "fraction of bound"]
            parts.append(f"## {op}\n\n{_markdown(header, rows)}")
    return "\n\n".join(parts)


def readme(text: str, cases: Iterable[Case]) -> str:
    """Return the README with the block between the markers replaced by `summary`."""
    start, end = (text.index(marker) for marker in MARKERS)
    return text[: start + len(MARKERS[0])] + "\n" + summary(cases) + "\n" + text[end:]


def run(arguments: Sequence[str]) -> int:
    """Run the benchmarks of this checkout with pytest and file the results under this machine's name."""
    from fastdl import info

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    folder = RESULTS / machine_name(info.report(ops=False))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y-%m-%d')}-{commit.strip() or 'unknown'}.json"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "benchmarks", f"--benchmark-json={path}", *arguments]
    return subprocess.run(command, cwd=ROOT).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Dispatch the three commands."""
    parser = argparse.ArgumentParser(prog="python -m fastdl.bench", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="run the benchmarks and file the results; further arguments go to pytest")
    table = commands.add_parser("table", help="print every case in Markdown")
    table.add_argument("--readme", action="store_true", help="write the summary between the README's markers")
    table.add_argument("--check", action="store_true", help="fail when the README's summary is stale")
    plot = commands.add_parser("plot", help="draw bandwidth against size, and speedups")
    plot.add_argument("-o", "--output", type=Path, help="folder for the PNG files (default: beside the results)")
    for command in (table, plot):
        command.add_argument("results", nargs="*", type=Path, help="files or folders (default: benchmarks/results)")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "run":
        return run(rest)
    if rest:
        parser.error(f"unknown argument {rest[0]}")
    missing = [path for path in options.results if not path.exists()]
    if missing:
        print(f"no such results: {missing[0]}", file=sys.stderr)
        return 2
    cases = load(options.results or [RESULTS])
    if options.command == "plot":
        from fastdl._plot import draw

        for path in draw(cases, options.output or RESULTS):
            print(path)
    elif options.readme or options.check:
        page = ROOT / "README.md"
        new = readme(page.read_text(), cases)
        if options.check and new != page.read_text():
            print("README.md is stale: python -m fastdl.bench table --readme", file=sys.stderr)
            return 1
        page.write_text(new)
    else:
        print(tables(cases))
    return 0


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `table | head` ends quietly
    sys.exit(main())
