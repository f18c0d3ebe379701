"""Prefetcher: a background thread loads and transfers the next batches while the current one is used."""

import copy
import dataclasses
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from fastdl.resident import ResidentDataset

_POLL_SECONDS = 0.1  # how long a thread waits before it looks whether its consumer has gone


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Apply `function` to every tensor of a nested batch: mappings, sequences, named tuples, dataclasses."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        items = {key: map_tensors(function, value) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return items
        clone: Any = copy.copy(batch)
        clone.update(items)
        return clone
    if isinstance(batch, PackedSequence):  # a named tuple whose batch sizes stay on the host
        data, sizes, *orders = batch
        return PackedSequence(function(data), sizes, *(map_tensors(function, order) for order in orders))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if type(batch) in (list, tuple):
        return type(batch)(map_tensors(function, value) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        clone = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(clone, field.name, map_tensors(function, getattr(batch, field.name)))
        return clone
    return batch


class _Transfer:
    """Moves batches to a device: through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device | None, copies: bool) -> None:
        self.device, self.copies = device, copies
        self.stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def send(self, batch: Any) -> tuple[Any, Any]:
        """Return the batch on its way to the device, and the event after which it is there (None on a CPU)."""
        if self.stream is None:
            return map_tensors(self._copy, batch), None
        with torch.cuda.stream(self.stream):
            moved = map_tensors(self._copy_pinned, batch)
            return moved, self.stream.record_event()

    def _copy(self, tensor: Tensor) -> Tensor:
        moved = tensor if self.device is None else tensor.to(self.device)
        return moved.clone() if self.copies and moved is tensor else moved

    def _copy_pinned(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # from torch's cache, which waits for the copy before it reuses the block
        moved = tensor.to(self.device, non_blocking=True)
        return moved.clone() if self.copies and moved is tensor else moved

    @staticmethod
    def receive(batch: Any, event: Any) -> Any:
        """Let the consumer's stream wait for the batch, and the allocator know who uses it."""
        if event is None:
            return batch

        def use(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                stream = torch.cuda.current_stream(tensor.device)
                stream.wait_event(event)
                tensor.record_stream(stream)
            return tensor

        return map_tensors(use, batch)


def _produce(loader: Any, transfer: _Transfer, ready: "queue.Queue[Any]", stop: threading.Event, grad: bool) -> None:
    """Body of the thread. It holds no reference to the pass that reads from it, so that one can be collected."""

    def put(kind: str, *values: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, *values), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    try:
        if transfer.stream is not None:
            torch.cuda.set_device(transfer.device)
        with torch.set_grad_enabled(grad):
            for batch in loader:
                state = loader.state_dict() if hasattr(loader, "state_dict") else None
                if not put("batch", *transfer.send(batch), state):
                    return
                del batch
        put("end")
    except BaseException as error:
        put("error", error)


def _shut_down(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join(timeout=10)


class _Pass(Iterator[Any]):
    """One pass over the loader."""

    def __init__(self, owner: "Prefetcher") -> None:
        self._owner = owner
        self._ready: queue.Queue[Any] = queue.Queue(maxsize=owner.depth)
        stop = threading.Event()
        arguments = (owner.loader, owner._transfer, self._ready, stop, torch.is_grad_enabled())
        self._thread = threading.Thread(target=_produce, args=arguments, name="fastdl.Prefetcher", daemon=True)
        self.close = weakref.finalize(self, _shut_down, stop, self._thread)  # also at exit of the interpreter
        self._thread.start()

    def __next__(self) -> Any:
        if not self.close.alive:
            raise StopIteration
        kind, *values = self._get()
        if kind == "batch":
            batch, event, self._owner._state = values
            return _Transfer.receive(batch, event)
        self.close()
        if kind == "error":
            raise values[0]
        self._owner._state = None  # from here on the loader's own state is the one
        raise StopIteration

    def _get(self) -> Any:
        while True:
            try:
                return self._ready.get(timeout=5)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():  # e.g. in a fork: threads stay behind
                    return "error", RuntimeError(
                        "Prefetcher: the loading thread is gone; iterate in the process that began to"
                    )


class Prefetcher(Iterable[Any]):
    """Iterate over a loader with the next batches loaded and transferred in the background.

    Args:
        loader: any iterable of batches; tensors may be nested in mappings, sequences, named tuples and dataclasses,
            and everything that is no tensor passes through.
        device: where batches go; None leaves them where they are. Copies to a GPU go through pinned memory on one
            stream per Prefetcher, and the stream that is current at `next` waits for them.
        depth: how many batches are ready at most beyond the one in use; memory stays bounded by it.
        copy: whether tensors that are on the device already are copied, which protects a batch that was handed out
            from a loader that writes the next one to the same memory. None copies unless the loader is a DataLoader
            or ResidentDataset, which make new tensors.

    An exception in the loader is raised by `next` with its type and traceback, after the batches before it. A loop
    that is left early stops its thread. Each `iter` is a pass of its own. `len`, `state_dict` (as of the batch last
    handed out) and all other attributes, `set_epoch` among them, are the loader's. Raises ValueError for depth < 1,
    TypeError for a loader that cannot be iterated.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device | str | int | None = None,
        *,
        depth: int = 2,
        copy: bool | None = None,
    ) -> None:
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise TypeError(f"Prefetcher: loader must be an iterable of batches, got {type(loader).__name__}")
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"Prefetcher: depth must be a whole number of at least 1 batch, got {depth!r}")
        target = None if device is None else torch.empty(0, device=device).device  # with its index; torch's errors
        copies = not isinstance(loader, (DataLoader, ResidentDataset)) if copy is None else copy
        self.loader, self.device, self.depth = loader, target, depth
        self._transfer = _Transfer(target, copies)
        self._state: Any = None

    def __iter__(self) -> Iterator[Any]:
        return _Pass(self)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Prefetcher({self.loader!r}, device={self.device}, depth={self.depth})"

    def __getattr__(self, name: str) -> Any:
        if name == "loader" or name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.loader, name)
        if name == "state_dict" and self._state is not None:
            return lambda: self._state
        if name not in ("load_state_dict", "set_epoch"):
            return value

        def change(argument: Any) -> None:
            value(argument)
            self._state = None  # of a pass that the loader no longer goes on with

        return change
