"""The course's other claims, each measured beside what theory says: `python -m fastdl.demo --course`."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastdl
from fastdl import data, init, optim
from fastdl.demo.report import Report, pyplot
from fastdl.reference import adam_update

Row = list[str]
Panel = Callable[[Any], list[Row]]  # draws on its axes, returns rows: claim, measured, theory


def _quadratic(optimizer_of: Callable[[Any], Any], curvatures: Tensor, steps: int) -> list[float]:
    """Return the distance to the minimum of ½ Σ λ x² after every step."""
    x = nn.Parameter(torch.ones_like(curvatures))
    optimizer, distances = optimizer_of([x]), []
    for _ in range(steps):
        x.grad = curvatures * x.detach()
        optimizer.step()
        distances.append(x.detach().norm().item())
    return distances


def _rate(distances: list[float]) -> float:
    """Return the factor per step over the second half of the run."""
    half = len(distances) // 2
    return math.exp(math.log(distances[-1] / distances[half]) / (len(distances) - 1 - half))


def momentum(axes: Any) -> list[Row]:
    """Momentum's rate on a quadratic: (√κ - 1)/(√κ + 1) against gradient descent's (κ - 1)/(κ + 1); Polyak 1964."""
    kappa = 100.0
    curvatures = torch.logspace(0, math.log10(kappa), 20, dtype=torch.float64)
    root = math.sqrt(kappa)
    plain = _quadratic(lambda p: optim.SGD(p, lr=2 / (1 + kappa)), curvatures, 400)
    beta = ((root - 1) / (root + 1)) ** 2
    heavy = _quadratic(lambda p: optim.SGD(p, lr=4 / (1 + root) ** 2, momentum=beta), curvatures, 150)
    axes.semilogy(plain, label="gradient descent")
    axes.semilogy(heavy, label="momentum")
    axes.set(title=f"Quadratic, κ = {kappa:.0f}", xlabel="step", ylabel="distance to the minimum")
    axes.legend()
    return [
        ["gradient descent, factor per step", f"{_rate(plain):.4f}", f"{(kappa - 1) / (kappa + 1):.4f}"],
        ["momentum, factor per step", f"{_rate(heavy):.4f}", f"{(root - 1) / (root + 1):.4f}"],
    ]


def adam(axes: Any) -> list[Row]:
    """Adam's first step has the size of the learning rate; without bias correction it is 3.16 times that."""
    gradients = [10.0**e for e in range(-9, 3)]
    corrected, uncorrected = [], []
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
    for g in gradients:
        x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        x.grad = torch.full_like(x, g)
        optim.Adam([x], lr=0.1).step()
        corrected.append(-x.item())
        y = torch.zeros_like(x.detach())
        adam_update(y, x.grad, [torch.zeros_like(y), torch.zeros_like(y)], math.inf, options)  # corrections of 1
        uncorrected.append(-y.item())
    axes.loglog(gradients, corrected, "o-", label="Adam")
    axes.loglog(gradients, uncorrected, "s--", label="without bias correction")
    axes.set(title="Adam's first step, lr = 0.1", xlabel="gradient", ylabel="step")
    axes.legend()
    rows = []
    for name, steps, root in (("", corrected, 1.0), (" without bias correction", uncorrected, math.sqrt(0.001))):
        for g, step in zip(gradients, steps):
            if g in (1e-6, 1e-3):
                theory = 0.1 * (1 if not name else 0.1) * g / (root * g + 1e-8)
                rows.append([f"Adam's first step{name} at g = {g:g}", f"{step:.4f}", f"{theory:.4f}"])
    return rows


def initialization(axes: Any) -> list[Row]:
    """Standard deviation of activations over ten layers of 500 units; Glorot and Bengio 2010, He et al. 2015."""
    cases: list[tuple[str, Callable[[Tensor], Tensor], str, dict[str, Any], str]] = [
        ("tanh, σ = 0.01", torch.tanh, "normal", {"std": 0.01}, "3e-07"),
        ("tanh, σ = 1", torch.tanh, "normal", {"std": 1.0}, "0.98"),
        ("tanh, Xavier", torch.tanh, "xavier_normal", {}, "0.23"),
        ("ReLU, Xavier", torch.relu, "xavier_normal", {}, "0.026"),
        ("ReLU, Kaiming", torch.relu, "kaiming_normal", {"nonlinearity": "relu"}, "0.83"),
    ]
    rows = []
    for name, activation, scheme, arguments, expected in cases:
        model = nn.Sequential(*(nn.Linear(500, 500) for _ in range(10)))
        init.initialize(model, scheme, seed=0, **arguments)
        x, deviations = torch.randn(1000, 500, generator=torch.Generator().manual_seed(0)), []
        with torch.no_grad():
            for layer in model:
                x = activation(layer(x))
                deviations.append(x.std().item())
        axes.semilogy(range(1, 11), deviations, "o-", markersize=3, label=name)
        rows.append([f"{name}: σ at layer 10", f"{deviations[-1]:.2g}", expected])
    axes.set(title="Activations over ten layers", xlabel="layer", ylabel="standard deviation")
    axes.legend(fontsize=7)
    return rows


