"""Builds fastdl._C: the CPU part always, the CUDA part where nvcc is found.

FORCE_CUDA=1 fails without nvcc, FORCE_CUDA=0 leaves CUDA out; TORCH_CUDA_ARCH_LIST and MAX_JOBS as in PyTorch.
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from runpy import run_path

import setuptools

STABLE_ABI = "0x020a000000000000"  # torch 2.10: one build serves every later torch


def fail(message: str) -> None:
    """One line that says what was found and what to type."""
    sys.exit(f"fastdl: {message}")


try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    fail(f"building needs {error.name}, which {sys.executable} lacks: pip install 'torch>=2.10' ninja pybind11, "
         "then pip install --no-build-isolation .")  # fmt: skip
for name, found, least in (("torch", torch.__version__, "2.10"), ("setuptools", setuptools.__version__, "77.0")):
    if [int(x) for x in re.findall(r"\d+", found)[:2]] < [int(x) for x in least.split(".")]:
        fail(f"found {name} {found}, needs {least} or newer: pip install '{name}>={least}'")


def cuda_home():
    """Return the toolkit's folder, or None. nvcc on the PATH may be a wrapper script, so nvcc itself is asked."""
    force = os.environ.get("FORCE_CUDA", "")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = os.path.join(home, "bin", "nvcc") if home else shutil.which("nvcc")
    if force == "0" or not (nvcc and os.path.exists(nvcc)):
        if force == "1":
            fail(f"FORCE_CUDA=1 but no nvcc ({nvcc or 'PATH'}): set CUDA_HOME to a CUDA toolkit, or FORCE_CUDA=0")
        return None
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", dry_run, re.M)
    home = os.path.realpath(top.group(1)) if top else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))
    version = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if torch.version.cuda and version and version.group(1) != torch.version.cuda.split(".")[0]:
        fail(f"nvcc is CUDA {version.group(1)}, torch {torch.__version__} is CUDA {torch.version.cuda}: "
             "set CUDA_HOME to a toolkit of torch's major version, or FORCE_CUDA=0")  # fmt: skip
    return home


def default_jobs() -> int:
    """Two gigabytes a compiler, so that a small machine does not swap."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30
    return max(1, min(os.cpu_count() or 1, memory >> 31))


os.chdir(Path(__file__).parent)
os.environ.setdefault("MAX_JOBS", str(default_jobs()))
cuda = cuda_home()
common = ["-std=c++20", "-O3", "-g0", f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
cxx = [*common, "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
cxx += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]  # as torch: sqrt vectorises, bits agree
sources, args = ["csrc/module.cpp", *sorted(glob("csrc/*/cpu.cpp"))], {"cxx": cxx}
link, library_dirs = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"], cpp_extension.library_paths()
if cuda:
    cpp_extension.CUDA_HOME = cuda  # None under a CPU-only torch, which would then not find nvcc
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:  # torch would take 9.0, without wgmma; 9.0a's PTX runs on 9.0 alone
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())} or {(8, 0), (9, 0)}
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(f"{a}.{b}{'a' if a == 9 else '+PTX'}" for a, b in sorted(found))
    sources += sorted(glob("csrc/*/op*.cpp") + glob("csrc/*/api*.cu"))
    args["cxx"] = [*cxx, "-DUSE_CUDA", "-DFASTDL_CUDA", f"-I{cuda}/include",
                   f"-DFASTDL_ARCHS={re.sub('[; ]+', ',', os.environ['TORCH_CUDA_ARCH_LIST'])}"]  # fmt: skip
    args["nvcc"] = [*common[:2], common[3], "-Xcompiler=-fvisibility=hidden", "-DUSE_CUDA", "--expt-relaxed-constexpr",
                    *(["-DFASTDL_WGMMA"] if "9.0a" in os.environ["TORCH_CUDA_ARCH_LIST"] else []),
                    *(f"-U__CUDA_NO_{x}__" for x in ["HALF_OPERATORS", "HALF2_OPERATORS", "HALF_CONVERSIONS"]),
                    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"]  # fmt: skip
    link += [f"-L{cuda}/lib64", f"-L{cuda}/lib", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
digest = run_path("fastdl/_sources.py")["write_header"](Path("csrc"), bool(cuda), Path("build/include/sources.h"))
# pybind11 before torch, whose own copy refuses the stable ABI in some versions
include_dirs = [os.path.abspath("csrc"), digest, pybind11.get_include(), *cpp_extension.include_paths()]
extension = setuptools.Extension(
    "fastdl._C", sources, include_dirs=include_dirs, language="c++", library_dirs=library_dirs, libraries=["torch_cpu"],
    extra_compile_args=args, extra_link_args=link, depends=glob("csrc/**/*.*h", recursive=True),
)  # fmt: skip
setuptools.setup(ext_modules=[extension], cmdclass={"build_ext": cpp_extension.BuildExtension})
