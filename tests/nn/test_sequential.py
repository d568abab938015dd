# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from genimg_fast import _backend, functional, ops, unfuse
from genimg_fast.nn import FusedSequential, chain
from tests import _cases
from tests.nn._sequential import IMAGES, assert_same_state, assert_same_training, plain_twin


def untracked(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """It has running statistics, but training leaves them as they are."""
    bn.track_running_stats = False
    return bn


def frozen(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2.0)
    return bn.eval().requires_grad_(False)


CONV, DECONV, NORM = "conv2d_bn_act", "conv_transpose2d_bn_act", "batch_norm_act"
FUSED_CASES = {
    "generator block": (lambda: [nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()], IMAGES, [DECONV]),
    "encoder block": (lambda: [nn.Conv2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2)], IMAGES, [CONV]),
    "default slope": (lambda: [nn.Conv2d(4, 6, 3), nn.LeakyReLU()], IMAGES, [CONV]),
    "last layer": (lambda: [nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh()], IMAGES, [DECONV]),
    "conv alone": (lambda: [nn.Conv2d(4, 3, 3)], IMAGES, [CONV]),
    "conv, bn": (lambda: [nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)], IMAGES, [CONV]),
    "unbatched": (lambda: [nn.ConvTranspose2d(4, 3, 3), nn.Sigmoid()], IMAGES[1:], [DECONV]),
    "bn, act": (lambda: [nn.BatchNorm2d(4, eps=0.1, momentum=0.3), nn.Sigmoid()], IMAGES, [NORM]),
    "bn alone": (lambda: [nn.BatchNorm2d(4)], IMAGES, [NORM]),
    "bn1d": (lambda: [nn.BatchNorm1d(5), nn.ReLU()], (7, 5), [NORM]),
    "bn1d of sequences": (lambda: [nn.BatchNorm1d(5), nn.ReLU()], (7, 5, 3), [NORM]),
    "conv arguments": (lambda: [nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2), nn.BatchNorm2d(6)], IMAGES, [CONV]),
    "deconv arguments": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), 2, True, (2, 1)), nn.BatchNorm2d(6)],
        IMAGES,
        [DECONV],
    ),
    "bn arguments": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1, momentum=0.3), nn.ReLU()], IMAGES, [CONV]),
    "not affine": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()], IMAGES, [CONV]),
    "no running statistics": (
        lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()],
        IMAGES,
        [CONV],
    ),
    "cumulative average": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None)], IMAGES, [CONV]),
    "cumulative average, bn alone": (lambda: [nn.BatchNorm2d(4, momentum=None)], IMAGES, [NORM]),
    "frozen bn": (lambda: [nn.Conv2d(4, 6, 3), frozen(nn.BatchNorm2d(6)), nn.ReLU()], IMAGES, [CONV]),
    "running statistics not tracked": (lambda: [nn.Conv2d(4, 6, 3), untracked(nn.BatchNorm2d(6))], IMAGES, [CONV]),
    "two blocks": (
        lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.ConvTranspose2d(6, 3, 3), nn.Tanh()],
        IMAGES,
        [CONV, DECONV],
    ),
    "other layers between": (
        lambda: [nn.Flatten(), nn.Linear(120, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 3, 2)],
        IMAGES,
        [None, None, NORM, None, CONV],
    ),
    "nested": (lambda: [FusedSequential(nn.Conv2d(4, 6, 3), nn.ReLU()), nn.BatchNorm2d(6), nn.ReLU()], IMAGES, [CONV, NORM]),
    "padding in words": (
        lambda: [nn.Conv2d(4, 3, (3, 5), padding="same", dilation=(2, 1)), nn.ReLU(), nn.Conv2d(3, 2, 3, padding="valid")],
        IMAGES,
        [CONV, CONV],
    ),
    "reflected": (
        lambda: [
            *(nn.Conv2d(4, 4, 4, 2, 1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(4, 4, 3, 1, (1, 0), padding_mode="replicate"), nn.InstanceNorm2d(4), nn.ReLU()),
            *(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Conv2d(4, 2, (3, 2), padding="same", padding_mode="circular"),
        ],
        (1, 4, 8, 8),
        [CONV, CONV, NORM, DECONV, CONV],
    ),
    "activation first": (lambda: [nn.ReLU(), nn.Conv2d(4, 6, 3)], IMAGES, [None, CONV]),
    "activation after activation": (lambda: [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Tanh()], IMAGES, [CONV, None]),
    "empty": (lambda: [], IMAGES, []),
}  # fmt: skip


@pytest.mark.parametrize("case", FUSED_CASES)
def test_trains_and_evaluates_as_nn_sequential(case):
    layers, shape, kinds = FUSED_CASES[case]
    model = FusedSequential(*layers()).double()
    assert [step.kind for step in model.plan()] == kinds
    assert [name for step in model.plan() for name in step.names] == [
        name for name, m in model.named_modules() if not m._modules and name
    ]
    assert all(bool(step.reason) == (step.kind is None) for step in model.plan())
    assert_same_training(model, plain_twin(model), _cases.randn(shape, torch.float64, 1))


NO_NUMBER = [CONV, "its eps or momentum is no number", "no convolution or normalisation that fuses stands before it"]


@pytest.mark.parametrize(
    ("settings", "slope", "steps"),
    [
        ({"eps": torch.tensor(0.1)}, 0.2, NO_NUMBER),
        ({"momentum": torch.tensor(0.3)}, 0.2, NO_NUMBER),
        ({}, torch.tensor(0.5), [CONV, "its negative_slope is tensor(0.5000); only a number is fused"]),
        ({"momentum": np.float32(0.3), "eps": np.float64(0.1)}, np.float32(0.2), [CONV]),
    ],
)
def test_settings_may_be_all_that_pytorch_takes_for_a_number(settings, slope, steps):
    model = FusedSequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, **settings), nn.LeakyReLU(slope))
    assert [step.kind or step.reason for step in model.plan()] == steps
    assert_same_training(model.double(), plain_twin(model), _cases.randn(IMAGES, torch.float64, 1))


