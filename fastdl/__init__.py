"""fastdl: training kernels for PyTorch, as drop-in modules, optimizers and data transforms."""

__version__ = "0.1.0"
