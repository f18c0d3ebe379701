"""The gallery is one picture, drawn without a network."""

import pytest

pytest.importorskip("skimage")
image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")


def test_draws_one_picture(tmp_path):
    from fastdl import gallery

    path = gallery.draw(tmp_path / "gallery.png")
    with image.open(path) as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10_000
