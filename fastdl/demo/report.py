"""What the demo prints and draws: live progress and tables on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor


class Report:
    """Progress and tables by rich on a terminal; plain lines where output goes to a file or a pipe."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()
        self.live = self.console.is_terminal

    def say(self, text: str) -> None:
        """Print a line."""
        if self.live:
            self.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    @contextmanager
    def stage(self, title: str, epochs: int) -> Iterator[Callable[[int, float], None]]:
        """Show a stage's epochs; gives the function to call after each with its number and loss."""
        if not self.live:
            print(f"{title} ...", flush=True)
            yield lambda epoch, loss: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        text = "epoch {task.completed}/{task.total}  loss {task.fields[loss]:.3f}"
        columns = (TextColumn("{task.description:<42}"), BarColumn(24), TextColumn(text), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(title, total=epochs, loss=float("nan"))
            yield lambda epoch, loss: progress.update(bar, completed=epoch, loss=loss)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table."""
        if self.live:
            from rich.table import Table

            table = Table(title=title, title_justify="left", title_style="bold")
            for i, name in enumerate(header):
                table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*row)
            self.console.print(table)
            return
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        print(f"\n{title}")
        for row in [header, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        sys.stdout.flush()


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
        "axes.titleweight": "bold", "legend.frameon": False, "figure.dpi": 120,
    })  # fmt: skip
    return plt


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    smooth, mean = [], values[0]
    for value in values:
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean)
    return smooth


def draw(path: Path, losses: Mapping[str, Sequence[float]], layers: Mapping[str, Sequence[Tensor]]) -> None:
    """Draw loss curves, and under them a histogram per layer for each network in `layers`."""
    plt = pyplot()
    depth = max(len(v) for v in layers.values())
    figure = plt.figure(figsize=(11, 7), constrained_layout=True)
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    axes = top.subplots()
    for name, curve in losses.items():
        smooth = _smooth(curve)
        axes.plot([i / (len(smooth) - 1) for i in range(len(smooth))], smooth, label=name, linewidth=1.6)
    axes.set(title="Training loss", xlabel="share of the training run", ylabel="cross-entropy", yscale="log")
    axes.legend(loc="lower left")
    grid = bottom.subplots(len(layers), depth, squeeze=False)
    for row, (name, tensors) in enumerate(layers.items()):
        for column, values in enumerate(tensors):
            axes = grid[row][column]
            axes.hist(values.clamp(-0.1, 4).tolist(), bins=40, range=(-0.1, 4), color=f"C{row}", log=True)
            axes.set_title(f"layer {column + 1}" if row == 0 else "", fontsize=8)
            axes.text(0.97, 0.86, f"σ {values.std():.2g}", transform=axes.transAxes, ha="right", fontsize=7)
            axes.set(yticks=[], xticks=[0, 2, 4], ylim=(0.8, None))
            axes.minorticks_off()
            axes.tick_params(labelsize=7)
        grid[row][0].set_ylabel(name, fontsize=8)
    bottom.suptitle("Activations of the hidden layers (count on a log scale)", fontsize=10, weight="bold")
    figure.savefig(path)
    plt.close(figure)
