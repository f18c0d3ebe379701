"""The instructions of a kernel, by basic block: what a prediction without a GPU is counted from.

    python benchmarks/sass.py csrc/dropout/api.cu 'dropout_kernel<float, .*Linear>' [sm_90a]

Prints every kernel whose C++ name matches: per block its address, length, most frequent instructions, global and
shared accesses with their width, and the jump that ends it. The blocks that a full tile passes, summed and divided by
the elements of a thread, are the instructions per element.
"""

import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from kernel_gate import FLAGS, demangled, find_nvcc  # noqa: E402 - stands in tests/

JUMP = re.compile(r"\b(BRA|BRX|EXIT|RET)\b")
TARGET = re.compile(r"\b(?:BRA|BSSY|CALL)\b.*?\b0x([0-9a-f]+)$")
MEMORY = re.compile(r"((?:LD|ST)[GSL]\S*|RED\S*|ATOM\S*|UTMA\S*|HG?MMA\S*)")

Instruction = tuple[int, str]


def disassemble(source: Path, architecture: str) -> dict[str, list[Instruction]]:
    """Return address and text of every instruction of every kernel of a file, under the kernel's mangled name."""
    nvcc = find_nvcc()
    bundled = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/cuobjdump"))
    cuobjdump = which("cuobjdump") or (str(bundled[0]) if bundled else None)
    if nvcc is None or cuobjdump is None:
        raise SystemExit("sass: needs nvcc and cuobjdump; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        subprocess.run(
            [nvcc, *FLAGS, "-cubin", f"-arch={architecture}", "-o", cubin, source], check=True, capture_output=True
        )
        text = subprocess.run([cuobjdump, "-sass", cubin], check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current = kernels.setdefault(match[1], [])
        elif match := re.match(r"\s+/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", line):
            current.append((int(match[1], 16), match[2]))
    return kernels


def blocks(instructions: Sequence[Instruction]) -> Iterator[list[Instruction]]:
    """Split at jumps and at what jumps lead to."""
    targets = {int(match[1], 16) for _, text in instructions if (match := TARGET.search(text))}
    block: list[Instruction] = []
    for address, text in instructions:
        if block and address in targets:
            yield block
            block = []
        block.append((address, text))
        if JUMP.search(text):
            yield block
            block = []
    if block:
        yield block


def describe(block: Sequence[Instruction]) -> str:
    """Return one line of the table."""
    plain = [re.sub(r"^@!?U?P\w+ ", "", text) for _, text in block]
    kinds = Counter(text.split()[0].split(".")[0] for text in plain)
    memory = Counter(match[1] for text in plain if (match := MEMORY.match(text)))
    most = " ".join(f"{name}:{count}" for name, count in kinds.most_common(6))
    wide = " ".join(f"{name}:{count}" for name, count in memory.items())
    end = block[-1][1] if JUMP.search(block[-1][1]) else ""
    return f"  {block[0][0]:#7x} {len(block):5}  {most:60} {wide:32} {end}".rstrip()


def main(arguments: Sequence[str]) -> int:
    """Print the blocks of the kernels that match; 1 if none does."""
    if len(arguments) not in (2, 3):
        print(__doc__)
        return 1
    kernels = disassemble(Path(arguments[0]).resolve(), arguments[2] if len(arguments) == 3 else "sm_90a")
    names = demangled(sorted(kernels))
    found = [mangled for mangled, name in names.items() if re.search(arguments[1], name)]
    for mangled in found:
        print(f"{names[mangled]}: {len(kernels[mangled])} instructions")
        print("\n".join(map(describe, blocks(kernels[mangled]))))
    if not found:
        print("sass: no kernel matches; there are\n" + "\n".join(sorted(names.values())))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
