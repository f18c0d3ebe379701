"""Steps by addresses alone (fastdl/optim/_replay.py): whatever changes between two steps, results are the op's."""

import copy

import pytest
import torch

from fastdl import _library, optim
from fastdl._library import _C

SIZES = ((5,), (3, 4), (2, 3, 2, 2))


@pytest.fixture(params=["cpu", "dlpack", "emulated", "cuda"], autouse=True)
def backend(request):
    """On the CPU, there with tensors described by DLPack, by the kernel with its records resident, and on a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "emulated":
        request.getfixturevalue("emulated_library")
    device = torch.device("cuda" if request.param == "cuda" else "cpu")
    assert _C.optim_look_inside(request.param != "dlpack")  # as on every torch that is known
    with device, _library.use("emulated" if request.param == "emulated" else "auto"):
        yield request.param
    _C.optim_look_inside(True)


def make(cls=optim.Adam, dtype=torch.float32, groups=1, **options):
    """Two equal optimizers; the second never takes steps by address."""
    torch.manual_seed(0)
    params = [torch.randn(size).to(dtype).requires_grad_() for size in SIZES]
    twin = copy.deepcopy(params)

    def split(ps):
        return [{"params": ps[k::groups]} for k in range(groups)]

    return cls(split(params), lr=0.1, **options), cls(split(twin), lr=0.1, **options)


def all_params(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(ours, theirs, seed, new_gradients=True):
    """Take one step of each with equal gradients; return whether ours went by addresses."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for p, q in zip(all_params(ours), all_params(theirs)):
        grad = torch.randn(p.shape, generator=generator, device="cpu").to(p.dtype)
        if new_gradients or p.grad is None:
            p.grad, q.grad = torch.empty_like(p), torch.empty_like(q)
        p.grad.copy_(grad)
        q.grad.copy_(grad)
    theirs._kept = None
    before = ours._kept
    for optimizer in (ours, theirs):
        torch.manual_seed(seed)  # of stochastic rounding
        optimizer.step()
    assert_equal(ours, theirs)
    return before is not None and ours._kept is before


def assert_equal(ours, theirs):
    for p, q in zip(all_params(ours), all_params(theirs)):
        assert torch.equal(p, q)
        for name, value in ours.state[p].items():
            assert torch.equal(value, theirs.state[q][name]), name


@pytest.mark.parametrize("new_gradients", [True, False])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (optim.SGD, {"momentum": 0.9}), (optim.SGD, {"momentum": 0.9, "dampening": 0.5, "nesterov": False}),
        (optim.Adam, {"amsgrad": True, "max_grad_norm": 0.5}), (optim.AdamW, {"ema_decay": 0.9, "l1": 0.1}),
        (optim.RMSprop, {"centered": True, "momentum": 0.5}), (optim.Adagrad, {"weight_decay": 0.1}),
        (optim.AdamW, {"dtype": torch.bfloat16, "stochastic_rounding": True}),
        (optim.AdamW, {"dtype": torch.float16, "master_weights": True, "ema_decay": 0.5}),
        (optim.Adam, {"dtype": torch.float64, "groups": 3}),
    ],
)  # fmt: skip
def test_equal_bits(cls, options, new_gradients):
    ours, theirs = make(cls, **options)
    taken = [step(ours, theirs, k, new_gradients) for k in range(6)]
    assert taken[2:] == [True] * 4  # the first makes the states; with dampening, the second still looks at them


def swap_data(ours, theirs):
    for optimizer in (ours, theirs):
        for p in all_params(optimizer):
            p.data = p.data.clone()


def swap_dtype(ours, theirs):
    for optimizer in (ours, theirs):
        for p in all_params(optimizer):
            p.data = p.data.double()


def replace_state(ours, theirs):
    for optimizer in (ours, theirs):
        p = all_params(optimizer)[0]
        optimizer.state[p] = {name: value.clone() + 1 for name, value in optimizer.state[p].items()}


def replace_one(ours, theirs):
    for optimizer in (ours, theirs):
        p = all_params(optimizer)[1]
        optimizer.state[p]["exp_avg"] = torch.ones_like(p)


def forget_state(ours, theirs):
    for optimizer in (ours, theirs):
        del optimizer.state[all_params(optimizer)[2]]


def load(ours, theirs):
    for optimizer in (ours, theirs):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def swap_tensors(ours, theirs):
    """Objects stay, the tensors inside are others."""
    for optimizer in (ours, theirs):
        p = all_params(optimizer)[1]
        torch.utils.swap_tensors(p, (p * 2).detach().requires_grad_())
        torch.utils.swap_tensors(optimizer.state[p]["exp_avg"], torch.ones_like(p.detach()))


def set_option(ours, theirs, **options):
    for optimizer in (ours, theirs):
        for group in optimizer.param_groups:
            group.update(options)


def add_group(ours, theirs):
    for optimizer in (ours, theirs):
        optimizer.add_param_group({"params": [torch.ones(7, requires_grad=True)]})


def transpose(ours, theirs):
    """The same memory, other strides: its gradient's elements lie elsewhere now."""
    for optimizer in (ours, theirs):
        p = all_params(optimizer)[1]
        p.data = p.data.view(4, 3).t()
        for name, value in optimizer.state[p].items():
            if name != "step":
                optimizer.state[p][name] = value.view(4, 3).t()


