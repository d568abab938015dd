# SPDX-License-Identifier: MIT
"""`fuse` on a convolution and a resampling by two: nearest-neighbour upsampling before it, or a mean after it, which run as one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import genimg_fast
from genimg_fast import _backend
from genimg_fast.nn import replay
from genimg_fast.ops import _packed, _speed
from genimg_fast.ops._memory_order import memory_format
from tests import _cases
from tests.nn._resampling import (
    MODELS,
    Attributes,
    DownBlock,
    MeanInMethod,
    UpBlock,
    chain,
    fused_and_plain,
    joined,
    means,
    results,
)


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("shape", [(1, 8, 5, 6), (3, 8, 4, 4)], ids=str)
def test_trains_and_evaluates_as_torch(make, shape, backend):
    fused, plain = fused_and_plain(make)
    x = _cases.randn(shape, torch.float64)
    assert joined(fused, x)
    for _, lay_out in _cases.layouts(shape):
        with genimg_fast.use_backend(backend):
            for training in (True, False):
                actual, expected = (results(m.train(training), lay_out(x)) for m in (fused, plain))
                torch.testing.assert_close(actual, expected)
                assert memory_format(actual[0]) is memory_format(expected[0])
            with torch.no_grad():
                for _ in range(3):  # the third repeats the second
                    torch.testing.assert_close(fused(lay_out(x)), plain(lay_out(x)))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("training", [True, False])
def test_as_accurate_as_torch(make, training):
    fused, plain = fused_and_plain(make, torch.float32)
    exact = copy.deepcopy(plain).double()
    x = _cases.randn((4, 8, 9, 7))
    with genimg_fast.use_backend("native"):
        actual = results(fused.train(training), x)
    torch_results, exact = results(plain.train(training), x), results(exact.train(training), x.double())
    names = ["output", "input", *(name for name, _ in plain.named_parameters())]
    biases = [f"{n}.bias" for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)]  # 0 before a normalisation
    for name, a, e, t in zip(names, actual, exact, torch_results, strict=False):
        if name not in biases:
            _cases.assert_accurate(a, e, t, factor=_cases.ERROR_FACTOR_WINOGRAD, what=name)


OTHERS = {
    "a mean over three": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(3)],
    "a mean over two by one": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d((2, 1))],
    "a mean that overlaps": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(2, 1)],
    "a padded mean": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(2, 2, 1)],
    "a mean of what is left over": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(2, ceil_mode=True)],
    "a sum": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(2, divisor_override=1)],
    "a mean after kernel 5": lambda: [nn.Conv2d(8, 5, 5, padding=2), nn.AvgPool2d(2)],
    "a mean after stride 2": lambda: [nn.Conv2d(8, 5, 3, 2, 1), nn.AvgPool2d(2)],
    "a mean after groups": lambda: [nn.Conv2d(8, 4, 3, padding=1, groups=2), nn.AvgPool2d(2)],
    "a mean after a normalisation": lambda: [
        *(nn.Conv2d(8, 5, 3, padding=1), nn.BatchNorm2d(5), nn.AvgPool2d(2), nn.ReLU())
    ],
    "a mean after a transposed convolution": lambda: [nn.ConvTranspose2d(8, 5, 3, 1, 1), nn.AvgPool2d(2)],
    "a mean after a mean": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Tanh()],
    "a mean first": lambda: [nn.AvgPool2d(2), nn.Conv2d(8, 5, 3, padding=1)],
    "bilinear": lambda: [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 5, 3, padding=1)],
    "by three": lambda: [nn.Upsample(scale_factor=3), nn.Conv2d(8, 5, 3, padding=1)],
    "by two in one direction": lambda: [nn.Upsample(scale_factor=(1, 2)), nn.Conv2d(8, 5, 3, padding=1)],
    "to a size": lambda: [nn.Upsample(size=(10, 12)), nn.Conv2d(8, 5, 3, padding=1)],
    "kernel 5": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 5, padding=2)],
    "kernel (1, 3)": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, (1, 3))],
    "stride 2": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, 2, 1)],
    "dilation 2": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, dilation=2)],
    "padding 3": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, padding=3)],
    "reflection of two": lambda: [
        *(nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, padding=2, padding_mode="reflect"))
    ],
    "repeated around": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular")],
    "a padding of two": lambda: [nn.Upsample(scale_factor=2), nn.ReflectionPad2d(2), nn.Conv2d(8, 5, 3)],
    "a padding and zeros": lambda: [nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(8, 5, 3, padding=1)],
    "zeros around": lambda: [nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.Conv2d(8, 5, 3)],
    "groups": lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 3, padding=1, groups=2)],
    "a normalisation between": lambda: [nn.Upsample(scale_factor=2), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3, padding=1)],
    "a transposed convolution": lambda: [nn.Upsample(scale_factor=2), nn.ConvTranspose2d(8, 5, 3, 1, 1)],
    "nothing after": lambda: [nn.Conv2d(8, 5, 3, padding=1), nn.Upsample(scale_factor=2)],
}


@pytest.mark.parametrize("other", OTHERS)
def test_others_run_as_before(other):
    fused, plain = fused_and_plain(lambda: nn.Sequential(*OTHERS[other]()))
    x = _cases.randn((2, 8, 5, 6), torch.float64)
    with genimg_fast.use_backend("native"):
        torch.testing.assert_close(results(fused, x), results(plain, x))
    (row,) = (row for row in genimg_fast.fuse(fused).rows if row.description in ("Upsample", "AvgPool2d"))
    assert row.kind is None
    assert row.reason


def test_report():
    report = genimg_fast.fuse(Attributes())
    assert [(row.layers, row.description, row.kind) for row in report.rows] == [
        (("conv1", "norm1"), "interpolate + Conv2d + BatchNorm2d + leaky_relu", "conv_transpose2d_bn_act"),
        (("up", "conv2"), "UpsamplingNearest2d + Conv2d + sigmoid", "conv_transpose2d_bn_act"),
    ]
    report = genimg_fast.fuse(MeanInMethod())
    assert [(row.layers, row.description, row.kind) for row in report.fused] == [
        (("conv1",), "Conv2d + relu", "conv2d_bn_act"),
        (("conv2", "norm"), "Conv2d + avg_pool2d + BatchNorm2d + tanh", "conv2d_bn_act"),
    ]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_with_hooks_is_called(layer):
    fused, _ = fused_and_plain(MODELS["alone"])
    seen = []
    fused[layer].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    x = _cases.randn((2, 8, 5, 6), torch.float64)
    with genimg_fast.use_backend("native"), _backend.record_decisions() as decisions:
        fused(x)
    assert len(seen) == 1
    assert all(call.op == "conv2d_bn_act" for call in decisions)


def test_small_passes_in_training_and_few_channels_are_left():
    up, mean = (genimg_fast.nn.FusedSequential(*MODELS[name]()) for name in ("alone", "a mean alone"))
    small, large = _cases.randn((1, 8, 4, 4)), _cases.randn((32, 8, 64, 64))
    for model in (up, mean):
        assert joined(model, large, "auto")
        assert not joined(model, small, "auto")
    few = genimg_fast.nn.FusedSequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 16, 3, padding=1))
    with torch.no_grad():
        for model in (up, mean):
            assert joined(model, small, "auto")
        assert joined(few, large[:, :3])
        assert not joined(few, large[:, :3], "auto")


@pytest.mark.parametrize("upsamples", [True, False])
def test_what_pays_is_served(monkeypatch, upsamples):
    """Where the rule joins the two, the kernels' own rules do not leave their convolution to PyTorch."""
    for isa in (True, False):
        monkeypatch.setattr(_speed, "_on_avx2", lambda isa=isa: isa)
        for channels, images, size in [(8, 1, 32), (64, 1, 16), (256, 1, 4), (512, 1, 8), (128, 64, 8), (512, 16, 4)]:
            conv = nn.Conv2d(channels, 64, 3, padding=1)
            layers = (nn.Upsample(scale_factor=2), conv) if upsamples else (conv, nn.AvgPool2d(2))
            model, x = genimg_fast.nn.FusedSequential(*layers), _cases.randn((images, channels, size, size))
            for records in (True, False):
                with torch.set_grad_enabled(records), _backend.record_decisions() as decisions:
                    if not joined(model, x, "auto"):
                        continue
                assert all(call.native for call in decisions), (channels, images, size, records)


