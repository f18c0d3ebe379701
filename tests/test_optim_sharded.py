"""Parameters sharded over processes (FSDP2's DTensors): every rank updates its part, the norm is one over all."""

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
    if rank == 0:
        results.put([t.tolist() for t in full + averages])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_as_one():
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
    sharded = results.get(timeout=120)
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