@pytest.mark.parametrize(
    ("change", "by_address"),
    [
        (swap_data, True), (swap_dtype, False), (replace_state, True), (replace_one, True), (forget_state, False),
        (swap_tensors, True),
        (load, True), (add_group, False), (transpose, False), (lambda *o: set_option(*o, lr=0.5), True),
        (lambda *o: set_option(*o, lr=torch.tensor(0.5)), True), (lambda *o: set_option(*o, betas=(0.5, 0.6)), True),
        (lambda *o: set_option(*o, amsgrad=True), False), (lambda *o: set_option(*o, ema_decay=0.5), False),
        (lambda *o: set_option(*o, max_grad_norm=0.1), True), (lambda *o: set_option(*o, maximize=True), True),
    ],
)  # fmt: skip
def test_what_changes_between_steps(change, by_address):
    ours, theirs = make()
    for k in range(3):
        step(ours, theirs, k)
    change(ours, theirs)
    assert step(ours, theirs, 10) == by_address
    for k in range(11, 14):
        step(ours, theirs, k)


@pytest.mark.parametrize("kind", ["none", "sparse", "strided"])
def test_odd_gradients(kind):
    ours, theirs = make(optim.SGD, momentum=0.9)
    for k in range(3):
        step(ours, theirs, k)
    for optimizer in (ours, theirs):
        p = all_params(optimizer)[1]
        odd = torch.ones(4, 3).t()
        p.grad = {"none": None, "sparse": torch.ones(3, 4).to_sparse(), "strided": odd}[kind]
        theirs._kept = None
        optimizer.step()
    assert_equal(ours, theirs)
    for k in range(4, 8):
        step(ours, theirs, k)


def test_bad_options_raise_and_change_nothing():
    ours, theirs = make()
    for k in range(3):
        step(ours, theirs, k)
    before = [p.clone() for p in all_params(ours)]
    ours.param_groups[0]["l1"] = -1.0
    with pytest.raises(ValueError, match="Invalid l1 value"):
        ours.step()
    assert all(map(torch.equal, before, all_params(ours)))


def test_what_cannot_be_taken_again_is_said():
    ours, theirs = make()
    step(ours, theirs, 0)
    rows = [(group, ("step",), [0.0]) for group in ours.param_groups]
    with pytest.raises(ValueError, match="not a step to be taken again"):
        _C.OptimReplay(1, rows, ours.state, None, None, 0, None, None)
    with pytest.raises(ValueError, match="not a step to be taken again"):
        _C.OptimReplay(1, [], ours.state, None, None, 0, None, None)


def test_options_that_could_change_in_place_are_read_anew():
    ours, theirs = make()
    for optimizer in (ours, theirs):
        optimizer.param_groups[0]["betas"] = [0.9, 0.99]
    for k in range(4):
        step(ours, theirs, k)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["betas"][0] -= 0.1
    assert ours._kept is not None


def test_a_learning_rate_on_the_device_is_read_where_it_lies():
    rate = torch.tensor(0.1)
    ours, theirs = make(optim.AdamW)
    set_option(ours, theirs, lr=rate)
    for k in range(5):
        assert step(ours, theirs, k) == (k > 0)
        rate.mul_(0.5)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16, "stochastic_rounding": True, "rounding_seed": 5}])
def test_parameters_without_gradients_stay_out(options):
    ours, theirs = make(**options)
    for k in range(6):
        for optimizer in (ours, theirs):
            all_params(optimizer)[1].requires_grad_(k == 4)
        generator = torch.Generator("cpu").manual_seed(k)
        for p, q in zip(all_params(ours), all_params(theirs)):
            p.grad = torch.randn(p.shape, generator=generator, device="cpu").to(p) if p.requires_grad else None
            q.grad = None if p.grad is None else p.grad.clone()
        theirs._kept = None
        before = ours._kept
        ours.step()
        theirs.step()
        assert_equal(ours, theirs)
        assert (before is not None and ours._kept is before) == (k in (2, 3))  # looking at a state of nothing makes one


def test_no_tensor_is_kept_alive():
    """Neither gradients nor states nor the optimizer itself."""
    import gc
    import weakref

    ours, theirs = make()
    for k in range(3):
        step(ours, theirs, k)
    grads = [weakref.ref(p.grad) for p in all_params(ours)]
    states = [weakref.ref(v) for v in ours.state[all_params(ours)[0]].values()]
    for p in all_params(ours):
        p.grad = None
    ours.state.clear()
    assert all(ref() is None for ref in grads + states)
    whole = weakref.ref(ours)
    del ours
    gc.collect()
    assert whole() is None


def test_hooks_and_profilers_see_every_step():
    ours, theirs = make()
    calls = []
    for k in range(3):
        step(ours, theirs, k)
    handles = [ours.register_step_pre_hook(lambda *a: calls.append(a)), ours.register_step_post_hook(lambda *a: None)]
    assert step(ours, theirs, 3)
    assert len(calls) == 1
    assert calls[0][0] is ours
    for handle in handles:
        handle.remove()
    with torch.profiler.profile() as profile:
        step(ours, theirs, 4)
    assert "Optimizer.step#Adam.step" in [e.key for e in profile.key_averages()]
    assert ours.step(lambda: 7) == 7


def test_a_step_of_a_subclass_is_its_own():
    class Counted(optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            return super().step(closure)

    p = torch.ones(3).requires_grad_()
    p.grad = torch.ones(3)
    ours, calls = Counted([p], lr=0.5), []
    ours.register_step_post_hook(lambda *a: calls.append(1))
    for _ in range(3):
        ours.step()
    assert ours.steps == len(calls) == 3
    assert (p == -0.5).all()


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW])
def test_gradients_are_zeroed_in_the_same_pass(cls, skipped):
    ours, theirs = make(cls, zero_grad=True, groups=2)
    for k in range(4):
        for optimizer in (ours, theirs):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(float(skipped and k > 1))
        versions = [p.grad._version if p.grad is not None else 0 for p in all_params(ours)]
        step(ours, theirs, k, new_gradients=False)
        assert all((p.grad == 0).all() for p in all_params(ours))
        assert all(p.grad._version > v for p, v in zip(all_params(ours), versions))
