"""What kernels did that ran on the CPU, as the emulator counted it."""

import ctypes


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
