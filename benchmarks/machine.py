"""The machine under the benchmarks: its two ceilings, measured in the same run, and its clocks around each row."""

import functools
import os
import shutil
import statistics
import subprocess
import time
from typing import Any

import torch

DEVICE = torch.device(os.environ.get("FASTDL_BENCH_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
CUDA = DEVICE.type == "cuda"
L2_BYTES = torch.cuda.get_device_properties(DEVICE).L2_cache_size if CUDA else 0
COLD_BYTES = max(150 << 20, 3 * L2_BYTES) if CUDA else 64 << 20  # operand sets rotate over at least this much


class EventStamp:
    """A moment on the device's stream. Subtracting two waits for the later one and gives seconds."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "EventStamp") -> float:
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) * 1e-3


timer = EventStamp if CUDA else time.perf_counter


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(call: Any, rounds: int = 7, calls: int = 5) -> float:
    """Median time of one call, on the device's clock, after a warm-up."""
    for _ in range(2):
        call()
    samples = []
    for _ in range(rounds):
        synchronize()
        start = timer()
        for _ in range(calls):
            call()
        samples.append((timer() - start) / calls)
    return statistics.median(samples)


@functools.cache
def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a large device-to-device copy."""
    n = (1 << 30 if CUDA else 1 << 26) // 4
    source, target = torch.randn(n, device=DEVICE), torch.empty(n, device=DEVICE)
    return 8 * n / seconds_of(lambda: target.copy_(source), calls=5 if CUDA else 2)


@functools.cache
def matrix_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large square product of N(0,1) values in this dtype, as torch is set up now."""
    n = {torch.float32: 4096, torch.float64: 4096}.get(dtype, 8192) if CUDA else 512
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds_of(lambda: torch.mm(a, b), calls=3)


def bound(bytes: float, flops: float, dtype: torch.dtype) -> float:
    """Seconds below which no implementation can go: the larger of the memory's and the arithmetic's time."""
    return max(bytes / copy_bandwidth(), flops / matrix_rate(dtype) if flops else 0.0)


def bounds() -> dict[str, Any]:
    """The ceilings measured so far in this run; bytes and operations per second."""
    rates = {str(d).removeprefix("torch."): matrix_rate(d) for d in _dtypes_measured}
    return {"copy_bytes_per_second": copy_bandwidth(), "matrix_flops_per_second": rates}


_dtypes_measured: set[torch.dtype] = set()


def measure_bounds(dtypes: list[torch.dtype]) -> None:
    """Measure the ceilings now, before anything else heats the chip, and keep them for the record."""
    copy_bandwidth()
    for dtype in dtypes:
        matrix_rate(dtype)
        _dtypes_measured.add(dtype)


_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class Clocks:
    """Reads SM clock, power, temperature and throttle reasons; never sets anything.

    Through nvidia-ml-py where it is installed, else through nvidia-smi, else not at all.
    """

    def __init__(self) -> None:
        self.fast = False  # quick enough to ask around every sample
        self._nvml: Any = None
        self._smi = shutil.which("nvidia-smi") if CUDA else None
        if CUDA:
            self._uuid = f"GPU-{torch.cuda.get_device_properties(DEVICE).uuid}"
            try:
                import pynvml

                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
                self._nvml, self.fast = pynvml, True
            except Exception:  # any failure of an optional reader leaves the slower one
                self._nvml = None

    def read(self) -> dict[str, Any]:
        """Return sm_mhz, power_w, temperature_c and throttle (a list of names); empty where nothing can tell."""
        try:
            return self._read_nvml() if self._nvml else self._read_smi() if self._smi else {}
        except Exception:  # a driver that answers less is no reason to lose the measurement
            return {}

    def _read_nvml(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")  # new, old
        reasons = next(getattr(nvml, name) for name in names if hasattr(nvml, name))(handle)
        return {
            "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle": [name for bit, name in _REASONS.items() if reasons & bit],
        }

    def _read_smi(self) -> dict[str, Any]:
        fields = "clocks.sm,power.draw,temperature.gpu,clocks_throttle_reasons.active"
        command = [self._smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", self._uuid]
        text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        sm, power, temperature, reasons = (field.strip() for field in text.strip().split(","))
        return {
            "sm_mhz": int(sm),
            "power_w": float(power),
            "temperature_c": int(temperature),
            "throttle": [name for bit, name in _REASONS.items() if int(reasons, 16) & bit],
        }