def test_each_step_is_one_call(monkeypatch):
    model = FusedSequential(
        *(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.ConvTranspose2d(2, 2, 1), nn.Tanh()),
        *(nn.BatchNorm2d(2), nn.LeakyReLU()),
    )
    calls = []
    for name in (CONV, DECONV, NORM):
        original = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *a, n=name, f=original, **k: calls.append(n) or f(*a, **k))
    with _backend.use_backend("reference"):
        model(torch.randn(2, 2, 3, 3))
    assert calls == [CONV, DECONV, NORM]


@pytest.fixture
def chains(monkeypatch):
    """The operations of each native chain that ran."""
    ran = []
    original = chain.block_chain
    monkeypatch.setattr(
        chain, "block_chain", lambda x, b, *more: ran.append([block.op for block in b]) or original(x, b, *more)
    )
    return ran


def test_consecutive_convolution_blocks_are_one_chain(chains):
    inner = FusedSequential(nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    model = FusedSequential(nn.Conv2d(2, 3, 3), inner, nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 6, 3), nn.Flatten())
    with _backend.record_decisions() as decisions, torch.no_grad():
        model.eval()(torch.randn(2, 2, 5, 5))
    assert chains == [[CONV, DECONV], [CONV]]  # groups are PyTorch's
    assert [(d.op, d.native) for d in decisions] == [(CONV, True), (DECONV, True), (CONV, True)]