@pytest.mark.parametrize("model", ["alone", "a mean alone"])
def test_bad_input_is_named_as_by_the_layers(model):
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    for bad in (
        torch.zeros(2, 7, 4, 4),
        torch.zeros(2, 8, 4, 4, dtype=torch.float64),
        torch.zeros(8, 4),
        torch.zeros(2, 8, 0, 4),
        torch.zeros(2, 8, 4),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            plain(bad)
        with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:
            fused(bad)
        assert "[8, 5, 4, 4]" not in str(raised.value)


BAD_SETTINGS = {
    "a negative padding": lambda m: setattr(m[1], "padding", (-1, -1)),
    "a stride that is no whole number": lambda m: setattr(m[1], "stride", (1, 1.0)),
    "corners to align": lambda m: setattr(m[0], "align_corners", False),
    "a padding in words": lambda m: setattr(m[1], "padding", "around"),
    "a bias of another size": lambda m: setattr(m[1], "bias", nn.Parameter(torch.zeros(4))),
    "a kernel larger than the image": lambda m: setattr(m[1], "padding", (0, 0)),
}
BAD_SETTINGS_OF_MEANS = {
    "a negative padding": lambda m: setattr(m[0], "padding", (-1, -1)),
    "a bias of another size": lambda m: setattr(m[0], "bias", nn.Parameter(torch.zeros(4))),
    "an image too small for the mean": lambda m: None,
    "a divisor of zero": lambda m: setattr(m[1], "divisor_override", 0),
    "a size in words": lambda m: setattr(m[1], "kernel_size", "two"),
    "a stride of zero": lambda m: setattr(m[1], "stride", 0),
    "a choice in words": lambda m: setattr(m[1], "count_include_pad", "no"),
}


@pytest.mark.parametrize(
    ("model", "change"),
    [*(("alone", change) for change in BAD_SETTINGS), *(("a mean alone", change) for change in BAD_SETTINGS_OF_MEANS)],
)
@torch.no_grad()
def test_bad_settings_raise_what_the_layers_raise(model, change):
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    for each in (fused, plain):
        (BAD_SETTINGS if model == "alone" else BAD_SETTINGS_OF_MEANS)[change](each)
    x = _cases.randn((2, 8, 1, 1))
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        plain(x)
    with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:
        fused(x)
    assert "conv_transpose2d" not in str(raised.value)


@pytest.mark.parametrize(("model", "function"), [(UpBlock, "interpolate"), (DownBlock, "avg_pool2d")])
@torch.no_grad()
def test_another_function_in_the_place_of_torchs_is_called(monkeypatch, model, function):
    fused, plain = fused_and_plain(model, torch.float32)
    original = getattr(F, function)
    monkeypatch.setattr(F, function, lambda x, *more, **options: 2 * original(x, *more, **options))
    x = _cases.randn((2, 8, 4, 4))
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_weight_that_is_also_packed_otherwise_is_still_looked_at():
    conv = nn.Conv2d(16, 16, 3, padding=1)
    models = [genimg_fast.nn.FusedSequential(*layers, conv).eval() for layers in ((nn.Upsample(scale_factor=2),), ())]
    images = [_cases.randn((n, 16, size, size)) for n, size in ((1, 4), (1, 9), (4, 16), (16, 32))]
    for _ in range(3):
        for x in images:
            for model in models:
                with genimg_fast.use_backend("native"):
                    model(x)
                conv.weight.data.add_(0.1)
                expected = genimg_fast.unfuse(copy.deepcopy(model))(x)
                with genimg_fast.use_backend("native"):
                    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_was_upsampled_may_be_written_into(kernel, monkeypatch):
    """PyTorch's convolution keeps the upsampled image, which is another."""
    monkeypatch.setattr(_speed, "_WORK_OF_REORDERING", 0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, kernel, padding=kernel // 2)

        def shortcut(self, x):
            return self.conv2(F.interpolate(x, scale_factor=2))

        def forward(self, x):
            x = self.conv1(x)
            h = self.shortcut(x)
            return h + F.interpolate(F.relu_(x), scale_factor=2)

    fused, plain = fused_and_plain(Block)
    x = _cases.randn((2, 8, 5, 6), torch.float64)
    with genimg_fast.use_backend("native"):
        torch.testing.assert_close(results(fused, x), results(plain, x))


@pytest.mark.parametrize("layers", [lambda: [nn.AvgPool2d(2)], lambda: [nn.ReLU()], lambda: []])
@pytest.mark.parametrize("upsamples", [False, True])
def test_a_grey_image_takes_the_order_of_the_weight(layers, upsamples):
    first = [nn.Upsample(scale_factor=2)] if upsamples else []
    fused, plain = fused_and_plain(
        lambda: nn.Sequential(*first, nn.Conv2d(1, 8, 3, padding=1), *layers()), torch.float32
    )
    for model in (fused, plain):
        model.to(memory_format=torch.channels_last)
    x = _cases.randn((2, 1, 16, 18))
    with genimg_fast.use_backend("native"):
        assert fused(x).stride() == plain(x).stride()


@pytest.mark.parametrize(("model", "share"), [(chain, 0.55), (means, 0.5)])
def test_saves_no_image_of_full_size(model, share):
    fused, plain = fused_and_plain(model, torch.float32)
    x = _cases.randn((8, 8, 32, 32)).requires_grad_()

    def saved(model: nn.Module) -> int:
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), genimg_fast.use_backend("native"):
            model(x)
        return sum(kept.values())

    assert saved(fused) < share * saved(plain)


def test_second_derivatives():
    fused, plain = fused_and_plain(chain)
    x = _cases.randn((2, 8, 4, 4), torch.float64)

    def penalty(model: nn.Module) -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), [leaf, *model.parameters()], allow_unused=True))

    with genimg_fast.use_backend("native"):
        actual = penalty(fused)
    for a, e in zip(actual, penalty(plain), strict=True):
        if e is not None:  # of a bias ours may be zeros
            torch.testing.assert_close(a, e)


