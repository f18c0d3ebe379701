"""Stochastic rounding: its formula, and where an optimizer's random bits come from.

A step draws nothing from a generator. Bits are a function of the group's `rounding_seed`, the parameter's own count of
steps, its place in the optimizer, and the element: a saved run continues with them, a replayed CUDA graph moves on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastdl.philox import philox_block


def round_stochastically(
    value: Tensor, dtype: torch.dtype, seed: int, step: int = 1, ordinal: int = 0, slot: int = 0
) -> Tensor:
    """Round float32 to a 16-bit dtype, up with the probability of the part cut off; bits as csrc/optim/rounding.h.

    Element i of operand `slot` (0: the parameter, 1...: its states) of parameter `ordinal` draws half a word of
    Philox under the key `seed`, at the counter (i // 4, 2 * ordinal + slot // 2, step).
    """
    call = torch.arange((value.numel() + 3) // 4, device=value.device)
    stream, count = (torch.full_like(call, word) for word in (2 * ordinal + slot // 2, step))
    key = tuple(torch.full_like(call, word) for word in (seed & 0xFFFFFFFF, seed >> 32))
    words = philox_block((call & 0xFFFFFFFF, call >> 32, stream, count), (key[0], key[1]))
    flat = torch.stack(words, dim=1).reshape(-1)[: value.numel()]
    random = (flat >> 16 * (slot % 2) & 0xFFFF).reshape(value.shape)
    if dtype == torch.bfloat16:
        bits = value.contiguous().view(torch.int32) + random.to(torch.int32)
        rounded = (bits & -65536).view(torch.float32)
    else:
        exponent = torch.frexp(value).exponent - 1  # float16 is evenly spaced by 2^-24 below 2^-14
        spacing = torch.ldexp(torch.ones_like(value), torch.clamp(exponent - 10, min=-24))
        rounded = torch.floor(value.abs() / spacing + random / 65536.0) * spacing
        rounded = rounded.copysign(value)
    return torch.where(value.isfinite(), rounded, value).to(dtype)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def draw_seed() -> int:
    """Draw a seed that a float64 holds from torch's CPU generator: torch.manual_seed rules, on every device."""
    return int(torch.randint(2**53, (), dtype=torch.int64, device="cpu"))


class RoundingOptimizer(Optimizer):
    """Mixin: the seed that groups keep under "rounding_seed", and what else keys the bits."""

    def _seed_rounding(self) -> None:
        """Give groups that round and have no seed the one of the others, or one that is drawn now."""
        lacking = [g for g in self.param_groups if g["stochastic_rounding"] and g["rounding_seed"] is None]
        if lacking:
            known = (g["rounding_seed"] for g in self.param_groups if g["rounding_seed"] is not None)
            seed = next(known, None)
            seed = draw_seed() if seed is None else seed
            for group in lacking:
                group["rounding_seed"] = seed

    def _ordinals(self, members: Sequence[Tensor]) -> list[int]:
        """Return the parameters' places among all: of a step's alone, one gradient more would shift the bits."""
        places = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        return [places[p] for p in members]
