"""What a course on training networks claims about optimizers, as numbers beside the theory."""

import math

import torch

from fastdl import optim


def contraction(steps, **options):
    """Rate per step on f(x) = (x1^2 + 100 x2^2) / 2 from its last half; kappa is 100."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([1.0, 100.0], dtype=torch.float64)
    optimizer, norms = optim.SGD([x], **options), []
    for _ in range(steps):
        x.grad = curvature * x.detach()
        optimizer.step()
        norms.append(x.detach().norm().item())
    return (norms[-1] / norms[steps // 2 - 1]) ** (1 / (steps - steps // 2))


def test_rates_on_a_quadratic():
    root = 10.0
    plain = contraction(400, lr=2 / 101)
    momentum = contraction(400, lr=(2 / (root + 1)) ** 2, momentum=((root - 1) / (root + 1)) ** 2)
    assert abs(plain - 99 / 101) < 1e-4
    assert abs(momentum - (root - 1) / (root + 1)) < 0.01
    assert contraction(200, lr=2.01 / 100) > 1  # diverges just past 2 / lambda_max


def test_adams_first_step_is_lr_whatever_the_gradient():
    def first_step(gradient, correction):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        x.grad = torch.full_like(x, gradient)
        optimizer = optim.Adam([x], lr=0.1)
        if not correction:  # at step 10^6 the corrections are 1
            zeros = {k: torch.zeros(1, dtype=torch.float64) for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[x] = {"step": torch.tensor(1e6), **zeros}
        optimizer.step()
        return x.item()

    assert abs(first_step(1e-3, True) + 0.1) < 1e-5
    assert abs(first_step(1e-6, True) + 0.1 / 1.01) < 1e-6  # eps = 1e-8 shows
    assert abs(first_step(1e-3, False) + 0.1 * 0.1 / math.sqrt(0.001)) < 1e-4  # 3.16 times too far


def lasso(**options):
    """Return the weights fitted to data that only the first two of ten features explain."""
    inputs = torch.randn(200, 10)
    targets = inputs[:, :2] @ torch.tensor([2.0, -1.0])
    weight = torch.randn(10).requires_grad_()
    optimizer = optim.SGD([weight], lr=0.05, **options)
    for _ in range(500):
        optimizer.zero_grad()
        ((inputs @ weight - targets) ** 2).mean().div(2).backward()
        optimizer.step()
    return weight.detach()


def test_l1_zeros_and_l2_shrinkage():
    assert (lasso(l1=0.1, l1_mode="proximal")[2:] == 0).all()
    subgradient = lasso(l1=0.1)
    assert (subgradient[2:] != 0).all()
    assert subgradient[2:].abs().max() < 0.05
    shrunk = lasso(weight_decay=0.5)
    assert (shrunk != 0).all()
    assert shrunk[0] < 1.6


def trajectory(cls, **options):
    torch.manual_seed(0)
    weight = torch.randn(20, dtype=torch.float64).requires_grad_()
    optimizer = cls([weight], lr=0.01, **options)
    for _ in range(30):
        weight.grad = torch.randn(20, dtype=torch.float64)
        optimizer.step()
    return weight.detach()


def test_weight_decay_is_l2_for_sgd_and_not_for_adam():
    assert (trajectory(optim.Adam, weight_decay=0.3) - trajectory(optim.AdamW, weight_decay=0.3)).abs().max() > 1e-3
    torch.testing.assert_close(trajectory(optim.Adam), trajectory(optim.AdamW, weight_decay=0.0))
    torch.manual_seed(0)
    by_hand = torch.randn(20, dtype=torch.float64)
    for _ in range(30):  # decoupled decay, then the plain step
        by_hand = by_hand * (1 - 0.01 * 0.3) - 0.01 * torch.randn(20, dtype=torch.float64)
    torch.testing.assert_close(trajectory(optim.SGD, weight_decay=0.3), by_hand)