def test_checkpointing():
    fused, plain = fused_and_plain(chain)
    x = _cases.randn((2, 8, 4, 4), torch.float64).requires_grad_()
    grads = []
    with genimg_fast.use_backend("native"):
        for use_reentrant in (True, False):
            actual, expected = (checkpoint(m, x, use_reentrant=use_reentrant) for m in (fused, plain))
            for y in (actual, expected):
                x.grad = None
                y.square().sum().backward()
                grads.append(x.grad)
            torch.testing.assert_close(*grads[-2:])


def test_functional_calls():
    fused, plain = fused_and_plain(chain)
    x = _cases.randn((2, 8, 4, 4), torch.float64)
    state = {name: 2 * p for name, p in plain.named_parameters()}
    fused.eval()
    plain.eval()
    stacked = torch.stack([x, x + 1])
    torch.testing.assert_close(
        torch.func.vmap(lambda x: torch.func.functional_call(fused, state, x))(stacked),
        torch.func.vmap(lambda x: torch.func.functional_call(plain, state, x))(stacked),
    )


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_compiles_whole(make, grad, backend):
    torch._dynamo.reset()
    fused, plain = fused_and_plain(make, torch.float32)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.set_grad_enabled(grad), genimg_fast.use_backend(backend):
        for n in (2, 3):
            x = _cases.randn((n, 8, 5, 6))
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_it_trains_as_torch(make, training):
    torch._dynamo.reset()
    fused, plain = fused_and_plain(make)
    compiled = torch.compile(fused.train(training), fullgraph=True, backend="aot_eager")
    x = _cases.randn((4, 8, 9, 7), torch.float64)
    with genimg_fast.use_backend("native"):
        actual = results(compiled, x)
    torch.testing.assert_close(actual, results(plain.train(training), x))


