# SPDX-License-Identifier: MIT
"""Layers that PyTorch runs faster are called as they are, once a pass has shown it, until the kind of pass changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from genimg_fast import _backend, explain, fuse, unfuse
from genimg_fast.nn import FusedSequential, plain
from genimg_fast.nn.layers import Call
from genimg_fast.nn.sequential import run_in_turn
from genimg_fast.nn.steps import Step
from tests import _cases

pytestmark = pytest.mark.usefixtures("small_layers_left")


@pytest.fixture
def plans(monkeypatch):
    """How many passes were planned."""
    made: list[list[Step]] = []
    original = FusedSequential.plan
    monkeypatch.setattr(FusedSequential, "plan", lambda self: made.append(original(self)) or made[-1])
    return made


class OfOthers(nn.GELU):
    """A class outside of torch.nn, with which a pass is not repeated as a whole."""


def small() -> FusedSequential:
    return FusedSequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU())


@pytest.mark.parametrize("training", [True, False])
def test_a_small_pass_is_planned_once(plans, training):
    model, input = small().train(training), _cases.randn((2, 3, 4, 4))
    twin = unfuse(copy.deepcopy(model))
    for _ in range(3):
        torch.testing.assert_close(model(input), twin(input))
    assert len(plans) == 1
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


CHANGES = {
    "shape": lambda model, input: model(input.repeat(2, 1, 1, 1)),
    "dtype": lambda model, input: model.double()(input.double()),
    "mode": lambda model, input: model.train()(input),
    "gradient": lambda model, input: torch.enable_grad()(model)(input),
    "autocast": lambda model, input: torch.autocast("cpu", torch.bfloat16)(model)(input),
    "memory order": lambda model, input: model(input.contiguous(memory_format=torch.channels_last)),
    "child": lambda model, input: model.append(nn.Tanh())(input),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_another_kind_of_pass_is_planned_anew(plans, change):
    model, input = small().eval(), _cases.randn((2, 3, 4, 4))
    model(input)
    model(input)
    assert len(plans) == 1
    change(model, input)
    assert len(plans) == 2


def test_whether_backward_is_wanted_is_told_by_the_input_as_by_the_parameters(plans):
    model, input = small().eval().requires_grad_(False), _cases.randn((2, 3, 4, 4))
    for wanted in (False, True, False):
        model(input.requires_grad_(wanted))
    model.requires_grad_()(input)
    assert len(plans) == 2


@pytest.mark.parametrize("where", ["the one layer", "all modules"])
def test_a_pass_that_hooks_kept_from_the_kernels_is_not_known(where):
    model, input = FusedSequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.GELU()).eval(), _cases.randn((2, 8, 32, 32))
    register = {"the one layer": model[0].register_forward_hook, "all modules": register_module_forward_hook}[where]
    with torch.no_grad():
        handle = register(lambda module, args, output: None)
        model(input)
        handle.remove()
        before = _backend.native_calls()
        model(input)
    assert _backend.native_calls() > before


def test_a_spectral_norm_is_no_reason_to_plan_anew(plans):
    model = FusedSequential(nn.utils.spectral_norm(nn.Conv2d(3, 5, 3)), nn.LeakyReLU(0.2))
    input = _cases.randn((2, 3, 8, 8))
    for _ in range(3):
        model(input)
    assert len(plans) == 1


class Deepening(nn.Module):
    """Does nothing at first, as of a network that grows, or of stochastic depth."""

    def __init__(self):
        super().__init__()
        self.grown, self.body = False, nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU())

    def forward(self, x):
        return self.body(x) if self.grown else x


def test_what_a_layer_of_the_user_does_later_is_its_own():
    model, input = nn.Sequential(Deepening(), nn.Conv2d(8, 3, 1), nn.Sigmoid()), _cases.randn((2, 8, 32, 32))
    fuse(model.eval())
    with torch.no_grad():
        for _ in range(2):
            model(input)
        model[0].grown, before = True, _backend.native_calls()
        model(input)
    assert _backend.native_calls() > before


@pytest.mark.parametrize("sizes", [(8, 8, 128), (128, 8)])
def test_activation_checkpointing_repeats_what_ran(sizes):
    """Whatever is learned between a pass and its repetition."""
    inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.ReLU())
    fuse(inner)
    for size in sizes:
        x = _cases.randn((2, 8, size, size)).requires_grad_()
        for _ in range(2):
            checkpoint(inner, x, use_reentrant=False).sum().backward()


def test_what_explain_says_is_what_runs_next():
    """Whatever ran before: the memory order, and whether parameters train, may decide."""

    def runs_natively(model, input):
        told = [call.native for call in explain(model, input).calls]
        before = _backend.native_calls()
        model(input)
        assert (_backend.native_calls() > before) == any(told)
        return any(told)

    planes = _cases.randn((1024, 64, 3, 3))
    model = FusedSequential(nn.BatchNorm2d(64), nn.ReLU())
    assert not runs_natively(model, planes)
    assert runs_natively(model, planes.contiguous(memory_format=torch.channels_last))
    assert not runs_natively(model, planes)


def test_frozen_parameters_are_another_kind_of_pass():
    model, input = FusedSequential(nn.ConvTranspose2d(8, 8, 3, 2, 1), nn.ReLU()), _cases.randn((4, 8, 4, 4))
    native = []
    for trains in (True, False, True):
        before = _backend.native_calls()
        model.requires_grad_(trains)(input)
        native.append(_backend.native_calls() - before)
    assert native == [0, 1, 0]


def test_a_sparse_input_has_no_memory_order():
    model, input = FusedSequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval(), _cases.randn((5, 3))
    for _ in range(2):
        torch.testing.assert_close(model(input.to_sparse()), model(input))


def test_functions_that_a_method_calls_are_recognised():
    conv, input = nn.Conv2d(3, 5, 1), _cases.randn((2, 3, 4, 4))
    first, second, other = (
        Call(function, (), {}) for function in (F.relu, F.relu, torch.tanh)
    )  # made anew in each pass
    run_in_turn([conv, first], input)
    assert plain.is_known([conv, second], input)
    assert not plain.is_known([conv, other], input)


def test_what_pytorch_runs_faster_is_planned_once_beside_what_the_kernels_run():
    model = FusedSequential(*small(), OfOthers(), nn.ConvTranspose2d(5, 5, 4, 2, 1)).eval()
    input = _cases.randn((2, 3, 4, 4))
    with torch.no_grad():
        for _ in range(3):  # the kernels' part is repeated
            model(input)
            assert not plain.is_known([model], input)
            assert plain.is_known(list(model)[:3], input)


def test_a_pass_that_ran_natively_is_not_left_plain():
    model, input = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval(), _cases.randn((2, 3, 4, 4))
    with torch.no_grad():
        model(input)
    assert not plain.is_known([model], input)


@pytest.mark.parametrize("layers", [[nn.BatchNorm2d(32)], [nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU()]])
@pytest.mark.parametrize("sizes", [(8, 64), (64, 8)])
def test_a_layer_that_pytorch_serves_at_one_size_and_the_kernels_at_another(layers, sizes):
    """Within one graph, such as a discriminator's of a large and a small image."""
    model = FusedSequential(*copy.deepcopy(layers)).train()
    twin = unfuse(copy.deepcopy(model))
    for m in (model, twin):
        sum(m(_cases.randn((2, 32, s, s)).requires_grad_()).square().mean() for s in sizes).backward()
    ours, theirs = ([p.grad for p in m.parameters()] for m in (model, twin))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_backend_that_was_asked_for_is_heeded(backend):
    model, input = small().eval(), _cases.randn((2, 3, 4, 4))
    model(input)
    with _backend.use_backend(backend):
        assert not plain.is_known([model], input)
    assert plain.is_known([model], input)


