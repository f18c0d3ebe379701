"""Philox4x32-10 in torch ops: the same bits as csrc/philox.cuh, on any device.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
WIDE_STREAM = 1  # dropout's 32-bit path draws from a stream of its own


def philox_block(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt a 4-word counter with a 2-word key; words in [0, 2**32) held in int64 tensors of any one shape.

    int64 products wrap, which leaves all 64 bits right.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            ((product0 >> 32) & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def philox(seed: Tensor, counter: Tensor, stream: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words in [0, 2**32) as int64 tensors of the counter's shape.

    seed: one int64 value, the key; counter: int64, any shape; stream: which of 2**32 independent sequences.
    """
    words = counter & _WORD, (counter >> 32) & _WORD, torch.full_like(counter, stream), torch.zeros_like(counter)
    return philox_block(words, (seed & _WORD, (seed >> 32) & _WORD))


def new_seed(device: torch.device) -> Tensor:
    """Draw a seed, one int64 value, from torch's generator of the device: torch.manual_seed rules."""
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def keep_mask(shape: torch.Size | tuple[int, ...], seed: Tensor, p: float) -> Tensor:
    """Return which elements survive dropout with probability p, bool of `shape`, by logical element index.

    16 random bits an element (32 where p < 1/64 or p > 63/64), so the mask depends on seed, p and index alone.
    """
    n = torch.Size(shape).numel()
    if p >= 1:
        return torch.zeros(shape, dtype=torch.bool, device=seed.device)
    wide = p < 1 / 64 or p > 63 / 64
    per_call = 4 if wide else 8
    counter = torch.arange((n + per_call - 1) // per_call, device=seed.device)
    words = torch.stack(philox(seed, counter, WIDE_STREAM if wide else 0), dim=1)
    bits = words if wide else torch.stack((words & 0xFFFF, words >> 16), dim=2)
    threshold = min(int(p * (2**32 if wide else 2**16) + 0.5), 2**32 - 1)
    return (bits.reshape(-1)[:n] >= threshold).reshape(shape)