def test_exports_as_the_two_layers(make):
    fused, _ = fused_and_plain(make, torch.float32)
    x = _cases.randn((2, 8, 5, 6))
    program = torch.export.export(fused.eval(), (x,))
    assert "genimg_fast" not in str(program.graph)
    assert "upsample_nearest" in str(program.graph) or "avg_pool2d" in str(program.graph)


CHANGES = {
    "a weight's values": lambda m: m[1].weight.add_(1),
    "one of a weight's values": lambda m: m[1].weight[1, 3, 2, 0].add_(1),
    "a weight's values, unnoticed": lambda m: m[1].weight.data.add_(1),
    "a weight's memory": lambda m: setattr(m[1].weight, "data", torch.ones(5, 8, 3, 3)),
    "a weight": lambda m: setattr(m[1], "weight", nn.Parameter(torch.ones(5, 8, 3, 3))),
    "the factor": lambda m: setattr(m[0], "scale_factor", 3.0),
    "the mode": lambda m: setattr(m[0], "mode", "bicubic"),
    "the padding": lambda m: setattr(m[1], "padding", (0, 0)),
    "a hook": lambda m: m[0].register_forward_hook(lambda module, args, output: 2 * output),
    "the upsampling": lambda m: m.__setitem__(0, nn.Upsample(scale_factor=3)),
}
CHANGES_OF_MEANS = {
    "a weight's values": lambda m: m[0].weight.add_(1),
    "a weight's values, unnoticed": lambda m: m[0].weight.data.add_(1),
    "a weight": lambda m: setattr(m[0], "weight", nn.Parameter(torch.ones(5, 8, 3, 3))),
    "the size": lambda m: setattr(m[1], "kernel_size", 3),
    "the divisor": lambda m: setattr(m[1], "divisor_override", 3),
    "the padding": lambda m: setattr(m[0], "padding", (2, 0)),
    "a hook": lambda m: m[1].register_forward_hook(lambda module, args, output: 2 * output),
    "the mean": lambda m: m.__setitem__(1, nn.MaxPool2d(2)),
}


