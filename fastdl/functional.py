"""Counterpart of torch.nn.functional for what fastdl provides."""

from fastdl.batch_norm import batch_norm as batch_norm
from fastdl.channel_dropout import dropout1d as dropout1d
from fastdl.channel_dropout import dropout2d as dropout2d
from fastdl.channel_dropout import dropout3d as dropout3d
from fastdl.dropout import dropout as dropout
from fastdl.linear import linear as linear
from fastdl.mlp import mlp as mlp
