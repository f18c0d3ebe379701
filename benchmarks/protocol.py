"""How a figure is obtained: one call measures an op against its peers and files one row per implementation.

A benchmark file is `bench_<op>.py`; a benchmark in it takes the `compare` fixture and calls it once:

    @pytest.mark.parametrize("n", cases(cpu=[2**16, 2**20], cuda=[2**20, 2**24, 2**28]))
    def test_dropout(compare, n):
        compare(
            op="dropout", shape=(n,), dtype=torch.bfloat16,
            operands=lambda: [randn(n, dtype=torch.bfloat16)],
            arms={
                "fastdl": call(lambda x: fastdl.functional.dropout(x, 0.1)),
                "torch": call(lambda x: torch.nn.functional.dropout(x, 0.1)),
                "compile": call(compiled(lambda x: torch.nn.functional.dropout(x, 0.1))),
            },
            bytes=4 * n,
        )

- `operands` makes one set of inputs; sets rotate so that caches are cold, and every arm gets the same sets.
- an arm is a factory: it takes one operand set and returns the call to be timed. What it does before it returns
  (cloning parameters, building a module, running forward for a backward) is not timed. `call(f)` times f(*operands),
  `gradients(f)` times the backward of f. None instead of a factory leaves the arm out: `compiled` does so on the CPU.
- `bytes` and `flops` are the minimum of the op, not of an arm: every input read once, every output written once.
- one process, A B B A, eight rounds; a CUDA arm is captured into a graph that runs the whole rotation, so that the
  row is device time; the host's time per call is a row apart. A peer that raises is left out with a warning;
  the arm "fastdl" must run.
"""

import copy
import functools
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from machine import COLD_BYTES, CUDA, DEVICE, Clocks, bound, measure_bounds, synchronize, timer

ROUNDS = 8  # A B B A four times over
SAMPLE_SECONDS = 1e-3 if CUDA else 2e-3
MAX_SETS = 256 if CUDA else 16

Call = Callable[[], Any]
Factory = Callable[..., Call]


def cases(*, cpu: Sequence[Any], cuda: Sequence[Any]) -> Sequence[Any]:
    """Pick the sizes for this machine: small ones on a CPU, so that all benchmarks together take two minutes."""
    return cuda if CUDA else cpu


def randn(*shape: int, dtype: torch.dtype = torch.float32, memory_format: Any = torch.contiguous_format) -> Any:
    """N(0,1) values on the device under test; zeros would run faster than real data does."""
    return torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=memory_format)


def call(function: Callable[..., Any] | None) -> Factory | None:
    """Arm that times function(*operands)."""
    return function and (lambda *operands: functools.partial(function, *operands))


def gradients(function: Callable[..., Any] | None) -> Factory | None:
    """Arm that times the gradients of function(*operands) at all floating operands, for an N(0,1) output gradient."""
    if function is None:
        return None

    def factory(*operands: Any) -> Call:
        leaves = [x.detach().requires_grad_() if _is_floating(x) else x for x in operands]
        output = function(*leaves)
        grad_output, wanted = torch.randn_like(output), [x for x in leaves if _is_floating(x)]
        return lambda: torch.autograd.grad(output, wanted, grad_output, retain_graph=True)

    return factory


def compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return torch.compile at its best, or None on a CPU, where compiling takes longer than all the rest.

    CUDA graphs are left to `compare`, which captures every arm into one.
    """
    if not CUDA:
        return None
    torch._dynamo.reset()  # or the recompilation limit silently runs later shapes eagerly
    import torch._functorch.config as functorch_config

    functorch_config.donated_buffer = False  # `gradients` runs the same backward many times
    return torch.compile(function, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _tensor_bytes(operands: Sequence[Any]) -> int:
    return sum(x.nbytes for x in operands if isinstance(x, torch.Tensor)) or 1


class Arm:
    """One implementation with its calls over the rotating operand sets."""

    def __init__(self, name: str, factory: Factory, sets: Sequence[Sequence[Any]]) -> None:
        self.name = name
        self.calls = [factory(*operands) for operands in sets]
        self.kept: list[Any] = [call() for call in self.calls]  # outputs stay alive: they rotate like the inputs
        synchronize()
        self.rotation: Iterator[Call] = itertools.cycle(self.calls)
        self.device: list[float] = []
        self.host: list[float] = []
        self.graph = self._capture() if CUDA else None
        self.method = "graph" if self.graph else "events" if CUDA else "wall"
        start = timer()
        self._run(1)
        self.repeats = max(1, round(SAMPLE_SECONDS / max(timer() - start, 1e-7)))
        if self.method == "events":
            self.repeats = min(self.repeats, 50)  # as many as the host queues while the device sleeps

    def _capture(self) -> Any:
        """Capture the whole rotation; None where an arm synchronizes or allocates in a way graphs forbid."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self.kept = [call() for call in self.calls]
        except Exception:
            synchronize()
            return None
        graph.replay()
        return graph

    @property
    def calls_per_repeat(self) -> int:
        return len(self.calls) if self.graph else 1

    def _run(self, repeats: int) -> None:
        for _ in range(repeats):
            if self.graph:
                self.graph.replay()
            else:
                next(self.rotation)()

    def sample_device(self) -> float:
        """Return seconds per call on the device's clock."""
        if CUDA and not self.graph:
            torch.cuda._sleep(2_000_000)  # about a millisecond in which the host queues the calls
        start = timer()
        self._run(self.repeats)
        return (timer() - start) / (self.repeats * self.calls_per_repeat)

    def sample_host(self, calls: int = 20) -> float:
        """Return seconds until a call returns to Python, the device's work not awaited."""
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            next(self.rotation)()
        seconds = time.perf_counter() - start
        synchronize()
        return seconds / calls

    def launches(self) -> int | None:
        """Count what one call puts on the device, copies and memsets included; None on a CPU."""
        if not CUDA:
            return None
        activities = [torch.profiler.ProfilerActivity.CUDA]
        try:
            with torch.profiler.profile(activities=activities) as profile:
                next(self.rotation)()
                synchronize()
            return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
        except Exception:  # no profiling library on this machine
            return None

    def peak_mib(self) -> float | None:
        """Return what one call allocates at most beyond its operands; None on a CPU."""
        if not CUDA:
            return None
        synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        next(self.rotation)()
        synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(
    benchmark: Any,
    *,
    op: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    operands: Callable[[], Sequence[Any]],
    arms: dict[str, Factory | None],
    bytes: float = 0,
    flops: float = 0,
    layout: str = "contiguous",
    direction: str = "forward",
    error: Callable[[Sequence[Any], Any], float] | None = None,
) -> None:
    """Measure the arms against each other and file one pytest-benchmark row each (see the module's docstring).

    error(operands, result) of every arm stands beside its speed, among the row's conditions.
    """
    with _own_stream():
        sets = [operands()]
        wanted = 1 if benchmark.disabled else min(MAX_SETS, max(2, -(-COLD_BYTES // _tensor_bytes(sets[0]))))
        sets += [operands() for _ in range(wanted - 1)]
        ready, failed = _prepare(arms, sets)
        if benchmark.disabled:  # --benchmark-disable: everything has run once, nothing is timed
            return
        discarded, clocks = _measure(ready)
        measure_bounds([dtype] if flops else [])
        limit = bound(bytes, flops, dtype)
        for arm in ready:
            device, host = statistics.median(arm.device), statistics.median(arm.host or arm.device)
            info = {
                "implementation": arm.name, "op": op, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."),
                "layout": layout, "direction": direction, "device_us": device * 1e6, "host_us": host * 1e6,
                "bytes": bytes, "flops": flops, "fraction_of_bound": limit / device,
                "launches": arm.launches(), "peak_mib": arm.peak_mib(),
            }  # fmt: skip
            conditions = {
                "cache": "cold" if len(sets) * _tensor_bytes(sets[0]) >= COLD_BYTES else "warm",
                "operand_sets": len(sets), "timer": arm.method, "rounds_discarded": discarded, "failed": failed,
                "clocks": clocks,
            }  # fmt: skip
            if error is not None:
                conditions["error"] = error(sets[0], arm.kept[0])
            group = f"{op} {direction} {'x'.join(map(str, shape))} {info['dtype']} {layout}"
            _file_row(benchmark, arm.name, group, info, conditions, arm.device)
            if CUDA:
                _file_row(benchmark, f"{arm.name} host", f"{group} host", info, conditions, arm.host)
    if CUDA:
        del ready, sets
        torch.cuda.empty_cache()


def _own_stream() -> Any:
    """Graph capture needs a stream of its own, and gradients run on the stream of their forward."""
    stream = torch.cuda.Stream() if CUDA else None
    return torch.cuda.stream(stream)


def _prepare(arms: dict[str, Factory | None], sets: Sequence[Sequence[Any]]) -> tuple[list[Arm], dict[str, str]]:
    ready, failed = [], {}
    for name, factory in arms.items():
        if factory is None:
            continue
        try:
            ready.append(Arm(name, factory, sets))
        except Exception as error:
            if name == "fastdl":
                raise
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            warnings.warn(f"{name} left out: {failed[name]}", stacklevel=2)
    return ready, failed


def _measure(arms: list[Arm]) -> tuple[int, dict[str, Any]]:
    """Take ROUNDS samples per arm in alternating order; a round whose clocks moved by over 5 % is taken again."""
    clocks, discarded, seen = Clocks(), 0, []
    while len(arms[0].device) < ROUNDS:
        order = arms if len(arms[0].device) % 2 == 0 else arms[::-1]
        samples, readings = [], []
        for arm in order:
            samples.append((arm, arm.sample_device(), arm.sample_host() if CUDA else None))
            if clocks.fast:
                readings.append(clocks.read())
        readings = readings or [clocks.read()]
        speeds = [r["sm_mhz"] for r in readings if r.get("sm_mhz")]
        if speeds and max(speeds) > 1.05 * min(speeds) and discarded < ROUNDS:
            discarded += 1
            continue
        seen += readings
        for arm, device, host in samples:
            arm.device.append(device)
            if host is not None:
                arm.host.append(host)
    speeds = [r["sm_mhz"] for r in seen if r.get("sm_mhz")]
    if not speeds:
        return discarded, {}
    return discarded, {
        "sm_mhz": [min(speeds), max(speeds)],
        "power_w": max(r.get("power_w", 0) for r in seen),
        "temperature_c": max(r.get("temperature_c", 0) for r in seen),
        "throttle": sorted({reason for r in seen for reason in r.get("throttle", [])}),
    }


def _file_row(
    benchmark: Any, name: str, group: str, info: dict[str, Any], conditions: dict[str, Any], samples: list[float]
) -> None:
    """Give pytest-benchmark the samples: the row's timer replays them. A fixture files one row, so each has a copy."""
    row = copy.copy(benchmark)
    row._mode = None
    suffix = f"[{info['direction']} {name}]"
    row.name, row.fullname = benchmark.name + suffix, benchmark.fullname + suffix
    row.group, row.extra_info = group, dict(info)
    row.params = {**{k: str(v) for k, v in (benchmark.params or {}).items()}, "implementation": name}
    stamps = itertools.chain.from_iterable((0.0, sample) for sample in samples)

    def recorded() -> float:
        return next(stamps)

    row._timer = recorded
    row.pedantic(lambda: None, rounds=len(samples))
    benchmark._mode = row._mode  # used, as far as the plug-in is concerned
    CONDITIONS[row.fullname] = conditions


CONDITIONS: dict[str, dict[str, Any]] = {}  # by full row name; conftest.py puts them beside extra_info
