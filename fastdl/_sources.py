"""Which native sources a library was compiled from: setup.py compiles their digest in, an import compares it.

Read by setup.py on its own, so nothing is imported here but the standard library.
"""

import hashlib
from pathlib import Path


def digest(csrc: Path, cuda: bool) -> str:
    """Hash the C++ files whose functions Python calls; a kernel that changes behind them breaks no call."""
    files = [csrc / "module.cpp", *csrc.glob("*/cpu.cpp"), *(csrc.glob("*/op.cpp") if cuda else ())]
    # Named relative to csrc, each with its own hash: moving a tree changes nothing, moving a line between files does.
    names = (f"{f.relative_to(csrc).as_posix()} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in sorted(files))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def write_header(csrc: Path, cuda: bool, header: Path) -> str:
    """Write the digest for module.cpp to include, only where it changed; return the header's folder."""
    line = f'#define FASTDL_SOURCES "{digest(csrc, cuda)}"\n'
    if not header.exists() or header.read_text() != line:
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(line)
    return str(header.parent.resolve())
