"""Training and testing, the same for every network of the demo."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdl import data
from fastdl.demo.tasks import Task

BATCH = 64


class Result(NamedTuple):
    """What a training run gave: loss per step, test accuracy in percent, microseconds per step, seconds in all."""

    losses: list[float]
    accuracy: float
    step_us: float
    seconds: float


def normalization(task: Task) -> dict[str, Any]:
    """Return the training images' mean and std, one value each."""
    mean, std = data.channel_stats(task.images)
    return {"mean": mean.tolist(), "std": std.clamp(min=1e-3).tolist()}


def batches(task: Task, device: torch.device, *, augment: bool, seed: int) -> data.Prefetcher:
    """Return a loader of (images, labels) on the device, with ±1 pixel crops or without."""
    height, width = task.images.shape[-2:]
    padding = max(1, height // 16) if augment else 0
    transform = data.BatchTransform(
        (height, width), crop="random" if augment else None, padding=padding, seed=seed, **normalization(task)
    )
    resident = data.ResidentDataset(
        task.images, task.labels, transform=transform, batch_size=BATCH, seed=seed, drop_last=len(task.images) > BATCH
    )
    return data.Prefetcher(resident, device)


def train(
    model: nn.Module,
    task: Task,
    make_optimizer: Callable[[Any], Any],
    *,
    epochs: int,
    device: torch.device,
    augment: bool = False,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Result:
    """Train with a one-cycle learning rate, then test."""
    model.to(device).train()
    optimizer, loader = make_optimizer(model.parameters()), batches(task, device, augment=augment, seed=seed)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps)
    losses: list[Tensor] = []
    times: list[float] = []
    begin = time.perf_counter()
    for epoch in range(epochs):
        for images, labels in loader:
            start = time.perf_counter()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        progress(epoch + 1, losses[-1].item())
    seconds = time.perf_counter() - begin
    accuracy = test(model, task, device, views=1)
    return Result(torch.stack(losses).tolist(), accuracy, statistics.median(times) * 1e6, seconds)


def _views(images: Tensor, views: int, pad: int) -> Iterator[Tensor]:
    """Yield the images themselves, or all nine shifts by up to `pad` pixels."""
    if views == 1:
        yield images
        return
    height, width = images.shape[-2:]
    padded = F.pad(images, (pad, pad, pad, pad))
    for top in (0, pad, 2 * pad):
        for left in (0, pad, 2 * pad):
            yield padded[..., top : top + height, left : left + width]


@torch.no_grad()
def test(model: nn.Module, task: Task, device: torch.device, *, views: int) -> float:
    """Return the accuracy in percent, with probabilities averaged over one view or nine."""
    transform = data.BatchTransform(task.images.shape[-2:], crop=None, **normalization(task))
    model.eval()
    correct = 0
    for images, labels in zip(task.test_images.split(512), task.test_labels.split(512)):
        shifted = _views(images, views, max(1, images.shape[-1] // 16))
        probabilities = torch.stack([model(transform(x.to(device))).softmax(1) for x in shifted]).mean(0)
        correct += int((probabilities.argmax(1).cpu() == labels).sum())
    model.train()
    return 100 * correct / len(task.test_labels)


@torch.no_grad()
def activations(model: nn.Sequential, task: Task, device: torch.device) -> list[Tensor]:
    """Return the activations after each hidden layer for the first test images, in training mode's statistics."""
    transform = data.BatchTransform(task.images.shape[-2:], crop=None, **normalization(task))
    x: Any = transform(task.test_images[:256].to(device))
    found = []
    for layer in list(model)[:-1]:
        x = layer(x)
        found.append(x.flatten().float().cpu())
    return found[1:]
