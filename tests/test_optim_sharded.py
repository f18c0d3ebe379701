"""Several processes: sharded parameters (DTensors, FSDP2), whose norm is one over all, and DDP's bucket views."""

import os
import sys

import pytest
import torch
import torch.multiprocessing as multiprocessing

SIZES = ((8, 4), (5, 3), (7,))


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(size, generator=generator) for size in SIZES]


def values():
    generator = torch.Generator().manual_seed(100)
    return [torch.randn(size, generator=generator) for size in SIZES]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))


def shard(model, mesh):
    from torch.distributed.fsdp import fully_shard

    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model


def train(model, optim, rank, world=2):
    """Train on this rank's half of the data; the gradients are means over both."""
    optimizer = optim.AdamW(model.parameters(), lr=0.1, max_grad_norm=0.05)
    inputs = torch.linspace(-1, 1, 48).reshape(8, 6)
    own = inputs if rank is None else inputs.chunk(world)[rank]
    for k in range(5):
        optimizer.zero_grad(set_to_none=k == 2)
        model(own).square().mean().backward()
        if k == 4 and isinstance(model, torch.nn.parallel.DistributedDataParallel):
            grads = [p.grad for p in model.parameters()]
            assert all(g._base is not None or g.storage_offset() for g in grads)  # views of the bucket
            assert optimizer._kept is not None  # and taken by address
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def work(rank, world, port, results):
    sys.path.insert(0, os.path.dirname(__file__))
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from fastdl import optim

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    params = [distribute_tensor(v, mesh, [Shard(0)]).requires_grad_() for v in values()]
    optimizer = optim.AdamW(params, lr=0.1, max_grad_norm=0.5, ema_decay=0.9)
    for step in range(4):
        for p, grad in zip(params, gradients(step)):
            p.grad = distribute_tensor(grad, mesh, [Shard(0)])
        optimizer.step()
    full = [p.detach().full_tensor() for p in params]
    averages = [t.full_tensor() for t in optimizer.ema_parameters()]
    fsdp = [p.full_tensor() for p in train(shard(network(), mesh), optim, rank)]
    ddp = torch.nn.parallel.DistributedDataParallel(network(), gradient_as_bucket_view=True)
    by_bucket = train(ddp, optim, rank)
    if rank == 0:
        results.put([[t.tolist() for t in ts] for ts in (full + averages, fsdp, by_bucket)])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_as_one():  # one start of two processes for all three
    import socket

    from fastdl import optim

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, 2, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    sharded, fsdp, by_bucket = results.get(timeout=100)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0

    params = [v.requires_grad_() for v in values()]
    optimizer = optim.AdamW(params, lr=0.1, max_grad_norm=0.5, ema_decay=0.9)
    for step in range(4):
        for p, grad in zip(params, gradients(step)):
            p.grad = grad
        optimizer.step()
    for ours, theirs in zip([*params, *optimizer.ema_parameters()], sharded, strict=True):
        torch.testing.assert_close(ours.detach(), torch.tensor(theirs), rtol=1e-6, atol=1e-6)
    alone = train(network(), optim, None)
    for parts in (fsdp, by_bucket):
        for ours, theirs in zip(alone, parts, strict=True):
            torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-6)
