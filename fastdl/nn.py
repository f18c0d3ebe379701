"""Counterpart of torch.nn for what fastdl provides."""

from fastdl.linear import Linear as Linear
from fastdl.linear_batch_norm import LinearBatchNormAct as LinearBatchNormAct