def test_a_call_reaches_into_the_blocks_inside(chains):
    """MONAI's blocks, for one, are a convolution and an nn.Sequential of its normalisation and activation."""
    norm = FusedSequential(nn.BatchNorm2d(8), nn.Dropout(0.0), nn.ReLU())
    model = FusedSequential(
        FusedSequential(nn.ConvTranspose2d(3, 8, 4, 2, 1), FusedSequential(nn.BatchNorm2d(8), nn.ReLU())),
        FusedSequential(FusedSequential(nn.ConvTranspose2d(8, 8, 4, 2, 1)), norm),
    )
    twin = unfuse(copy.deepcopy(model))
    for mode in (True, False):
        input = torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(model.train(mode)(input), twin.train(mode)(input), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    assert chains == [[DECONV, DECONV]] * 2
    norm.register_forward_hook(lambda *_: None)
    chains.clear()
    with _backend.record_decisions() as decisions:
        model(torch.randn(2, 3, 5, 5))
    assert [d.op for d in decisions] == [DECONV, DECONV, NORM]


class Halves(nn.Module):
    def forward(self, x):
        return x.chunk(2, 1)


class Gate(nn.Module):
    def forward(self, halves):
        return halves[0] * halves[1]


@pytest.mark.parametrize("grad", [False, True])
def test_what_goes_from_layer_to_layer_need_not_be_a_tensor(grad):
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Halves(),
        Gate(),
        nn.Conv2d(4, 4, 3),
        nn.InstanceNorm2d(4),
    ]
    model = FusedSequential(*layers)
    x = _cases.randn((1, 3, 9, 9))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(x), unfuse(copy.deepcopy(model))(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_float32_batch_norm_after_bfloat16_layers(mode):
    model = FusedSequential(
        *(nn.Conv2d(4, 4, 3).bfloat16(), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 8, 3).bfloat16(), nn.BatchNorm2d(8), nn.Tanh()),
        *(nn.Flatten(), nn.BatchNorm1d(240), nn.Sigmoid()),
    ).train(mode == "train")
    plain = plain_twin(model)
    x = _cases.randn(IMAGES, torch.bfloat16)
    out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain(x))
    assert_same_state(model, plain)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_as_nn_sequential(mode):
    model = FusedSequential(
        *(nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Tanh()),
    )
    model.train(mode == "train")
    plain = plain_twin(model)
    x = _cases.randn((8, 4, 4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        fused_out, plain_out = model(x), plain(x)
    assert fused_out.dtype == plain_out.dtype
    torch.testing.assert_close(fused_out, plain_out, atol=0.05, rtol=0.05)
    for name, buffer in plain.named_buffers():
        assert model.get_buffer(name).dtype == buffer.dtype
        torch.testing.assert_close(model.get_buffer(name), buffer, atol=0.01, rtol=0.01)


class View(nn.Module):
    def forward(self, input):
        return input.view(input.shape[0], -1)  # an error for channels_last


def deconv_block() -> FusedSequential:
    return FusedSequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU())


MEMORY_CASES = {
    "deconv last": lambda: [*deconv_block()],
    "nested": lambda: [deconv_block(), deconv_block()],
    "conv last": lambda: [*deconv_block(), nn.Conv2d(4, 4, 3)],
    "bn last": lambda: [*deconv_block(), nn.BatchNorm2d(4)],
}


@pytest.mark.parametrize("case", MEMORY_CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_that_of_nn_sequential(case, memory_format):
    model = FusedSequential(*MEMORY_CASES[case]())
    x = _cases.randn(IMAGES).contiguous(memory_format=memory_format)
    out, plain_out = model(x), plain_twin(model)(x)
    assert out.stride() == plain_out.stride()
    torch.testing.assert_close(out, plain_out)


@pytest.mark.parametrize("case", MEMORY_CASES)
def test_other_layers_and_hooks_see_the_memory_format_they_would(case):
    model = FusedSequential(*MEMORY_CASES[case](), View())
    x = _cases.randn(IMAGES)
    torch.testing.assert_close(model(x), plain_twin(model)(x))
    seen = []
    for child in model[:-1]:
        child.register_forward_hook(lambda module, args, output: seen.extend([*args, output]))
    model(x)
    assert len(seen) == 2 * len(model[:-1])
    assert all(t.is_contiguous() for t in seen)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_in_one_graph(mode):
    torch._dynamo.reset()
    model = (
        FusedSequential(
            *(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 3, 3), nn.Sigmoid(), nn.BatchNorm2d(3), nn.Dropout(0.0)),
        )
        .double()
        .train(mode == "train")
    )
    plain = plain_twin(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = _cases.randn(IMAGES, torch.float64)
    for _ in range(2):
        out, plain_out = compiled(x), plain(x)
        torch.testing.assert_close(out, plain_out)
        grads = (
            torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((out, model), (plain_out, plain))
        )
        torch.testing.assert_close(*grads)
    assert_same_state(model, plain)


def test_functional_call_uses_the_tensors_it_is_given():
    model = FusedSequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    other = FusedSequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = copy.deepcopy(model.state_dict())
    x = _cases.randn(IMAGES)
    out = torch.func.functional_call(model, copy.deepcopy(other.state_dict()), (x,))
    torch.testing.assert_close(out, other(x))
    assert_same_state(model, plain_twin(model))
    torch.testing.assert_close(dict(model.state_dict()), dict(before))


def block() -> list[nn.Module]:
    return [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]


@pytest.mark.parametrize(
    "copy_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_are_whole_and_apart(copy_of):
    model = FusedSequential(*block())
    twin = copy_of(model)
    assert type(twin) is FusedSequential
    assert_same_state(model, twin)
    twin[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


def test_edits_as_nn_sequential():
    model, plain = FusedSequential(*block()), nn.Sequential(*block())
    for m in (model, plain):
        m.append(nn.Conv2d(4, 3, 1))
        m.insert(3, nn.Tanh())
        m.extend([nn.Sigmoid()])
        m[2] = nn.LeakyReLU()
        del m[4]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [step.names for step in model.plan()] == [("0", "1", "2"), ("3",), ("4",)]
    model += nn.Sequential(nn.Tanh())
    assert type(model) is FusedSequential
    assert len(model) == 6
    assert model.pop(5) is not None
    plain.load_state_dict(model.state_dict())
    x = _cases.randn(IMAGES)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, None), slice(None, None, 2)])
def test_slices_share_layers_and_fuse(part):
    named = OrderedDict(zip(("conv", "norm", "act"), block(), strict=True))
    model = FusedSequential(named)[part]
    assert type(model) is FusedSequential
    assert list(model.named_children()) == list(nn.Sequential(named)[part].named_children())


def test_state_dict_is_that_of_nn_sequential():
    model, plain = FusedSequential(*block()), nn.Sequential(*block())
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert_same_state(model, plain)


@pytest.mark.parametrize(
    ("layers", "input", "error", "message"),
    [
        (block, torch.zeros(4, 5, 6), ValueError, r"expected 4D input \(got 3D input\)"),
        (block, torch.zeros(2, 3, 5, 6), ValueError, "input has 3 channels"),
        (lambda: [nn.Conv2d(4, 5, 1), nn.BatchNorm2d(6)], torch.zeros(2, 4, 5, 6), ValueError, r"must have shape \(5,\)"),
        (block, torch.zeros(1, 4, 3, 3), ValueError, "Expected more than 1 value per channel when training"),
        (lambda: [nn.BatchNorm2d(4), nn.ReLU()], torch.zeros(2, 4, 5), ValueError, r"expected 4D input \(got 3D input\)"),
        (lambda: [nn.BatchNorm1d(4)], torch.zeros(2, 4, 5, 6), ValueError, r"expected 2D or 3D input \(got 4D input\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_gets_one_clear_line(layers, input, error, message, backend):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        FusedSequential(*layers())(input)


REFUSED = {
    "channels": (lambda: [*normalized(4, 6), *normalized(6, 5)], (3, 5, 9, 9)),
    "channels of the second": (lambda: [*normalized(4, 6), *normalized(7, 5), *normalized(5, 5)], (3, 4, 9, 9)),
    "a kernel too large": (lambda: [*normalized(4, 6), *normalized(6, 5, kernel_size=9)], (3, 4, 6, 6)),
    "dtype": (lambda: [*normalized(4, 6), *(layer.double() for layer in normalized(6, 5))], (3, 4, 9, 9)),
    "one value a channel, which is counted": (
        lambda: [*normalized(4, 6, kernel_size=4), *normalized(6, 5)],
        (1, 4, 4, 4),
    ),
    "features of the second, which is counted": (
        lambda: [*normalized(4, 6), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(4), *normalized(5, 5)],
        (3, 4, 9, 9),
    ),
    "behind another layer": (lambda: [*normalized(4, 6), nn.Identity(), *normalized(7, 5)], (3, 4, 9, 9)),
    "momentum None": (lambda: [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None)], (3, 5, 9, 9)),
    "frozen, untracked": (
        lambda: [nn.Conv2d(4, 6, 3), frozen(nn.BatchNorm2d(6)), nn.Conv2d(7, 6, 3), untracked(nn.BatchNorm2d(6))],
        (3, 4, 9, 9),
    ),
}


def normalized(in_channels: int, out_channels: int, kernel_size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel_size), nn.BatchNorm2d(out_channels), nn.ReLU()]


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_refused_batch_leaves_the_state_that_nn_sequential_leaves(case, backend):
    layers, shape = case
    fused = FusedSequential(*layers())
    plain, input = plain_twin(fused), _cases.randn(shape)
    with pytest.raises((RuntimeError, ValueError)):
        plain(input)
    with _backend.use_backend(backend), pytest.raises((RuntimeError, TypeError, ValueError)):
        fused(input)
    assert_same_state(fused, plain)


def test_checkpointing_runs_no_layer_once_more(monkeypatch):
    """Activation checkpointing ends the second forward pass by an exception, which is no refusal."""
    model = FusedSequential(*normalized(4, 6), *normalized(6, 5))
    plain, input = plain_twin(model), _cases.randn((3, 4, 9, 9)).requires_grad_()
    reference_blocks = []
    monkeypatch.setattr("genimg_fast.nn.sequential.reference.block_chain", lambda *args: reference_blocks.append(args))
    with _backend.use_backend("native"):
        actual = checkpoint(model, input, use_reentrant=False)
        actual.square().sum().backward()
    assert not reference_blocks
    expected = checkpoint(plain, input, use_reentrant=False)
    expected.square().sum().backward()
    torch.testing.assert_close(actual, expected)
    for m in (model, plain):
        assert [m[1].num_batches_tracked, m[4].num_batches_tracked] == [2, 2]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_numbers_that_are_not_floating_point_are_left_to_torch(dtype):
    layers = [nn.Conv2d(4, 5, 1, bias=False), nn.Sigmoid()]
    layers[0].weight = nn.Parameter(torch.ones(5, 4, 1, 1, dtype=dtype), requires_grad=False)
    input = torch.ones(2, 4, 3, 3, dtype=dtype)
    torch.testing.assert_close(FusedSequential(*layers)(input), nn.Sequential(*layers)(input))


@pytest.mark.parametrize("latents", [(2, 8, 4, 4), (2, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_weights_in_channels_last_make_the_output_so(latents, mode):
    """As in PyTorch, where an input that was a vector has no order of its own."""
    layers = nn.ConvTranspose2d(8, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.ConvTranspose2d(5, 3, 4, 2, 1)
    model = FusedSequential(*layers).train(mode == "train").to(memory_format=torch.channels_last)
    plain, input = plain_twin(model), _cases.randn(latents).requires_grad_()
    with _backend.use_backend("native"):
        actual = model(input)
    expected = plain(input)
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    grads = (torch.autograd.grad(output.square().sum(), input)[0] for output in (actual, expected))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_blocks_on_cuda_hand_images_on_in_channels_last(monkeypatch):
    model = FusedSequential(
        nn.ConvTranspose2d(5, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ConvTranspose2d(6, 3, 4, 2, 1)
    )
    latents = _cases.randn((2, 5, 1, 1))
    expected = copy.deepcopy(model)(latents)
    seen, asked = [], []
    run = ops.conv_transpose2d_bn_act

    def see(input, *tensors, nchw=False, **options):
        seen.append(input.stride()[1] == 1 and input.stride()[3] == input.shape[1])
        asked.append(nchw)
        return run(input, *tensors, **options)

    monkeypatch.setattr(chain, "may_chain", lambda input: False)
    monkeypatch.setattr(chain, "_wants_channels_last", lambda input, block: True)
    monkeypatch.setattr(ops, "conv_transpose2d_bn_act", see)
    images = model(latents)
    assert seen == [True] * 3
    assert asked == [False, False, True]  # of the last kernel, so that no pass of its own puts the images back
    assert images.is_contiguous()  # as nn.Sequential's, whose input and weights are
    torch.testing.assert_close(images, expected)

    again = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert again(latents).is_contiguous(memory_format=torch.channels_last)
    assert asked[3:] == [False] * 3
