"""The block Linear, BatchNorm1d, activation, dropout."""

import torch
from torch import Tensor, nn

from fastdl.activation import check_activation
from fastdl.batch_norm import BatchNorm1d
from fastdl.dropout import check_probability
from fastdl.linear import Linear


class LinearBatchNormAct(nn.Module):
    """dropout(activation(batch_norm(linear(input)) + residual)), as the modules `linear` and `norm`.

    input: (N, in_features); output and residual: (N, out_features). `bias` is the linear layer's: batch norm takes a
    constant shift away again, so there is none unless asked for. eps, momentum, affine and track_running_stats are
    torch.nn.BatchNorm1d's, device and dtype both layers'; activation and dropout as in `fastdl.functional.linear`.
    Raises ValueError for an unknown activation or a probability outside [0, 1], and in forward what the two layers
    raise.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = "relu",
        dropout: float = 0.0,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        check_activation("LinearBatchNormAct", activation)
        check_probability(dropout)
        super().__init__()
        self.linear = Linear(in_features, out_features, bias, device, dtype)
        self.norm = BatchNorm1d(
            out_features, eps, momentum, affine, track_running_stats, device, dtype,
            activation=activation, dropout=dropout,
        )  # fmt: skip

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Return dropout(activation(batch_norm(linear(input)) + residual))."""
        output: Tensor = self.norm(self.linear(input), residual=residual)
        return output
