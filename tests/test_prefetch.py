"""Prefetcher: nothing lost, nothing overwritten, nothing left running."""

import collections
import dataclasses
import gc
import subprocess
import sys
import threading
import time
import traceback
import types

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastdl.data import Prefetcher, ResidentDataset

Pair = collections.namedtuple("Pair", "x y")


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    name: str


def threads():
    return [t for t in threading.enumerate() if t.name == "fastdl.Prefetcher"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    deadline = time.time() + 5
    while threads() and time.time() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_order_and_structure():
    batches = [
        {"x": torch.arange(3), "none": None, "deep": [torch.ones(1), (torch.zeros(2), "text")]},
        Pair(torch.ones(2), 5),
        Batch(torch.full((2,), 3.0), "b"),
        None,
        collections.OrderedDict(a=torch.ones(1)),
        collections.UserDict(a=torch.ones(1)),
    ]
    got = list(Prefetcher(batches))
    assert [type(b) for b in got] == [type(b) for b in batches]
    assert torch.equal(got[0]["x"], batches[0]["x"])
    assert got[0]["none"] is None
    assert got[0]["deep"][1][1] == "text"
    assert torch.equal(got[1].x, batches[1].x)
    assert torch.equal(got[2].x, batches[2].x)
    assert got[2].name == "b"


def test_unusual_batches_move():
    """Read-only mappings come as dicts; a packed sequence keeps its batch sizes on the host, as torch demands."""
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    first, second = Prefetcher([types.MappingProxyType({"x": torch.ones(2)}), packed], "meta")
    assert first["x"].is_meta
    assert second.data.is_meta
    assert second.batch_sizes.tolist() == [2, 2, 1]


def test_data_loader_and_repeated_passes():
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_size=3)
    prefetcher = Prefetcher(loader, "cpu")
    assert len(prefetcher) == len(loader)
    for _ in range(3):
        assert torch.equal(torch.cat([b[0] for b in prefetcher]), torch.arange(10))


def test_a_batch_that_was_handed_out_is_never_overwritten():
    def reuses_its_memory():
        memory = torch.empty(4)
        for i in range(20):
            yield memory.fill_(i)

    kept = []
    for i, batch in enumerate(Prefetcher(reuses_its_memory(), depth=3)):
        time.sleep(0.002)  # a slow consumer
        assert (batch == i).all()
        kept.append(batch)
    assert [int(b[0]) for b in kept] == list(range(20))


def test_read_ahead_is_bounded():
    produced = []

    def loader():
        for i in range(100):
            produced.append(i)
            yield torch.tensor(i)

    iterator = iter(Prefetcher(loader(), depth=2))
    next(iterator)
    time.sleep(0.3)
    assert 3 <= len(produced) <= 4  # one handed out, two ready, one waiting for room
    del iterator


class Broken(Exception):
    pass


def raise_here():
    raise Broken("worker")


def test_exceptions_keep_type_and_traceback():
    def loader():
        yield torch.ones(1)
        raise_here()

    iterator = iter(Prefetcher(loader()))
    next(iterator)
    with pytest.raises(Broken, match="worker") as caught:
        next(iterator)
    assert "raise_here" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    with pytest.raises(StopIteration):
        next(iterator)


class FailingDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        raise_here()


def test_exception_of_a_worker_process():
    with pytest.raises(Broken):
        list(Prefetcher(DataLoader(FailingDataset(), num_workers=1)))


def test_early_break_ends_the_thread():
    for _ in Prefetcher(torch.ones(1) for _ in range(1000)):
        break
    gc.collect()
    assert threads() == []


def test_empty_loader_and_concurrent_iterators():
    assert list(Prefetcher([])) == []
    prefetcher = Prefetcher(list(torch.arange(5)))
    assert [(int(a), int(b)) for a, b in zip(prefetcher, prefetcher)] == [(i, i) for i in range(5)]


