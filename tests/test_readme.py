"""What the README shows, run: both columns of its before and after, and its other Python."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import dropout, relu

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def columns():
    rows = BLOCKS[0].splitlines()
    middle = rows[0].index("# after")
    return ["\n".join(row[part].rstrip() for row in rows) for part in (slice(0, middle), slice(middle, None))]


def run(code):
    """Run one column on the model that it takes as given; return the block's output and the model."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    scope = {
        "self": SimpleNamespace(), "x": torch.randn(2, 64, 3, 3), "z": torch.randn(2, 64, 3, 3), "model": model,
        "dropout": lambda t: dropout(t, 0.1), "relu": relu, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "clip_grad_norm_": torch.nn.utils.clip_grad_norm_, "ema": torch.optim.swa_utils.AveragedModel(model),
    }  # fmt: skip
    exec(code, scope)
    return scope["y"], model


def test_before_and_after_do_the_same():
    (before, theirs), (after, ours) = map(run, columns())
    assert before.shape == after.shape
    assert before.dtype == after.dtype
    for x in (before, after):
        assert (x >= 0).all()
        assert 0.4 < (x == 0).double().mean() < 0.65  # ReLU's half, and a tenth of the other
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


def test_own_images(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in BLOCKS if "photos/" in block)
    scope = {"device": "cpu"}
    exec(code.replace("    ...", "    seen = images"), scope)
    assert scope["seen"].shape == (6, 3, 224, 224)


def test_every_python_block_is_run_here():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
def test_links_lead_somewhere(link):
    assert os.path.exists(ROOT / link)
