"""The published formula of every op in a few lines of torch: float64, any device, no cleverness."""

from fastdl.batch_norm import batch_norm_backward_reference as batch_norm_backward_reference
from fastdl.batch_norm import batch_norm_reference as batch_norm_reference
from fastdl.dropout import dropout_backward_reference as dropout_backward_reference
from fastdl.dropout import dropout_reference as dropout_reference
from fastdl.gemm import matmul_reference as matmul_reference
from fastdl.linear import linear_reference as linear_reference
from fastdl.linear_backward import linear_backward_reference as linear_backward_reference
from fastdl.linear_backward import linear_grad_input_reference as linear_grad_input_reference
from fastdl.linear_backward import linear_grad_weight_reference as linear_grad_weight_reference
from fastdl.linear_batch_norm import linear_batch_norm_reference as linear_batch_norm_reference
from fastdl.optim.adagrad import adagrad_update as adagrad_update
from fastdl.optim.adam import adam_update as adam_update
from fastdl.optim.rmsprop import rmsprop_update as rmsprop_update
from fastdl.optim.sgd import sgd_update as sgd_update
