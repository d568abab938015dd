# SPDX-License-Identifier: MIT
from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.distributed as dist

from genimg_fast import _backend
from genimg_fast.functional import batch_norm_act, sync_batch_norm_act
from genimg_fast.ops import sync_batch_norm_act as sync_batch_norm_act_op
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.reference import batch_norm_act as reference
from genimg_fast.reference import sync_batch_norm_act as sync_reference
from tests import _cases
from tests.ops import _shares
from tests.ops._shares import PROCESSES, Case

MODULE = sys.modules[sync_batch_norm_act_op.__module__]
SHARES = [(3, 2, 1), (4, 0, 2), (0, 0, 3), (2, 5)]
SHAPES = [(5,), (4, 7), (3, 5, 5), (16, 4, 4)]
CASES = {
    **{
        f"{shares} of {shape}, {backend}": Case(shares, shape, backend=backend, activation="tanh")
        for shares, shape, backend in itertools.product(SHARES, SHAPES, ("native", "reference"))
    },
    **{activation: Case(activation=activation) for activation in ACTIVATIONS},
    "float32": Case(dtype=torch.float32, activation="leaky_relu"),
    "float32, reference": Case(dtype=torch.float32, activation="leaky_relu", backend="reference"),
    "bfloat16": Case(dtype=torch.bfloat16, activation="relu", backend="auto"),
    "float16, float32 parameters": Case(dtype=torch.float16, float32_parameters=True, backend="auto"),
    "another backend in each process": Case(backend="mixed", activation="relu"),
    "channels_last": Case(shape=(16, 5, 5), channels_last=True, activation="relu"),
    "not affine": Case(affine=False),
    "not tracking": Case(tracks=False),
    "large mean": Case(dtype=torch.float32, offset=1e4, shape=(3, 8, 8)),
    "large mean, reference": Case(dtype=torch.float32, offset=1e4, shape=(3, 8, 8), backend="reference"),
    "one value in each process": Case((1, 1, 1), (5,)),
    "one value in all": Case((0, 1, 0), (5,)),
    "no values": Case((0, 0, 0)),
    "one process gets no gradient": Case(last_gets_no_gradient=True, activation="tanh"),
    "twice": Case(twice=True, activation="tanh"),
    "twice, two processes": Case((2, 3), twice=True, activation="sigmoid"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(results, collectives) of each case, of each process."""
    folder = tmp_path_factory.mktemp("shares")
    torch.multiprocessing.spawn(_shares.main, (str(folder), CASES), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def training(input, running_mean, running_var, weight, bias, **kwargs):
    """PyTorch's, of one process."""
    return reference.batch_norm_act(input, running_mean, running_var, weight, bias, training=True, **kwargs)


def joined(results, name):
    """Of all processes: what belongs to examples one after the other, the gradients of parameters added."""
    of_processes = [of_process[name] for of_process in results]
    if name == "output" or name.endswith("input"):
        return torch.cat(of_processes)
    if "gradient" in name:
        return torch.stack([t.double() for t in of_processes]).sum(0).to(of_processes[0].dtype)
    for other in of_processes[1:]:  # running statistics: the same in all, to the bit
        assert torch.equal(of_processes[0], other)
    return of_processes[0]


NO_TWIN = ("one value in all", "no values")


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_TWIN])
def test_is_that_of_one_process_on_the_joined_batch(found, name):
    case = CASES[name]
    results = [of_process[0][name] for of_process in found[: len(case.shares)]]
    whole = slice(None)
    exact = _shares.run(case, training, whole, torch.float64)
    torch_result = _shares.run(case, training, whole)
    assert results[0].keys() == exact.keys()
    for key in exact:
        actual = joined(results, key)
        assert actual.dtype == torch_result[key].dtype
        if case.dtype == torch.float64:
            torch.testing.assert_close(actual, exact[key], rtol=1e-10, atol=1e-10)
        else:
            _cases.assert_accurate(actual, exact[key], torch_result[key], what=key)


@pytest.mark.parametrize("name", [name for name in CASES if "twice" not in name])
def test_processes_talk_once_forward_and_once_backward(found, name):
    for _, collectives in found[: len(CASES[name].shares)]:
        assert collectives[name] == ["all_gather", "all_reduce"]


def test_a_lone_value_has_no_variance(found):
    """PyTorch's running variance would be NaN from then on."""
    drawn = _cases.randn((5,), seed=4).double().square()
    for results, _ in found:
        result = results["one value in all"]
        torch.testing.assert_close(result["running_var"], (1 - _shares.MOMENTUM) * drawn)
        assert all(t.isfinite().all() for t in result.values())


def test_no_values_leave_the_running_statistics_as_they_are(found):
    drawn = [_cases.randn((5,), seed=seed).double().square() for seed in (3, 4)]
    for results, _ in found:
        result = results["no values"]
        torch.testing.assert_close([result["running_mean"], result["running_var"]], drawn)
        assert not result["gradient of weight"].any()
        assert result["output"].shape == (0, 5, 4, 4)


def test_keeps_the_layout(found):
    for results, _ in found:
        result = results["channels_last"]
        assert result["output"].is_contiguous(memory_format=torch.channels_last)
        assert result["gradient of input"].is_contiguous(memory_format=torch.channels_last)


