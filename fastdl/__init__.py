"""fastdl: training kernels for PyTorch, as drop-in modules, optimizers and data transforms."""

from fastdl.convert import convert as convert
from fastdl.convert import revert as revert
from fastdl.gemm import matmul as matmul

__version__ = "0.1.0"
