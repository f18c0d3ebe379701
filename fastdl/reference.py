"""The published formula of every op in a few lines of torch: float64, any device, no cleverness."""

from fastdl.dropout import dropout_backward_reference as dropout_backward_reference
from fastdl.dropout import dropout_reference as dropout_reference
from fastdl.gemm import reference as matmul
from fastdl.linear import reference as linear
from fastdl.linear import reference_backward as linear_backward
