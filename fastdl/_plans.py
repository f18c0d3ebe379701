"""What the kernels would do with some well-known shapes on a GPU: pure functions, asked of the compiled library."""

from typing import Any

H200 = {"name": "an H200 (not here)", "compute_capability": "9.0", "multiprocessors": 132, "shared_bytes": 232448}
_IMAGES = ((32, 64, 112), (32, 256, 56), (32, 512, 28), (32, 2048, 7), (256, 64, 112), (4, 128, 1024))
# name -> (M, N, K, layouts of the operands): "n" has adjacent columns, "t" adjacent rows
_PRODUCTS = {
    "8192 cubed": (8192, 8192, 8192, "nn"),
    "512 cubed": (512, 512, 512, "nn"),
    "GPT-2 MLP": (8192, 3072, 768, "nt"),
    "its input gradient": (8192, 768, 3072, "nn"),
    "its weight gradient": (3072, 768, 8192, "tn"),
    "one token, 4096 wide": (1, 4096, 4096, "nt"),
    "16 tokens, 4096 wide": (16, 4096, 4096, "nt"),
    "2039 x 2053 x 1031": (2039, 2053, 1031, "nt"),
}


def batch_norm_plans(gpu: dict[str, Any], layout: str) -> dict[str, str]:
    """Return how the kernels would share bfloat16 images among this GPU's blocks, by shape."""
    from fastdl import _C

    modern = float(gpu["compute_capability"]) >= 8  # api.cu, limits()
    device = (gpu["multiprocessors"], gpu["shared_bytes"] if modern else 0, float(gpu["compute_capability"]) >= 9)

    def plan(n: int, c: int, size: int, operands: int) -> str:
        p = _C.batch_norm_plan(n, c, size * size, 2, operands, True, True, *device, layout == "channels_last")
        shape = f"{p['regime']}, {p['blocks']} blocks"
        if p["team"] > 1:
            shape += f", {p['team']} for {p['pack']} channels"
        elif p["pack"] > 1:
            shape += f", {p['pack']} channels each"
        return shape + (f", {p['shared_bytes'] >> 10} KiB each" if p["shared_bytes"] else "")

    return {
        str((n, c, size, size)): f"forward {plan(n, c, size, 1)}; backward {plan(n, c, size, 2)}"
        for n, c, size in _IMAGES
    }


def product_plans(gpu: dict[str, Any], dtype: str, precision: int = 0) -> dict[str, str]:
    """Return which kernels would make matrix products of this dtype (and float32's precision), and in which tiles."""
    from fastdl import _C

    device = (gpu["multiprocessors"], round(10 * float(gpu["compute_capability"])), gpu["shared_bytes"])

    def plan(m: int, n: int, k: int, layouts: str) -> str:
        p = _C.gemm_plan(1, m, n, k, dtype, layouts, precision, False, *device)
        parts = f", k in {p['splits']} parts" if p["splits"] > 1 else ""
        parts += " of a cluster" if p["near"] else ""
        parts += f", behind a pass over {' and '.join(p['repacks'])}" if p["repacks"] else ""
        return f"{p['family']}, tiles of {' x '.join(map(str, p['tile']))}{parts}"

    return {name: plan(*shape) for name, shape in _PRODUCTS.items()}


def plans(gpu: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return all plans for a GPU as `fastdl.info.report` describes it, by subject."""
    images = {f"Batch norm of {layout} bfloat16 images": batch_norm_plans(gpu, layout)
              for layout in ("contiguous", "channels_last")}  # fmt: skip
    products = {
        "Products of bfloat16": product_plans(gpu, "bfloat16"),
        "Products of float32": product_plans(gpu, "float32"),
        'Products of float32, "high" (tf32)': product_plans(gpu, "float32", 1),
    }
    return {**images, **products}