def test_overlaps_loading_with_the_step():
    def slow():
        for i in range(10):
            time.sleep(0.02)
            yield torch.tensor(i)

    start = time.perf_counter()
    for _ in Prefetcher(slow()):
        time.sleep(0.02)
    assert time.perf_counter() - start < 0.36  # 0.40 without overlap, 0.22 with


class Stateful:
    def __init__(self):
        self.at = self.epoch = 0

    def __iter__(self):
        while self.at < 6:
            self.at += 1
            yield torch.tensor(self.at)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_state_is_that_of_the_batch_handed_out():
    prefetcher = Prefetcher(Stateful(), depth=3)
    prefetcher.set_epoch(4)
    assert prefetcher.epoch == 4
    iterator = iter(prefetcher)
    next(iterator), next(iterator)
    time.sleep(0.1)
    state = prefetcher.state_dict()
    assert state == {"at": 2}
    other = Prefetcher(Stateful())
    other.load_state_dict(state)
    assert [int(b) for b in other] == [3, 4, 5, 6]


def test_state_after_a_whole_pass_is_the_loaders():
    data = ResidentDataset(np.zeros((6, 4, 4, 3), np.uint8), batch_size=2)
    prefetcher = Prefetcher(data)
    list(prefetcher)
    assert prefetcher.state_dict() == {"epoch": 1, "position": 0}
    next(iter(prefetcher))
    assert prefetcher.state_dict() == {"epoch": 1, "position": 1}
    prefetcher.set_epoch(5)
    assert prefetcher.state_dict() == {"epoch": 5, "position": 0}


def test_loaders_without_state():
    """Frameworks ask by hasattr; the answer is the loader's, through two prefetchers too."""
    prefetcher = Prefetcher(Prefetcher([torch.ones(1), torch.ones(1)]))
    assert len(list(prefetcher)) == len(prefetcher) == 2
    assert not any(hasattr(prefetcher, name) for name in ("state_dict", "load_state_dict", "set_epoch"))
    assert "depth=2" in repr(prefetcher)
    resident = Prefetcher(Prefetcher(ResidentDataset(np.zeros((6, 4, 4, 3), np.uint8), batch_size=2)))
    next(iter(resident))
    assert resident.state_dict() == {"epoch": 0, "position": 1}


def test_flat_memory_and_threads_over_40_epochs():
    prefetcher = Prefetcher(DataLoader(TensorDataset(torch.ones(64, 100)), batch_size=8))
    for epoch in range(40):
        for _ in prefetcher:
            pass
        if epoch == 2:
            gc.collect()
            alive = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    gc.collect()
    assert sum(isinstance(o, torch.Tensor) for o in gc.get_objects()) <= alive + 2


def test_the_interpreter_exits_in_the_middle_of_a_pass():
    code = (
        "import torch, itertools\nfrom fastdl.data import Prefetcher\n"
        "it = iter(Prefetcher(torch.ones(1) for _ in itertools.count()))\nnext(it); print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(("arguments", "options", "error", "text"), [
    ((5,), {}, TypeError, "loader must be an iterable of batches, got int"),
    (([],), {"depth": 0}, ValueError, "whole number of at least 1 batch, got 0"),
    (([],), {"depth": 1.5}, ValueError, "whole number of at least 1 batch, got 1.5"),
    (([], "no such device"), {}, RuntimeError, "no such device"),
])  # fmt: skip
def test_errors(arguments, options, error, text):
    with pytest.raises(error, match=text):
        Prefetcher(*arguments, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_batches_survive_a_slow_consumer():
    n = 1 << 22
    loader = (torch.full((n,), float(i)) for i in range(20))
    for i, batch in enumerate(Prefetcher(loader, "cuda", depth=3)):
        torch.cuda._sleep(10_000_000)
        assert batch.is_cuda
        poison = torch.full((n,), -1.0, device="cuda")
        assert (batch == i).all()
        del poison