def test_explain_still_hears_the_reasons():
    model, input = small().eval(), _cases.randn((2, 3, 4, 4))
    model(input)
    with _backend.record_decisions() as decisions:
        model(input)
    assert [d.native for d in decisions] == [False, False]


def test_a_pass_inside_vmap_teaches_nothing_and_heeds_what_is_known(plans):
    model, input = small().eval(), _cases.randn((5, 2, 3, 4, 4))
    expected = torch.vmap(unfuse(copy.deepcopy(model)))(input)
    torch.testing.assert_close(torch.vmap(model)(input), expected)
    assert not plain.is_known([model], input[0])
    model(input[0])
    torch.testing.assert_close(torch.vmap(model)(input), expected)
    assert len(plans) == 2


def test_the_oldest_pass_is_forgotten_first(monkeypatch, plans):
    monkeypatch.setattr(plain, "_MOST_PASSES", 3)
    model, inputs = small().eval(), [_cases.randn((n, 3, 4, 4)) for n in range(1, 6)]
    for input in inputs:
        model(input)
    assert [plain.is_known([model], input) for input in inputs] == [False, False, True, True, True]
    assert len(plans) == 5


def test_a_set_of_shapes_that_take_turns_is_planned_once(plans):
    model = small().eval()
    inputs = [_cases.randn((1, 3, h, w)) for h in range(1, 11) for w in range(1, 11)]
    for input in 2 * inputs:
        model(input)
    assert len(plans) == len(inputs)
