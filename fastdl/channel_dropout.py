"""Dropout of whole channels: an element's fate is that of its channel, by the channel's row-major index.

Source: Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdl.dropout import apply, check_probability, is_ours


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of an (N, C, L) or (C, L) input; counterpart of `torch.nn.functional.dropout1d`.

    p: probability of a channel to be zeroed; the others are scaled by 1 / (1 - p). training: False returns the input.
    inplace: write the output over the input.
    Raises ValueError for p outside [0, 1], RuntimeError for other dimensions.
    """
    check_probability(p)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input. Note that dropout1d exists to "
            "provide channel-wise dropout on inputs with 1 spatial dimension, a channel dimension, and an optional "
            "batch dimension (i.e. 2D or 3D inputs)."
        )
    return _feature_dropout(F.dropout1d, input, p, training, inplace, 2 if input.dim() == 3 else 1)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of an (N, C, H, W) input; counterpart of `torch.nn.functional.dropout2d`.

    p, training and inplace as in `fastdl.functional.dropout1d`. As torch does, takes 3 dimensions for (N, C, L) with a
    warning, and warns of other dimensions. Raises ValueError for p outside [0, 1], RuntimeError for fewer than 2.
    """
    check_probability(p)
    if input.dim() not in (3, 4):
        warnings.warn(_deprecated("dropout2d", input.dim(), 2), stacklevel=2)
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is desired "
            "- input is interpreted as shape (N, C, L), where C is the channel dim. This behavior will change in a "
            "future release to interpret the input as one without a batch dimension, i.e. shape (C, H, W). To "
            "maintain the 1D channel-wise dropout behavior, please switch to using dropout1d instead.",
            stacklevel=2,
        )
    return _feature_dropout(F.dropout2d, input, p, training, inplace, 2)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of an (N, C, D, H, W) or (C, D, H, W) input; counterpart of `torch.nn.functional.dropout3d`.

    p, training and inplace as in `fastdl.functional.dropout1d`. As torch does, warns of other dimensions. Raises
    ValueError for p outside [0, 1], RuntimeError for a scalar.
    """
    check_probability(p)
    if input.dim() not in (4, 5):
        warnings.warn(_deprecated("dropout3d", input.dim(), 3), stacklevel=2)
    return _feature_dropout(F.dropout3d, input, p, training, inplace, 2 if input.dim() == 5 else 1)


def _deprecated(name: str, dim: int, spatial: int) -> str:
    return (
        f"{name}: Received a {dim}-D input to {name}, which is deprecated and will result in an error in a future "
        "release. To retain the behavior and silence this warning, please use dropout instead. Note that "
        f"{name} exists to provide channel-wise dropout on inputs with {spatial} spatial dimensions, a channel "
        f"dimension, and an optional batch dimension (i.e. {spatial + 1}D or {spatial + 2}D inputs)."
    )


def _feature_dropout(torch_form: Any, input: Tensor, p: float, training: bool, inplace: bool, leading: int) -> Tensor:
    """One decision per index of the `leading` dimensions: (N, C), or (C) without a batch."""
    if not is_ours(input):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told already
            output: Tensor = torch_form(input, p, training, inplace)
        return output
    if not training or p == 0:
        return input
    if input.dim() < leading:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    return apply(input, p, inplace, None, None, max(1, input.shape[leading:].numel()))


class Dropout1d(torch.nn.Dropout1d):
    """Drop-in for `torch.nn.Dropout1d`: zeroes whole channels of an (N, C, L) or (C, L) input.

    p: probability of a channel to be zeroed; inplace: write the output over the input. Raises ValueError for p outside
    [0, 1], and in forward what `fastdl.functional.dropout1d` raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each channel kept and scaled, or zero."""
        return dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(torch.nn.Dropout2d):
    """Drop-in for `torch.nn.Dropout2d`: zeroes whole channels of an (N, C, H, W) or (N, C, L) input.

    p: probability of a channel to be zeroed; inplace: write the output over the input. Raises ValueError for p outside
    [0, 1], and in forward what `fastdl.functional.dropout2d` raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each channel kept and scaled, or zero."""
        return dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(torch.nn.Dropout3d):
    """Drop-in for `torch.nn.Dropout3d`: zeroes whole channels of an (N, C, D, H, W) or (C, D, H, W) input.

    p: probability of a channel to be zeroed; inplace: write the output over the input. Raises ValueError for p outside
    [0, 1], and in forward what `fastdl.functional.dropout3d` raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each channel kept and scaled, or zero."""
        return dropout3d(input, self.p, self.training, self.inplace)
