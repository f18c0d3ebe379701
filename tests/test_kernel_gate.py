"""The gate reads ptxas correctly and fails on what a shipped kernel must not do."""

import subprocess
import sys

import kernel_gate
import pytest

NVCC = kernel_gate.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_90a'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function '_Z3badPf'
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90a'
ptxas info    : Function properties for _Z3badPf
    64 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function '_Z3badPf'
"""


def test_report_is_read():
    good, bad = kernel_gate.parse(REPORT, "sm_90a")
    assert (good.registers, good.shared, good.stack) == (40, 1024, 0)
    assert (bad.registers, bad.stack, bad.spill_stores, bad.spill_loads) == (255, 64, 16, 24)
    assert any("C7510" in text for text in bad.violations())
    assert any("spills 16 bytes out, 24 bytes in" in text for text in bad.violations())


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        (
            "void fastdl::add_kernel<float, (fastdl::Mode)1>(float*, fastdl::Plan<(bool)0>)",
            "add_kernel<float, (Mode)1>",
        ),
        ("fastdl::optim::step_kernel(int)", "optim::step_kernel"),
        ("main_kernel", "main_kernel"),
    ],
)
def test_names_keep_their_template_arguments(demangled, short):
    assert kernel_gate.short_name(demangled) == short


# 64 values alive across a barrier, 32 registers a thread.
SPILL = """
__global__ void __launch_bounds__(1024, 2) spilling_kernel(const float* x, float* y) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) y[i * 1024 + threadIdx.x] = v[63 - i];
}
"""
CLEAN = "__global__ void clean_kernel(float* y) { y[threadIdx.x] = 1; }\n"


def gate(*sources):
    command = [sys.executable, kernel_gate.__file__, *map(str, sources)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@needs_nvcc
def test_clean_kernel_passes_and_is_listed(tmp_path):
    source = tmp_path / "clean.cu"
    source.write_text(CLEAN)
    result = gate(source)
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(f"clean_kernel  {arch}" in result.stdout for arch in kernel_gate.ARCHITECTURES)


@needs_nvcc
def test_spilling_kernel_fails_by_name(tmp_path):
    source = tmp_path / "spill.cu"
    source.write_text(SPILL)
    result = gate(source)
    assert result.returncode == 1
    assert "kernel gate: spilling_kernel" in result.stdout


@needs_nvcc
def test_broken_kernel_fails(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("__global__ void broken_kernel() { undefined(); }\n")
    result = gate(source)
    assert result.returncode == 1
    assert "broken.cu does not compile" in result.stdout
