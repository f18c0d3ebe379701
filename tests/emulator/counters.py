"""What kernels did that ran on the CPU, as the emulator counted it."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


def counters(library: ctypes.CDLL, kernel: str = "") -> tuple[int, int, int, str]:
    """Return launches, bytes read, bytes written and the names of kernels, and count from zero again.

    Only kernels whose name contains `kernel` count.
    """
    counts = [ctypes.c_uint64() for _ in range(3)]
    library.fastdl_emulator_counters(kernel.encode(), *map(ctypes.byref, counts))
    library.fastdl_emulator_kernels.restype = ctypes.c_char_p
    names = library.fastdl_emulator_kernels().decode()
    library.fastdl_emulator_reset_counters()
    launches, read, written = (count.value for count in counts)
    return launches, read, written, names


class Passes(NamedTuple):
    """What warps did in shared memory: accesses, the passes that they took, and the least for them."""

    accesses: int
    passes: int
    least: int


class Banks:
    """Passes of shared memory's banks by kernels whose name contains a part, "" for all, since counting began."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def passes(self, kernel: str = "") -> Passes:
        counts = [ctypes.c_uint64() for _ in range(3)]
        self._library.fastdl_emulator_banks(kernel.encode(), *map(ctypes.byref, counts))
        return Passes(*(count.value for count in counts))

    def conflicts(self, kernel: str = "") -> list[str]:
        """Return "file:line passes least" of each place that took more than the least, the worst first."""
        self._library.fastdl_emulator_bank_places.restype = ctypes.c_char_p
        return self._library.fastdl_emulator_bank_places(kernel.encode()).decode().splitlines()


@contextmanager
def counted_banks(library: ctypes.CDLL) -> Iterator[Banks]:
    """Count passes of shared memory from zero, in the race flavour; inside the scope it looks for no races."""
    library.fastdl_emulator_count_banks(1)
    try:
        yield Banks(library)
    finally:
        library.fastdl_emulator_count_banks(0)