# ---- What needs no other process.


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_join_is_the_statistics_of_the_union(offset):
    x = _cases.randn((40, 3), torch.float64) + offset
    x[25:] *= 3
    sets = x.split([7, 18, 15, 0])
    counts = torch.tensor([[len(s)] for s in sets], dtype=torch.float64)
    means = torch.stack([s.mean(0) if len(s) else torch.zeros(3) for s in sets])
    variances = torch.stack([s.var(0, correction=0) if len(s) else torch.zeros(3) for s in sets])
    total, mean, var = sync_reference.join(counts, means, variances)
    assert total == 40
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(var, x.var(0, correction=0), rtol=1e-6 if offset else 1e-12, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 3), (65, 17), (5, 3, 1), (2, 7, 3, 3), (3, 5, 17, 31)])
def test_stages_make_up_the_whole(isa, shape, dtype, activation):
    ops, code = torch.ops.genimg_fast, ACTIVATIONS[activation]
    weight, bias = (_cases.randn((shape[1],), dtype, seed) for seed in (1, 2))
    for _, layout in _cases.layouts(shape):
        x, grad = layout(_cases.randn(shape, dtype)), _cases.randn(shape, dtype, 3) + 2
        _, mean, var = ops.batch_norm_act_training(x, weight, bias, 1e-5, code, 0.2)
        assert all(
            torch.equal(t.to(dtype), e) for t, e in zip(ops.batch_norm_act_statistics(x), (mean, var), strict=True)
        )
        arguments = (grad, x, mean, var, weight, bias, 1e-5, code, 0.2)
        expected_input, expected_weight, expected_bias = ops.batch_norm_act_backward(*arguments, True)
        grad_weight, grad_bias = ops.batch_norm_act_gradient_sums(*arguments)
        assert torch.equal(grad_weight, expected_weight)
        assert torch.equal(grad_bias, expected_bias)
        count = sync_reference.values_per_channel(x)
        grad_input = ops.batch_norm_act_gradient_input(*arguments, grad_weight / count, grad_bias / count)
        assert grad_input.stride() == expected_input.stride()
        torch.testing.assert_close(grad_input, expected_input)


def test_opcheck():
    ops, channels = torch.ops.genimg_fast, torch.rand(3)
    for x in (_cases.randn((4, 3, 5, 5)), _cases.randn((4, 5, 5, 6)).permute(0, 3, 1, 2)[:, ::2], torch.zeros(0, 3)):
        if x.numel():  # else NaN, which opcheck finds different from itself
            torch.library.opcheck(ops.batch_norm_act_statistics.default, (x,))
        for weight in (channels, None):
            arguments = (torch.ones_like(x), x, channels, channels, weight, None, 1e-5, 2, 0.01)
            torch.library.opcheck(ops.batch_norm_act_gradient_sums.default, arguments)
            torch.library.opcheck(ops.batch_norm_act_gradient_input.default, (*arguments, channels, channels))


def alone(function):
    statistics = [torch.zeros(3), torch.ones(3)]
    x = _cases.randn((4, 3, 5, 5)).requires_grad_()
    output = function(x, *statistics, torch.full((3,), 2.0), momentum=0.3, activation="relu")
    return [output, *torch.autograd.grad(output.square().sum(), x), *statistics]


@pytest.mark.parametrize("initialised", [False, True])
def test_alone_it_is_batch_norm_act(initialised):
    expected = alone(lambda *args, **kwargs: batch_norm_act(*args, training=True, **kwargs))
    if initialised:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(alone(sync_batch_norm_act), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"Expected more than 1 value per channel when training"):
            sync_batch_norm_act(torch.zeros(1, 3), None, None)
    finally:
        if initialised:
            dist.destroy_process_group()


@pytest.fixture
def _two_processes(monkeypatch):
    """As far as can be said before the other is waited for."""
    monkeypatch.setattr(MODULE, "process_count", lambda group: 2)


@pytest.mark.usefixtures("_two_processes")
def test_transforms_are_refused_in_words():
    message = "statistics are those of 2 processes, and neither transforms of torch.func nor forward-mode AD"

    def function(x):
        return sync_batch_norm_act(x, None, None).sum()

    x = _cases.randn((4, 4, 3))
    for transformed in (torch.vmap(function), torch.func.grad(function)):
        with pytest.raises(RuntimeError, match=message):
            transformed(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(function, (x,), (x,))


CHANNELS = torch.ones(3)


@pytest.mark.usefixtures("_two_processes")
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((torch.zeros(3), None, None), {}, ValueError, r"sync_batch_norm_act: input must be \(N, C, ...\), got shape"),
        ((torch.zeros(2, 4), CHANNELS, CHANNELS), {}, ValueError, r"running_mean must have shape \(4,\)"),
        ((torch.zeros(2, 3), CHANNELS, None), {}, ValueError, "given together or not at all"),
        ((torch.zeros(2, 3), CHANNELS.double(), CHANNELS), {}, TypeError, "running_mean is torch.float64 but input is"),
        ((torch.zeros(2, 3), None, None), {"eps": 0.0}, ValueError, "eps must be > 0 when training"),
        ((torch.zeros(2, 3), None, None), {"momentum": "0.1"}, TypeError, "momentum must be a number, got str"),
        ((torch.zeros(2, 3), None, None), {"activation": "gelu"}, ValueError, "activation must be one of 'none'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, kwargs, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message) as caught:
        sync_batch_norm_act(*args, **kwargs)
    assert "\n" not in str(caught.value)
