"""The plan of a product and the schedule of its tiles: pure functions of sizes and device."""

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdl import _C

H200, A100, T4 = (132, 90, 227 << 10), (108, 80, 163 << 10), (40, 75, 64 << 10)
HIGHEST, HIGH, EMULATED, ALWAYS_EMULATED = range(4)
sizes = st.integers(1, 700) | st.sampled_from([1, 64, 128, 129, 1024, 4096])
quick = settings(deadline=None, max_examples=200, derandomize=True)


def plan(m, n, k, dtype="bfloat16", *, batch=1, layouts="nn", precision=HIGHEST, partials=False, device=A100):
    return _C.gemm_plan(batch, m, n, k, dtype, layouts, precision, partials, *device)


@quick
@given(
    batch=st.integers(1, 3), m=sizes, n=sizes, k=st.integers(0, 3000), tile_m=st.sampled_from([64, 128, 256]),
    tile_n=st.sampled_from([64, 128, 256]), tile_k=st.sampled_from([8, 16, 32, 64]), splits=st.integers(1, 9),
    near=st.booleans(),
)  # fmt: skip
def test_every_tile_once_and_all_of_k(batch, m, n, k, tile_m, tile_n, tile_k, splits, near):
    tiles = [tuple(tile) for tile in _C.gemm_tiles(batch, m, n, k, tile_m, tile_n, tile_k, splits, near)]
    rows, columns = -(-m // tile_m), -(-n // tile_n)
    assert sorted(tile[:4] for tile in tiles) == [
        (b, s, r, c) for b in range(batch) for s in range(splits) for r in range(rows) for c in range(columns)
    ]
    ranges = {tile[1]: tile[4:] for tile in tiles}
    assert all(ranges[tile[1]] == tile[4:] for tile in tiles)  # equal for all tiles
    ends = [ranges[s] for s in range(splits)]
    assert (ends[0][0], ends[-1][1]) == (0, k)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    assert all(begin % tile_k == 0 for begin, end in ends if end > begin)
    for i in range(0, len(tiles) if near else 0, splits):  # a cluster's blocks, by rank: one tile's parts of k
        assert [tile[1] for tile in tiles[i : i + splits]] == list(range(splits))
        assert len({(tile[0], tile[2], tile[3]) for tile in tiles[i : i + splits]}) == 1


@quick
@given(
    batch=st.integers(1, 9), m=sizes, n=sizes, k=st.integers(0, 1 << 20), partials=st.booleans(),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    layouts=st.sampled_from(["nn", "nt", "tn", "tt", "sn", "ns"]), precision=st.integers(HIGHEST, ALWAYS_EMULATED),
    device=st.sampled_from([H200, A100, T4]),
)  # fmt: skip
def test_plans_are_possible(batch, m, n, k, partials, dtype, layouts, precision, device):
    found = plan(m, n, k, dtype, batch=batch, layouts=layouts, precision=precision, partials=partials, device=device)
    assert found == plan(
        m, n, k, dtype, batch=batch, layouts=layouts, precision=precision, partials=partials, device=device
    )
    splits, accumulator = found["splits"], 8 if dtype == "float64" else 4
    parts = (splits > 1 and not found["near"]) * splits * batch * m * n * accumulator
    if found["family"].startswith("emulated"):
        assert dtype == "float32"
        assert precision in (EMULATED, ALWAYS_EMULATED)
        assert device[1] >= 80
        assert (found["family"] == "emulated wgmma") == (device == H200)
        terms = 3 * 2 * batch * -(-k // 64) * 64  # three of 2 bytes; k in whole steps
        parts = sum(-(-bytes // 256) * 256 for bytes in (parts, terms * m, terms * n))
    if not found["repacks"]:
        assert found["workspace_bytes"] == parts
    assert splits == 1 or not partials  # sums of columns come from whole rows of tiles
    assert splits == 1 or k // splits >= found["tile"][2]
    if found["family"] == "wgmma":
        assert device == H200
        tf32 = dtype == "float32" and precision == HIGH
        assert tf32 or dtype in ("float16", "bfloat16")
        assert found["cluster"] in (1, 2)
        assert found["cluster"] == 1 or m > found["tile"][0]  # blocks of a pair take different rows
        assert found["turns"] in ("halves", "alternate", "tokens")
        if found["near"]:
            tiles = batch * -(-m // found["tile"][0]) * -(-n // found["tile"][1])
            assert splits in (2, 4, 8)
            assert found["cluster"] == 1
            assert tiles * splits <= 2 * device[0]
        if found["turns"] == "tokens":
            assert m <= 64
            assert tf32 or layouts[0] in "ns"  # k adjacent, or will be
            assert not partials
        adjacent = {"n": (k, n), "t": (m, k)}  # rows of a and b in memory are whole vectors of 16 bytes, or padded
        vector, turned = (4, "tn") if tf32 else (8, "ss")  # of tf32 k has to be adjacent
        odd = [layout in ("s", turned[i]) or adjacent[layout][i] % vector != 0 for i, layout in enumerate(layouts)]
        assert found["repacks"] == "".join(name for name, is_odd in zip("ab", odd) if is_odd)
    else:
        assert found["repacks"] == ""
        assert not found["near"]
    assert (found["family"] == "gemv") == (min(m, n) <= 4 and not partials)
    if found["family"] == "mma":
        assert device[1] >= 80
        assert "s" not in layouts
        assert dtype in ("float16", "bfloat16") or (dtype == "float32" and precision == HIGH)


@pytest.mark.parametrize(
    ("arguments", "options", "family", "tile", "splits"),
    [
        ((8192, 8192, 8192), {}, "mma", 128, 1),
        ((8192, 8192, 8192, "float32"), {}, "simt", 128, 1),
        ((8192, 8192, 8192, "float32"), {"precision": HIGH}, "mma", 128, 1),
        ((8192, 8192, 8192, "float32"), {"precision": HIGH, "device": H200, "layouts": "nt"}, "wgmma", 128, 1),
        ((8192, 8192, 8191, "float32"), {"precision": HIGH, "device": H200, "layouts": "tn"}, "wgmma", 128, 1),
        ((8192, 8192, 32, "float32"), {"precision": HIGH, "device": H200, "layouts": "tn"}, "mma", 128, 1),
        ((8192, 8192, 8192), {"layouts": "sn"}, "simt", 64, 1),
        ((8192, 8192, 8192), {"device": T4}, "simt", 64, 1),
        ((64, 64, 100_000), {}, "mma", 64, 64),  # a weight gradient: few tiles, deep k
        ((64, 64, 100_000), {"partials": True}, "mma", 64, 1),
        ((1024, 1024, 1024), {}, "mma", 128, 1),
        ((512, 512, 512), {}, "mma", 64, 1),
        ((8192, 8192, 8191), {"device": H200}, "wgmma", 128, 1),
        ((8192, 8192, 8191), {"device": H200, "layouts": "tn"}, "wgmma", 128, 1),
        ((4, 4096, 4096), {"device": H200, "layouts": "nt"}, "gemv", 4, 1),
        ((4, 4096, 4096), {"device": H200, "partials": True}, "mma", 64, 1),
        ((4096, 1, 4096, "float64"), {"layouts": "tt", "device": T4}, "gemv", 16, 2),
        ((5, 5, 4096), {"device": H200}, "mma", 64, 32),
        ((8192, 8192, 0), {"device": H200, "layouts": "tn"}, "mma", 128, 1),  # no tensor map describes nothing
    ],
)
def test_choices(arguments, options, family, tile, splits):
    found = plan(*arguments, **options)
    assert (found["family"], found["tile"][0], found["splits"]) == (family, tile, splits)


@pytest.mark.parametrize(
    ("lines", "k", "layouts", "tile", "splits"),
    [
        (4096, 4096, "nt", 32, 1),
        (1000, 2048, "nt", 8, 1),  # ResNet's classifier: more threads on fewer lines before a second launch
        (1 << 20, 64, "nt", 128, 1),
        (2, 1 << 22, "nt", 4, 128),
        (4096, 4096, "nn", 64, 2),  # adjacent lines: 64 tiles are few for 132 multiprocessors
        (1 << 20, 64, "nn", 64, 1),
    ],
)
def test_vectors_and_matrices(lines, k, layouts, tile, splits):
    """One row times a weight (lines, k) whose k is adjacent ("t"), or whose lines are ("n")."""
    found = plan(1, lines, k, layouts=layouts, device=H200)
    assert (found["family"], found["tile"][1], found["splits"]) == ("gemv", tile, splits)
    mirrored = {"nt": "nn", "nn": "tn"}[layouts]
    found = plan(lines, 1, k, layouts=mirrored, device=H200)
    assert (found["family"], found["tile"][0], found["splits"]) == ("gemv", tile, splits)


@pytest.mark.parametrize(
    ("sizes", "partials", "tile", "turns", "cluster", "splits", "near"),
    [
        ((8192, 8192, 8192), False, (128, 256), "halves", 2, 1, False),
        ((4096, 4096, 4096), True, (128, 256), "halves", 2, 1, False),
        ((8192, 4096, 1024), False, (128, 256), "halves", 2, 1, False),
        ((8192, 4096, 1024), True, (64, 256), "alternate", 2, 1, False),  # a long exit is hidden
        ((8192, 768, 3072), False, (128, 192), "halves", 2, 1, False),  # 64 x 4 tiles: two whole waves
        ((1024, 1024, 1024), False, (128, 64), "halves", 2, 1, False),  # 128 tiles at once
        ((4096, 1024, 65536), False, (128, 256), "halves", 2, 1, False),
        ((768, 768, 8192), False, (128, 192), "halves", 1, 4, True),  # 24 tiles
        ((1024, 1024, 8192), False, (128, 256), "halves", 1, 4, True),
        ((256, 1000, 2048), False, (128, 64), "halves", 1, 4, True),  # ResNet's classifier
        ((256, 1000, 2048), True, (128, 64), "halves", 2, 1, False),  # sums of columns are of whole sums
        ((768, 768, 65536), False, (128, 192), "halves", 2, 16, False),  # more parts than a cluster has blocks
        ((16, 4096, 4096), False, (16, 128), "tokens", 1, 4, True),  # every multiprocessor reads weights
        ((16, 1024, 4096), False, (16, 128), "tokens", 1, 8, True),
        ((32, 14336, 4096), False, (32, 128), "tokens", 1, 1, False),
    ],
)
def test_hopper_choices(sizes, partials, tile, turns, cluster, splits, near):
    found = plan(*sizes, layouts="nt", partials=partials, device=H200)
    chosen = found["family"], found["tile"][:2], found["turns"], found["cluster"], found["splits"], found["near"]
    assert chosen == ("wgmma", tile, turns, cluster, splits, near)


@pytest.mark.parametrize(
    ("arguments", "options", "family", "tile", "splits"),
    [
        ((8192, 8192, 8192), {"device": H200}, "emulated wgmma", 192, 1),
        ((8192, 8192, 8191), {"device": H200, "layouts": "ss"}, "emulated wgmma", 192, 1),
        ((2048, 2048, 2048), {"device": H200}, "emulated wgmma", 128, 1),  # two whole waves
        ((1024, 1024, 65536), {"device": H200, "layouts": "tn"}, "emulated wgmma", 128, 2),
        ((8192, 8192, 8192), {"device": A100}, "emulated mma", 128, 1),
        ((256, 256, 256), {"device": H200}, "simt", 64, 4),  # the pass over the operands costs more than it saves
        ((8192, 8192, 16), {"device": H200}, "simt", 128, 1),
        ((8192, 8192, 8192), {"device": T4}, "simt", 128, 1),
        ((8192, 8192, 8192), {"device": (128, 89, 99 << 10)}, "simt", 128, 1),  # tensor cores 2 to 4 times as fast
        ((8192, 8192, 8192), {"device": H200, "partials": True}, "emulated wgmma", 192, 1),
        ((1024, 1024, 65536), {"device": H200, "partials": True}, "simt", 64, 1),  # few tiles, and not in parts
        ((4, 8192, 8192), {"device": H200}, "gemv", 32, 1),
    ],
)
def test_emulated_where_it_pays(arguments, options, family, tile, splits):
    found = plan(*arguments, "float32", precision=EMULATED, **options)
    assert (found["family"], found["tile"][1], found["splits"]) == (family, tile, splits)
    assert not plan(*arguments, "float32", **options)["family"].startswith("emulated")  # never by default


def test_bad_arguments():
    with pytest.raises(ValueError, match="gemm_plan: dtype must be float32, float64, float16 or bfloat16, got int8"):
        plan(1, 1, 1, "int8")
    with pytest.raises(ValueError, match="layouts must be two letters"):
        plan(1, 1, 1, layouts="n")


def test_cached_plans_are_the_plans_themselves():
    """Over problems that differ in whatever a plan reads, and in what it does not."""
    build = pytest.importorskip("emulator.build")
    program = build.build_program("plain", "gemm_plan_cache", [build.ROOT / "tests" / "gemm_plan_cache.cpp"])
    result = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert result.stdout == "plan cache: ok\n", result.stdout + result.stderr
