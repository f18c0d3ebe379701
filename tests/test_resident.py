"""ResidentDataset and channel_stats: orders, shares, sources, resuming, exact statistics."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fastdl.data import BatchTransform, Compose, Normalize, RandomCrop, ResidentDataset, channel_stats


def numbered(n=10, channels=3):
    """Images whose every pixel is their number."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 6, 5, channels))


def visited(data):
    return [int(y) for _, labels in data for y in labels]


def test_an_epoch_visits_all_images_with_their_labels():
    data = ResidentDataset(numbered(), np.arange(10), transform=BatchTransform(4, dtype=torch.uint8), batch_size=4)
    assert len(data) == 3
    sizes, seen = [], []
    for images, labels in data:
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        sizes.append(len(labels))
        seen += labels.tolist()
    assert sizes == [4, 4, 2]
    assert sorted(seen) == list(range(10))


def test_epochs_have_orders_of_their_own():
    data, other = (ResidentDataset(numbered(), np.arange(10), seed=3) for _ in range(2))
    first, second = visited(data), visited(data)
    assert first != second
    other.set_epoch(1)
    assert visited(other) == second
    data.set_epoch(0)
    assert visited(data) == first
    assert visited(ResidentDataset(numbered(), np.arange(10), shuffle=False)) == list(range(10))
    assert visited(ResidentDataset(numbered(), np.arange(10), seed=4)) != first


def test_breaking_off_starts_anew():
    data = ResidentDataset(numbered(), np.arange(10), batch_size=2)
    next(iter(data))
    assert len(visited(data)) == 10


def test_images_are_not_copied():
    images = numbered()
    assert np.shares_memory(ResidentDataset(images).images, images)
    tensor = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert ResidentDataset(tensor).images.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch(drop_last):
    ranks = [
        ResidentDataset(numbered(), np.arange(10), rank=r, world_size=3, batch_size=2, drop_last=drop_last)
        for r in range(3)
    ]
    parts = [visited(rank) for rank in ranks]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == (2 if drop_last else 4)  # of 3, batches of 2; of 4
    if not drop_last:
        assert {i for part in parts for i in part} == set(range(10))
    few = [ResidentDataset(numbered(1), rank=r, world_size=3) for r in range(3)]
    assert [len(visited(rank)) for rank in few] == [1, 1, 1]


def test_resumes_within_an_epoch():
    def make():
        transform = Compose([RandomCrop(4), Normalize(0.5, 0.5)], seed=1)
        return ResidentDataset(numbered(), np.arange(10), transform=transform, batch_size=3)

    data, other = make(), make()
    iterator = iter(data)
    next(iterator)
    state = data.state_dict()
    rest = list(iterator)
    other.load_state_dict(state)
    resumed = list(other)
    assert len(resumed) == len(rest) == 3
    for (x, y), (u, v) in zip(rest, resumed):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    for (_, y), (_, v) in zip(data, other):  # and so do the epochs after it
        assert torch.equal(y, v)
    with pytest.raises(KeyError, match="transform"):
        make().load_state_dict({"epoch": 0, "position": 0})


