"""Named inputs that every op must take, and the one table of tolerances."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Added to twice torch's own error, relative to the largest expected value. A few rounding steps of the dtype (float32
# and float64: a few hundred, since sums run in another order): where torch happens to be exact, one is not wrong.
TINY = {torch.float64: 1e-13, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_accurate(actual: Tensor, by_torch: Tensor, exact: Tensor) -> None:
    """Hold err(actual) to 2 · err(torch, same dtype) + TINY, both against `exact` in float64. NaN never passes."""
    assert actual.shape == exact.shape
    assert actual.dtype == by_torch.dtype
    if exact.numel() == 0:
        return
    error, allowed = (actual.double() - exact).abs().max(), (by_torch.double() - exact).abs().max()
    budget = 2 * allowed + TINY[actual.dtype] * exact.abs().max().clamp(min=1)
    assert error <= budget, f"error {error:.3g}, torch's {allowed:.3g}, allowed {budget:.3g}"


# name -> function of a tensor maker (shape -> tensor) that returns the case
LAYOUTS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "scalar": lambda make: make(()),
    "one": lambda make: make((1,)),
    "empty": lambda make: make((0,)),
    "empty channel": lambda make: make((2, 0, 3)),
    "a vector": lambda make: make((8,)),
    "odd": lambda make: make((7, 13)),
    "long": lambda make: make((3, 2741)),
    "unaligned": lambda make: make((1038,))[1:],
    "transposed": lambda make: make((37, 21)).t(),
    "channels_last": lambda make: make((2, 5, 6, 7)).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda make: make((2, 3, 4, 5, 6)).to(memory_format=torch.channels_last_3d),
    "permuted": lambda make: make((3, 4, 5, 6)).permute(2, 0, 3, 1),
    "sliced": lambda make: make((9, 40))[1::2, 3:-2],
    "stepped": lambda make: make((5, 64))[:, ::3],
    "expanded": lambda make: make((6, 1, 5)).expand(6, 4, 5),
}


def make_normal(dtype: torch.dtype, device: torch.device | str = "cpu") -> Callable[..., Tensor]:
    """Return a maker of N(0, 1) tensors."""
    return lambda shape: torch.randn(shape, device=device).to(dtype)
