"""Matrix products: fastdl.matmul, as torch.matmul, on our kernels where there are any."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastdl import _library, tune

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def matmul_reference(a: Tensor, b: Tensor, precision: int = 0, scale: float = 1.0) -> Tensor:
    """Return c[..., m, n] = scale times the sum over k of a[..., m, k] b[..., k, n]."""
    return torch.matmul(a, b) if scale == 1 else torch.matmul(a, b) * scale


HIGHEST, HIGH, EMULATED = range(3)  # Precision in csrc/gemm/problem.h
_MODES = {"highest": HIGHEST, "high": HIGH, "emulated": EMULATED}
_scoped: int | None = None  # a plain global, which compiled graphs guard: a change recompiles


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a change recompiles
def _torchs_precision() -> int:
    return HIGHEST if torch.get_float32_matmul_precision() == "highest" else HIGH


def float32_precision() -> int:
    """Return how kernels multiply float32: as `float32_matmul` or else torch.set_float32_matmul_precision says."""
    return _torchs_precision() if _scoped is None else _scoped


def wished_precision(op: str, mode: str | None) -> int | None:
    """Return the precision that a call asks for, if it does."""
    if mode is not None and mode not in _MODES:
        raise ValueError(f"{op}: float32 must be None or one of {', '.join(_MODES)}, got {mode!r}")
    return None if mode is None else _MODES[mode]


@contextmanager
def float32_matmul(mode: str) -> Iterator[None]:
    """Choose how kernels multiply float32 inside the scope; a gradient follows the mode of its forward pass.

    mode: "highest", by fused multiply-adds; "high", operands rounded to tf32 on tensor cores (11 bits of each);
    "emulated", each operand as the sum of three bfloat16 (its 24 bits, exactly) and six of their nine products on
    tensor cores, with sums moved to float32 registers every 32 steps or less. Its rms errors are at or below those of
    "highest", by a model of tensor cores that cut their sums; no GPU has been asked yet. It is taken on processors
    whose tensor cores make it faster (8.0, 9.0 and 10.x), for products that are large enough, never by default.

    Without a scope "highest", or torch.set_float32_matmul_precision where that allows more ("high" and "medium": tf32).
    Infinities and NaN come out as with "highest": sums that are not finite are taken again as float32, slowly. Below
    2^-110 an operand keeps an absolute error under 2^-134. Products of up to four rows or columns, other dtypes and CPU
    tensors (torch's kernels, true float32) are not affected. The setting is the process's, as torch's is. Raises
    ValueError for another mode.

    Source: Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
    Computations" (2019); promotion: Ootomo and Yokota (2022).

    >>> with float32_matmul("emulated"):
    ...     matmul(torch.ones(2, 3), torch.ones(3))
    tensor([3., 3.])
    """
    global _scoped
    if mode not in _MODES:
        raise ValueError(f"float32_matmul: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    previous, _scoped = _scoped, _MODES[mode]
    try:
        yield
    finally:
        _scoped = previous


def _fake(a: Tensor, b: Tensor, precision: int = 0, scale: float = 1.0) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.size(-1)))


GEMM = _library.define(
    "gemm(Tensor a, Tensor b, int precision=0, float scale=1.0) -> Tensor", fake=_fake, reference=matmul_reference
)


class _Gemm(torch.autograd.Function):
    """a (M, K) or (B, M, K), b (K, N) or (B, K, N); any strides."""

    @staticmethod
    def forward(ctx, a, b, precision, scale):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b)
        ctx.options = precision, scale
        return GEMM(a, b, precision, scale)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]
        a, b = ctx.saved_tensors
        if 1 not in grad_output.stride()[-2:]:  # an expanded gradient, as of a sum: tensor cores want rows or columns
            grad_output = grad_output.contiguous()
        grad_a = gemm(grad_output, b.mT, *ctx.options) if ctx.needs_input_grad[0] else None
        grad_b = gemm(a.mT, grad_output, *ctx.options) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b, None, None


def gemm(a: Tensor, b: Tensor, precision: int | None = None, scale: float = 1.0) -> Tensor:
    """Return scale times the product of two matrices or of two equal batches; differentiable any number of times.

    precision: of float32, as of `float32_precision` at the forward pass; None: now.
    """
    precision = float32_precision() if precision is None else precision
    if tune.is_on():
        tune.meet(a, b, precision, lambda: GEMM(a, b, precision, scale))
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _Gemm.apply(a, b, precision, scale)  # type: ignore[no-any-return, no-untyped-call]
    return GEMM(a, b, precision, scale)  # type: ignore[no-any-return]


def product(a: Tensor, b: Tensor, precision: int | None = None) -> Tensor:
    """Return the product of two matrices of one floating dtype: `gemm`, or torch's own kernels on CPU tensors."""
    return gemm(a, b, precision) if a.is_cuda or GEMM.run is not GEMM.overload else torch.matmul(a, b)


def transforms_active() -> bool:
    """Return whether torch.func transforms or forward-mode AD look at this call: torch's own ops serve those."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def has_kernel(op: _library.Op, *tensors: Tensor) -> bool:
    """Return whether `op` should take the tensors: one strided floating dtype, and kernels of ours to run them.

    Torch's own kernels serve plain products on CPU tensors, other dtypes, layouts and subclasses.
    """
    first = tensors[0]
    return (
        (first.is_cuda or op.run is not op.overload)
        and first.dtype in FLOATING
        and all(t.dtype == first.dtype and t.device == first.device and t.layout == torch.strided for t in tensors)
        and not torch.overrides.has_torch_function(tensors)
        and not transforms_active()
    )


def autocast(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype that torch's autocast gives the operands of a matrix product."""
    device = tensor.device.type
    if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16) and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def _product(a: Tensor, b: Tensor, scale: float, precision: int | None) -> Tensor:
    """Reduce torch.matmul's shapes to one matrix or one batch: views wherever strides allow."""
    vector_a, vector_b = a.dim() == 1, b.dim() == 1
    a = a.unsqueeze(0) if vector_a else a
    b = b.unsqueeze(1) if vector_b else b
    rows, columns = a.shape[-2:-1], b.shape[-1:]
    if b.dim() == 2:  # a's batch becomes rows: one product, and b's gradient needs no sum over the batch
        batch = a.shape[:-2]
        result = gemm(a.flatten(0, -2), b, precision, scale)
    else:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        size = batch.numel()
        a = a.expand(*batch, *a.shape[-2:]).reshape(size, *a.shape[-2:])
        b = b.expand(*batch, *b.shape[-2:]).reshape(size, *b.shape[-2:])
        result = gemm(a, b, precision, scale)
    return result.reshape(batch + (rows if not vector_a else ()) + (columns if not vector_b else ()))