def test_sources(tmp_path):
    gray = numbered(4, 1)[..., 0]
    assert ResidentDataset(gray, transform=BatchTransform(2)).images.shape == (4, 6, 5, 1)
    assert ResidentDataset(torch.from_numpy(gray.copy())).images.shape == (4, 1, 6, 5)
    for names in (("images", "labels"), ("x", "y"), ("arr_0", "arr_1")):
        np.savez(tmp_path / "a.npz", **{names[0]: numbered(), names[1]: np.arange(10)[:, None]})
        data = ResidentDataset(tmp_path / "a.npz", transform=BatchTransform(2, dtype=torch.uint8))
        for images, labels in data:
            assert torch.equal(images[:, 0, 0, 0].long(), labels)
    np.savez(tmp_path / "b.npz", pictures=gray)
    with pytest.raises(KeyError, match="it has pictures"):
        ResidentDataset(tmp_path / "b.npz")
    np.save(tmp_path / "b.npy", gray)
    with pytest.raises(ValueError, match=r"a folder or an \.npz"):
        ResidentDataset(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"looks like \(N, C, H, W\)"):
        ResidentDataset(np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        ResidentDataset(tmp_path / "c")


def test_labels_suit_losses():
    """Archives hold labels as uint8, which no loss takes."""
    for kind in (np.uint8, np.uint16, np.int32):
        data = ResidentDataset(numbered(), np.arange(10).astype(kind))
        assert data.labels.dtype == torch.int64
        torch.nn.functional.cross_entropy(torch.zeros(10, 10), next(iter(data))[1])
    assert ResidentDataset(numbered(), [0.5] * 10).labels.is_floating_point()
    with pytest.raises(TypeError, match=r"labels must be numbers.*return_inverse"):
        ResidentDataset(numbered(2), ["cat", "dog"])


@pytest.fixture
def folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, color in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i, size in enumerate([(40, 30), (30, 50)]):
            image.new("RGB", size, color).save(tmp_path / name / f"{i}.png")
        image.new("L", (20, 20), 9).save(tmp_path / name / "deeper" / "gray.JPEG")
        (tmp_path / name / "notes.txt").write_text("no image")
        (tmp_path / name / "._0.png").write_bytes(b"left by a file manager")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_a_folder_of_images(folder):
    data = ResidentDataset(folder, size=(24, 20), transform=BatchTransform(16, hflip=True), shuffle=False)
    assert data.classes == ["blue", "red"]
    assert data.images.shape == (6, 24, 20, 3)
    images, labels = next(iter(data))
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[0].mean((1, 2)).tolist() == pytest.approx([0, 0, 250 / 255])
    assert images[3].mean((1, 2)).tolist() == pytest.approx([250 / 255, 0, 0])


def test_pictures_are_turned_upright(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    picture = image.new("RGB", (40, 40))
    picture.paste((255, 255, 255), (0, 0, 40, 20))
    exif = image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a" / "x.jpg", exif=exif)
    data = ResidentDataset(tmp_path, size=40)
    assert data.images[0, :15].mean() < 5
    assert data.images[0, 25:].mean() > 250


def test_pictures_of_16_bits_keep_their_grays(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    image.fromarray(np.full((8, 8), 257 * 40, np.uint16)).save(tmp_path / "a" / "x.png")
    assert (ResidentDataset(tmp_path, size=8).images == 40).all()
    image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a" / "y.tiff")
    with pytest.raises(ValueError, match=r"y\.tiff: pixels of mode F have no scale"):
        ResidentDataset(tmp_path, size=8)


def test_bad_folders(folder):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="none in empty"):
        ResidentDataset(folder)
    (folder / "empty" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot decode .*broken\.png"):
        ResidentDataset(folder)
    for size in (0, (1, 2, 3), 8.0):
        with pytest.raises(ValueError, match="size must be a positive int"):
            ResidentDataset(folder, size=size)


def test_bad_arguments():
    with pytest.raises(ValueError, match="labels must be one value an image"):
        ResidentDataset(numbered(), [1, 2])
    with pytest.raises(ValueError, match="rank must lie in"):
        ResidentDataset(numbered(), rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size"):
        ResidentDataset(numbered(), batch_size=0)
    with pytest.raises(TypeError, match="uint8 or floating"):
        ResidentDataset(numbered().astype(np.int64))


def test_statistics_are_exact():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 9, 7, 3), dtype=np.uint8)
    images[..., 1] = 200  # a constant channel
    mean, std = channel_stats(images)
    for c in range(3):
        values = [int(v) for v in images[..., c].reshape(-1)]
        exact = Fraction(sum(values), len(values))
        variance = Fraction(sum(v * v for v in values), len(values)) - exact**2
        assert float(mean[c]) == float(exact / 255)
        assert float(std[c]) == pytest.approx(float(variance / 255**2) ** 0.5, rel=1e-15)
    assert std[1] == 0
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    batches = [(tensor[:20], None), (tensor[20:21], None), (tensor[21:], None)]
    for same in (tensor, batches, ResidentDataset(images), iter(batches)):
        again = channel_stats(same)
        assert torch.equal(again[0], mean)
        assert torch.equal(again[1], std)
    BatchTransform(4, mean=mean[[0, 2]], std=std[[0, 2]])(tensor[:, [0, 2]])


def test_statistics_of_floats():
    images = torch.rand(40, 2, 8, 8, dtype=torch.float64) * 1e-6 + 0.9  # mean >> std
    mean, std = channel_stats([images[:3].float(), images[3:].float()])
    values = images.float().double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1), rtol=1e-15, atol=0)
    torch.testing.assert_close(std, values.std(1, correction=0), rtol=1e-9, atol=0)


def test_statistics_refuse():
    with pytest.raises(TypeError, match="images or an iterable of batches, got int"):
        channel_stats(3)
    with pytest.raises(ValueError, match="no images"):
        channel_stats([])
    with pytest.raises(ValueError, match="must lie in"):
        channel_stats(torch.full((1, 3, 4, 4), 100.0))
    with pytest.raises(ValueError, match="3 and 1 channels"):
        channel_stats([torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)])
    with pytest.raises(ValueError, match="both uint8 and float"):
        channel_stats([torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)])
