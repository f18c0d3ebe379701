"""fastdl: training kernels for PyTorch, as drop-in modules, optimizers and data transforms."""

from fastdl import data as data
from fastdl import functional as functional
from fastdl import init as init
from fastdl import nn as nn
from fastdl import optim as optim
from fastdl import reference as reference
from fastdl.convert import convert as convert
from fastdl.convert import revert as revert
from fastdl.fold import fold as fold
from fastdl.gemm import float32_matmul as float32_matmul
from fastdl.gemm import matmul as matmul
from fastdl.tune import autotune as autotune

__version__ = "0.1.0"