def matmul(
    input: Tensor, other: Tensor, *, scale: float = 1.0, out: Tensor | None = None, float32: str | None = None
) -> Tensor:
    """Return scale times the matrix product, with torch.matmul's rules for 1-d, 2-d and batched operands.

    input: (K,) or (*, M, K); other: (K,) or (*, K, N), batch dimensions broadcast; any strides. Sums are taken in
    float32 (float64 for float64) and scaled before they are rounded. On kernels
    torch.set_float32_matmul_precision("high" or "medium") rounds float32 operands to tf32; the default multiplies them
    as they are; `float32_matmul` chooses for a scope, and float32, one of its modes, for this call and its gradients.
    CPU tensors, integers and complex numbers take torch's own kernels, and a multiplication where scale is not 1. out:
    a tensor to write the result to, by torch's kernels. Raises RuntimeError as torch.matmul does, and ValueError for
    another mode.

    >>> matmul(torch.ones(2, 3), torch.ones(3), scale=0.5)
    tensor([1.5000, 1.5000])
    """
    precision = wished_precision("matmul", float32)
    if out is not None:
        torch.matmul(input, other, out=out)
        return out if scale == 1 else out.mul_(scale)
    if not (input.is_cuda or GEMM.run is not GEMM.overload):
        return matmul_reference(input, other, 0, scale)
    a, b = autocast(input), autocast(other)
    fits = (
        min(a.dim(), b.dim()) >= 1
        and a.size(-1) == b.size(-2 if b.dim() > 1 else -1)
        and all(x == y or 1 in (x, y) for x, y in zip(reversed(a.shape[:-2]), reversed(b.shape[:-2])))
    )
    if not (fits and has_kernel(GEMM, a, b)):
        return matmul_reference(input, other, 0, scale)
    return _product(a, b, scale, precision)
