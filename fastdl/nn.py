"""Counterpart of torch.nn for what fastdl provides."""

from fastdl.dropout import Dropout as Dropout
from fastdl.dropout import Dropout1d as Dropout1d
from fastdl.dropout import Dropout2d as Dropout2d
from fastdl.dropout import Dropout3d as Dropout3d
