"""Counterpart of torch.nn for what fastdl provides."""

from fastdl.batch_norm import BatchNorm1d as BatchNorm1d
from fastdl.batch_norm import BatchNorm2d as BatchNorm2d
from fastdl.batch_norm import BatchNorm3d as BatchNorm3d
from fastdl.channel_dropout import Dropout1d as Dropout1d
from fastdl.channel_dropout import Dropout2d as Dropout2d
from fastdl.channel_dropout import Dropout3d as Dropout3d
from fastdl.dropout import Dropout as Dropout
from fastdl.linear import Linear as Linear
from fastdl.linear_batch_norm import LinearBatchNormAct as LinearBatchNormAct
from fastdl.mlp import MLP as MLP
