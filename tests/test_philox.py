"""Philox and the keep decision: published vectors, C++ against torch, counters beyond 2**32, and statistics."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from fastdl.philox import keep_mask, new_seed, philox, philox_block

# Known-answer vectors of Random123 (Salmon et al. 2011) for Philox4x32-10: counter, key, output.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
PROBABILITIES = [1e-12, 1e-4, 0.0156, 1 / 64, 0.1, 0.5, 0.9, 63 / 64, 0.99, 1 - 1e-12]


def words(text):
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_known_answers(counter, key, output):
    assert philox_block(words(counter), words(key)) == words(output)


def keep_at(index: int, seed: int, p: float) -> bool:
    """The rule of csrc/philox.cuh in Python integers."""
    wide = p < 1 / 64 or p > 63 / 64
    counter, lane = divmod(index, 4 if wide else 8)
    bits = torch.stack(philox(torch.tensor(seed), torch.tensor(counter), 1 if wide else 0)).tolist()
    if wide:
        return bits[lane] >= min(int(p * 2**32 + 0.5), 2**32 - 1)
    return (bits[lane // 2] >> (16 * (lane % 2)) & 0xFFFF) >= int(p * 2**16 + 0.5)


@pytest.mark.parametrize("p", PROBABILITIES)
def test_mask_is_the_rule(p):
    seed = torch.tensor([-7])
    assert keep_mask((3, 11), seed, p).flatten().tolist() == [keep_at(i, -7, p) for i in range(33)]


def literals(vector):
    return [", ".join(f"0x{word}u" for word in text.split()) for text in vector]


def test_cpp_agrees_beyond_32_bits(tmp_path):
    """The known answers at compile time, then keep_element around every power of two that an index could lose."""
    checks = "\n".join(
        "static_assert(same(philox_block({{{}}}, {}), {{{}}}));".format(*literals(vector)) for vector in VECTORS
    )
    indices = [2**k + d for k in (3, 16, 31, 32, 33, 34, 35, 36, 40, 62) for d in (-9, -1, 0, 1, 7)]
    indices = [i for i in indices if i >= 0]
    (tmp_path / "main.cpp").write_text(f"""
#include "philox.cuh"
#include <cstdio>
#include <initializer_list>
using namespace fastdl;
constexpr bool same(Philox4 a, Philox4 b) {{
  return a.word[0] == b.word[0] && a.word[1] == b.word[1] && a.word[2] == b.word[2] && a.word[3] == b.word[3];
}}
{checks}
int main() {{
  for (double p : {{{", ".join(map(repr, PROBABILITIES))}}}) {{
    const KeepRule rule = KeepRule::of(p);
    for (uint64_t i : {{{", ".join(f"{i}ull" for i in indices)}}}) {{
      std::putchar('0' + keep_element(uint64_t(-7), i, rule));
    }}
  }}
}}
""")
    csrc = Path(__file__).parent.parent / "csrc"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, "-std=c++20", "-O1", f"-I{csrc}", "main.cpp", "-o", "main"], cwd=tmp_path, check=True)
    output = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    assert output == "".join(str(int(keep_at(i, -7, p))) for p in PROBABILITIES for i in indices)


def test_seeds_follow_torch():
    device = torch.device("cpu")
    torch.manual_seed(3)
    first, second = new_seed(device), new_seed(device)
    torch.manual_seed(3)
    assert first == new_seed(device)
    assert first != second
    assert first.dtype == torch.int64
    assert first.shape == (1,)


def chi_square(observed: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_keep_rate_by_chi_square(p):
    """500 blocks of 4096: each block's count is binomial, so the sum of squares is χ² with 500 degrees."""
    from scipy.stats import chi2

    n = 4096
    kept = keep_mask((500, n), torch.tensor([11]), p).sum(1).double()
    statistic = float(((kept - n * (1 - p)) ** 2 / (n * p * (1 - p))).sum())
    assert chi2.ppf(1e-5, 500) < statistic < chi2.ppf(1 - 1e-5, 500)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 7, 8, 9, 64, 4096])
@pytest.mark.parametrize("p", [0.5, 0.005])
def test_neighbours_are_independent(p, distance):
    """Counts of (mask[i], mask[i + distance]) against the product of their rates: χ² with 3 degrees."""
    mask = keep_mask((1 << 20,), torch.tensor([5]), p)
    a, b = mask[:-distance].long(), mask[distance:].long()
    observed = torch.bincount(2 * a + b, minlength=4).double()
    q = 1 - p
    assert chi_square(observed, torch.tensor([p * p, p * q, q * p, q * q]).double() * len(a)) < 30  # P = 1.4e-6


def test_seeds_are_independent():
    masks = torch.stack([keep_mask((4096,), torch.tensor([s]), 0.5) for s in (0, 1, 2**32, -1, -(2**63))]).double()
    correlation = torch.corrcoef(masks) - torch.eye(5)
    assert correlation.abs().max() < 5 / 64  # five standard deviations
