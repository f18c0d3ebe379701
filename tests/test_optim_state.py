"""What optimizers keep: state dicts both ways, copies, options of groups, and nothing of a step that raised."""

import copy
import pickle

import pytest
import torch
from test_optim import NAMES, OPTIONS, assert_near, give_gradients, pair, parameters, twins

from fastdl import optim


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_both_ways(name):
    for options in OPTIONS[name]:
        params = parameters()
        ours, theirs, other = pair(name, params, **options)
        for _ in range(3):
            give_gradients(params, other)
            ours.step()
            theirs.step()
        assert {k: sorted(v) for k, v in ours.state_dict()["state"].items()} == {
            k: sorted(v) for k, v in theirs.state_dict()["state"].items()
        }
        ours2, theirs2, other2 = pair(name, twins(params), lr=123.0)
        params2 = ours2.param_groups[0]["params"]
        ours2.load_state_dict(copy.deepcopy(theirs.state_dict()))
        theirs2.load_state_dict(copy.deepcopy(ours.state_dict()))
        for targets, sources in ((params2, other), (other2, params)):
            for target, source in zip(targets, sources):
                target.data.copy_(source.data)
        for _ in range(20):
            give_gradients(params, other, params2, other2)
            for optimizer in (ours, theirs, ours2, theirs2):
                optimizer.step()
        assert_near(params2, other)
        assert_near(other2, params)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    params = parameters()
    ours = getattr(optim, name)(params, ema_decay=0.9, l1=0.1)
    give_gradients(params)
    ours.step()
    for duplicate in (copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))):
        clone = duplicate(ours)
        assert repr(clone) == repr(ours)
        assert "l1: 0.1" in repr(clone)
        members = clone.param_groups[0]["params"]
        give_gradients(params, members)
        ours.step()
        clone.step()
        assert all(torch.equal(a, b) for a, b in zip(params, members))
    assert isinstance(ours, getattr(torch.optim, name))


def test_options_of_groups_are_read_at_every_step():
    params = parameters(sizes=((33,), (5, 5), (9,)))
    other = twins(params)

    def groups(p):
        return [{"params": p[:1], "lr": 0.1}, {"params": p[1:2], "weight_decay": 0.3, "amsgrad": True}]

    ours, theirs = optim.Adam(groups(params)), torch.optim.Adam(groups(other), foreach=False)
    for k in range(12):
        if k == 4:
            ours.add_param_group({"params": params[2:], "betas": (0.5, 0.5)})
            theirs.add_param_group({"params": other[2:], "betas": (0.5, 0.5)})
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] *= 0.9
        give_gradients(params, other)
        if k % 3 == 1:  # a frozen or unused parameter, and one whose first gradient comes late
            params[1].grad = other[1].grad = None
        ours.step()
        theirs.step()
    assert_near(params, other)
    with pytest.raises(ValueError, match="Invalid l1 value: -1"):
        ours.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "l1": -1})


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_raises_has_changed_nothing(name):
    params = parameters(sizes=((8,), (3, 3)))
    ours = getattr(optim, name)(params, ema_decay=0.9)
    for started in (False, True):
        if started:
            give_gradients(params)
            ours.step()
        give_gradients(params)
        params[1].data, good = params[1].data[:2], params[1].data  # the gradient no longer fits
        values = copy.deepcopy([p.detach() for p in params])
        state = copy.deepcopy(ours.state_dict()["state"])
        with pytest.raises(RuntimeError, match="one shape"):
            ours.step()
        params[1].data = good
        assert all(torch.equal(p[: len(v)], v) for p, v in zip(params, values))
        torch.testing.assert_close(ours.state_dict()["state"], state, rtol=0, atol=0)


def test_saved_tensors_notice_the_step():
    p = torch.randn(3, requires_grad=True)
    loss = p.square().sum()
    p.grad = torch.ones(3)
    version = p._version
    optim.SGD([p], lr=0.1).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