def regularizers(axes: Any) -> list[Row]:
    """L1 sets weights to exactly zero (soft threshold), L2 shrinks all of them; Tibshirani 1996."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 50, generator=generator)
    true = torch.where(torch.arange(50) < 8, torch.randn(50, generator=generator) + 2, 0)
    targets = inputs @ true + 0.1 * torch.randn(400, generator=generator)
    rows = []
    options: dict[str, dict[str, Any]] = {"L1, proximal": {"l1": 0.2, "l1_mode": "proximal"}, "L1, subgradient":
                                          {"l1": 0.2}, "L2": {"weight_decay": 0.2}}  # fmt: skip
    for i, (name, extras) in enumerate(options.items()):
        weight = nn.Parameter(torch.zeros(50))
        optimizer = optim.SGD([weight], lr=0.05, **extras)
        for _ in range(300):
            weight.grad = inputs.T @ (inputs @ weight.detach() - targets) / len(inputs)
            optimizer.step()
        zeros = int((weight == 0).sum())
        axes.plot(weight.detach().numpy(), "osd"[i], markersize=4, alpha=0.7, label=f"{name}: {zeros} zeros")
        rows.append([f"{name}: weights that are exactly 0", str(zeros), "42 of 50" if "prox" in name else "0"])
    axes.set(title="Regression, 8 of 50 weights are true", xlabel="weight", ylabel="value")
    axes.legend()
    return rows


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    best = math.inf
    for _ in range(5):
        wait()
        start = time.perf_counter()
        function()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def matmul(axes: Any) -> list[Row]:
    """Matrix multiplication, CPU against GPU, on what this machine has."""
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    sizes, rows = [128, 256, 512, 1024], []
    for device in devices:
        rates = []
        for n in sizes:
            a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
            rates.append(2 * n**3 / _seconds(lambda a=a, b=b: fastdl.matmul(a, b), device) / 1e9)  # type: ignore[misc]
        axes.semilogx(sizes, rates, "o-", label=f"{device.type}, {torch.get_num_threads()} thread(s)")
        rows.append([f"matmul {sizes[-1]}³ on {device.type}", f"{rates[-1]:.0f} GFLOP/s", "—"])
    if len(devices) == 1:
        rows.append(["matmul on a GPU", "no GPU here", "—"])
    axes.set(title="Matrix multiplication, float32", xlabel="size", ylabel="GFLOP/s", ylim=(0, None))
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.legend()
    return rows


class _SlowLoader:
    """A loader that takes its time, as a disk does."""

    def __init__(self, batches: int, seconds: float) -> None:
        self.batches, self.seconds = batches, seconds

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.batches):
            time.sleep(self.seconds)
            yield torch.ones(8)


def prefetching(axes: Any) -> list[Row]:
    """A training loop that waits for its data against one whose data is loaded meanwhile."""
    load, step, batches = 0.008, 0.010, 30
    times = {}
    for name in ("waits", "prefetches"):
        loader = _SlowLoader(batches, load)
        source: Any = data.Prefetcher(loader) if name == "prefetches" else loader
        start = time.perf_counter()
        for _ in source:
            time.sleep(step)  # stands for the device's work
        times[name] = 1e3 * (time.perf_counter() - start) / batches
    theory = {"waits": 1e3 * (load + step), "prefetches": 1e3 * max(load, step)}
    axes.bar(list(times), list(times.values()), color=["C3", "C2"], width=0.5)
    for i, name in enumerate(times):
        axes.hlines(theory[name], i - 0.3, i + 0.3, color="black", linestyle="--", linewidth=1)
    axes.set(title=f"{1e3 * load:.0f} ms to load, {1e3 * step:.0f} ms to train", ylabel="ms per step")
    return [[f"a loop that {name}, ms per step", f"{ms:.1f}", f"{theory[name]:.1f}"] for name, ms in times.items()]


PANELS: list[Panel] = [momentum, adam, initialization, regularizers, matmul, prefetching]


def main(report: Report, device: torch.device, output: Path) -> int:
    """Draw all panels and print their numbers."""
    plt = pyplot()
    figure, grid = plt.subplots(2, 3, figsize=(13, 7.5), constrained_layout=True)
    rows: list[Row] = []
    for panel, axes in zip(PANELS, grid.flat):
        rows += panel(axes)
    figure.savefig(output)
    plt.close(figure)
    report.table("The course's claims", ["claim", "measured", "theory"], rows)
    report.say(f"\npicture: {output}")
    return 0
