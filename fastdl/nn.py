"""Counterpart of torch.nn for what fastdl provides."""

from fastdl.batch_norm import BatchNorm1d as BatchNorm1d
from fastdl.batch_norm import BatchNorm2d as BatchNorm2d
from fastdl.batch_norm import BatchNorm3d as BatchNorm3d
