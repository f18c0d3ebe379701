"""Pictures of benchmark results, for `python -m fastdl.bench plot`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdl.bench import OURS, Case, _by_machine

_OURS_COLOR, _PEER_COLORS = "#1b6ca8", ["#d1495b", "#edae49", "#66a182", "#8d96a3", "#7d5ba6", "#b08968"]


def draw(cases: Sequence[Case], folder: Path) -> list[Path]:
    """Write `<folder>/<machine>/bandwidth.png` and `speedup.png` for each machine; return what was written."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    for machine, of_machine in _by_machine(cases).items():
        (folder / machine).mkdir(parents=True, exist_ok=True)
        for name, figure in (("bandwidth", bandwidth(of_machine)), ("speedup", speedup(of_machine))):
            if figure is not None:
                path = folder / machine / f"{name}.png"
                figure.savefig(path, dpi=120, bbox_inches="tight")
                written.append(path)
    return written


def _color(name: str, names: Sequence[str]) -> str:
    peers = [n for n in names if n != OURS]
    return _OURS_COLOR if name == OURS else _PEER_COLORS[peers.index(name) % len(_PEER_COLORS)]


def bandwidth(cases: Sequence[Case]) -> Any:
    """Draw bytes per second against bytes moved, a panel per op, with the measured copy bandwidth as the roof.

    Ops with fewer than three sizes have no curve. Returns a matplotlib Figure, or None where no op has one.
    """
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        i = case.info
        if i["flops"] == 0 and i["bytes"]:
            for name, row in case.rows.items():
                panels[f"{i['op']}, {i['direction']}, {i['dtype']}, {i['layout']}"][name].append(
                    (i["bytes"], i["bytes"] / row.us / 1e3)
                )
    panels = {
        title: curves
        for title, curves in panels.items()
        if max(len({x for x, _ in points}) for points in curves.values()) >= 3
    }
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    roof = next(iter(cases[0].rows.values())).bandwidth_bound / 1e9
    for axis, (title, curves) in zip(axes, sorted(panels.items()), strict=False):
        for name, points in sorted(curves.items(), key=lambda item: item[0] != OURS):
            xs, ys = zip(*sorted(points), strict=True)
            axis.plot(xs, ys, "o-", color=_color(name, sorted(curves)), label=name, markersize=3)
        axis.axhline(roof, color="black", linestyle="--", linewidth=1, label=f"copy, same run: {roof:.3g} GB/s")
        axis.set(title=title, xscale="log", xlabel="bytes that must move", ylabel="GB/s")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    for axis in list(axes):
        axis.set_visible(False)
    return figure


def speedup(cases: Sequence[Case]) -> Any:
    """Draw a bar per case: the best peer's time over ours. Left of 1 ours lost; pale bars are within the spread.

    Returns a matplotlib Figure, or None where ours was not measured.
    """
    from matplotlib.figure import Figure

    measured = sorted(
        (c for c in cases if c.ratio is not None), key=lambda c: (c.info["op"], c.info["direction"], c.label)
    )
    if not measured:
        return None
    figure = Figure(figsize=(8, 1 + 0.22 * len(measured)), layout="constrained")
    axis = figure.subplots()
    positions = range(len(measured))
    values = [case.ratio or 1.0 for case in measured]
    colors = [
        "#c9ced6" if case.tied else _OURS_COLOR if case.ratio and case.ratio > 1 else "#d1495b" for case in measured
    ]
    axis.barh(positions, [v - 1 for v in values], left=1, color=colors)
    axis.set_yticks(positions, [f"{c.info['op']} {c.info['direction']} {c.label}" for c in measured], fontsize=6)
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xscale="log", xlabel="times as fast as the best peer in the same run", ylim=(len(measured) - 0.5, -0.5))
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(values) * 0.8 <= t <= max(values) * 1.25]
    axis.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axis.set_xticks([], minor=True)
    return figure