@pytest.mark.usefixtures("recorded_at_once")
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("model", "change"),
    [*(("alone", change) for change in CHANGES), *(("a mean alone", change) for change in CHANGES_OF_MEANS)],
)
@torch.no_grad()
def test_a_change_is_seen(model, change, order):
    fused, _ = fused_and_plain(MODELS[model], torch.float32)
    fused.to(memory_format=order)
    x = _cases.randn((2, 8, 4, 4))
    before = fused(x)
    assert replay.replay([fused], x) is not None
    (CHANGES if model == "alone" else CHANGES_OF_MEANS)[change](fused)
    expected = genimg_fast.unfuse(copy.deepcopy(fused))(x)
    assert expected.shape != before.shape or not torch.allclose(expected, before)
    for _ in range(3):
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("recorded_at_once")
def test_nothing_is_kept_of_a_model_that_trains_or_is_unfused():
    fused, _ = fused_and_plain(MODELS["alone"], torch.float32)
    weight, x = fused[1].weight, _cases.randn((2, 8, 4, 4))
    for let_go in (lambda: fused.train()(x), lambda: genimg_fast.unfuse(fused)):
        with torch.no_grad():
            fused.eval()(x)
        assert weight in _packed._kept
        with genimg_fast.use_backend("native"):
            let_go()
        assert weight not in _packed._kept


@pytest.mark.parametrize("size", [2.0, (2, 2.0)])
def test_a_size_that_torch_refuses_is_refused(size):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(size))
    genimg_fast.fuse(model)
    with genimg_fast.use_backend("native"), pytest.raises(TypeError):
        model(_cases.randn((2, 3, 8, 8)))


def test_a_replicated_edge_joins_in_a_sequential():
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReplicationPad2d(1), nn.Conv2d(3, 4, 3))
    assert [row.kind for row in genimg_fast.fuse(model).rows] == ["conv_transpose2d_bn_act"]
