# SPDX-License-Identifier: MIT
"""`fuse` on nn.InstanceNorm2d, which runs as a batch normalisation, in training on one image as part of a block."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genimg_fast
from genimg_fast.ops._memory_order import memory_format
from tests import _cases


class Alone(nn.Module):
    """Calls its layer in a way that no rewriting knows."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norms = nn.ModuleList([norm])

    def forward(self, x):
        for i in range(len(self.norms)):  # which is not a loop that runs as one
            x = self.norms[i](x)
        return x


class InForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.ConvTranspose2d(3, 6, 4, 2, 1), nn.InstanceNorm2d(6, affine=True)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


def generator() -> nn.Sequential:
    """As that of CycleGAN."""
    return nn.Sequential(
        *(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(True)),
        *(nn.Conv2d(4, 6, 4, 2, 1), nn.InstanceNorm2d(6, affine=True), nn.ReLU(True)),
        *(nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.InstanceNorm2d(4, eps=1e-3), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(4, 3, 3, padding=1), nn.Tanh()),
    )


MODELS = {
    "generator": generator,
    "in forward": InForward,
    "alone": lambda: Alone(nn.InstanceNorm2d(3, affine=True)),
    "first": lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.Sigmoid(), nn.Conv2d(3, 2, 3)),
    "after a lone 1 x 1 convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.ReLU()),
    "after an activation": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.InstanceNorm2d(4), nn.Tanh()),
}


def fused_and_plain(make, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make().to(dtype)
    for module in plain.modules():
        if isinstance(module, nn.InstanceNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), [x, *model.parameters()])]


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_trains_and_evaluates_as_torch(model, images, backend):
    fused, plain = fused_and_plain(MODELS[model])
    x = _cases.randn((images, 3, 8, 6), torch.float64)
    with genimg_fast.use_backend(backend):
        torch.testing.assert_close(results(fused, x), results(plain, x))
        torch.testing.assert_close(results(fused.eval(), x), results(plain.eval(), x))  # its statistics are the image's
        with torch.no_grad():
            torch.testing.assert_close(fused(x), plain(x))


def test_belongs_to_the_block_before_it_on_one_image():
    fused, _ = fused_and_plain(generator)
    blocks = ["conv2d_bn_act", "conv2d_bn_act", "conv_transpose2d_bn_act", "conv2d_bn_act"]
    with genimg_fast.use_backend("native"):
        one, two = (genimg_fast.explain(fused, _cases.randn((n, 3, 8, 8), torch.float64)) for n in (1, 2))
        in_inference = genimg_fast.explain(fused.eval(), _cases.randn((1, 3, 8, 8), torch.float64))
    assert [call.op for call in one.calls] == blocks
    for report in (two, in_inference):
        assert [call.op for call in report.calls if call.op != "batch_norm_act"] == blocks
        assert len(report.calls) == len(blocks) + 3


def test_report():
    report = genimg_fast.fuse(generator())
    assert [(row.description, row.kind) for row in report.rows] == [
        ("ReflectionPad2d", None),
        ("Conv2d", "conv2d_bn_act"),
        ("InstanceNorm2d + ReLU", "batch_norm_act"),
        ("Conv2d", "conv2d_bn_act"),
        ("InstanceNorm2d + ReLU", "batch_norm_act"),
        ("ConvTranspose2d", "conv_transpose2d_bn_act"),
        ("InstanceNorm2d + LeakyReLU", "batch_norm_act"),
        ("Conv2d + Tanh", "conv2d_bn_act"),
    ]
    tracking = nn.InstanceNorm2d(3, track_running_stats=True)
    (row,) = genimg_fast.fuse(tracking).rows
    assert (row.kind, row.reason) == (None, "it tracks running statistics, which only a batch normalisation fuses with")
    assert type(tracking) is nn.InstanceNorm2d


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("order_of_weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("model", ["generator", "in forward"])
def test_lies_in_memory_as_torch_has_it(model, order_of_weights, order, images):
    fused, plain = (m.to(memory_format=order_of_weights) for m in fused_and_plain(MODELS[model], torch.float32))
    x = _cases.randn((images, 3, 8, 6)).contiguous(memory_format=order)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours, theirs = fused(x), plain(x)
        assert memory_format(ours) is memory_format(theirs)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("images", [1, 2])
def test_a_backward_that_is_recorded(images):
    fused, plain = fused_and_plain(lambda: generator()[4:10])
    x = _cases.randn((images, 4, 6, 6), torch.float64)

    def penalty(model):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [leaf, *model.parameters()])

    with genimg_fast.use_backend("native"):
        torch.testing.assert_close(penalty(fused), penalty(plain))


def test_compiles_for_any_number_of_images():
    torch._dynamo.reset()  # which has else seen FusedSequential on other heights, and Inductor fails on F.instance_norm of any
    fused, plain = fused_and_plain(lambda: generator()[4:], torch.float32)
    compiled = torch.compile(fused, fullgraph=True)
    for images in (1, 2, 3):
        x = _cases.randn((images, 4, 6, 6))
        torch.testing.assert_close(results(compiled, x), results(plain, x), atol=1e-3, rtol=1e-3)


def test_what_torch_serves_otherwise():
    norm, plain = nn.InstanceNorm2d(3), nn.InstanceNorm2d(3)
    genimg_fast.fuse(norm)
    unbatched = _cases.randn((3, 5, 5))
    torch.testing.assert_close(norm(unbatched), plain(unbatched))
    empty = torch.zeros(0, 3, 5, 5)
    assert norm(empty).shape == plain(empty).shape
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        norm(_cases.randn((2, 4, 5, 5)))
    assert "does not match num_features" in str(caught[0].message)
    for layer in (norm, plain):
        with pytest.raises(ValueError, match="Expected more than 1 spatial element when training"):
            layer(torch.zeros(2, 3, 1, 1))
        with pytest.raises(ValueError, match=r"expected 3D or 4D input"):
            layer(torch.zeros(2, 3))
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4))
    genimg_fast.fuse(block)
    with pytest.raises(ValueError, match="Expected more than 1"):
        block(torch.zeros(1, 3, 3, 3))


def test_keeps_its_class_when_unfused():
    model, plain = fused_and_plain(MODELS["alone"])
    assert isinstance(model.norms[0], nn.InstanceNorm2d)
    assert type(model.norms[0]) is not nn.InstanceNorm2d
    assert genimg_fast.unfuse(model) is model
    assert type(model.norms[0]) is nn.InstanceNorm2d
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("images", [1, 2])
def test_after_a_convolution_whose_weight_is_channels_last(images, backend):
    fused, plain = fused_and_plain(
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.InstanceNorm2d(16), nn.Sigmoid())
    )
    x = _cases.randn((images, 16, 9, 9), torch.float64)
    for model in (fused, plain):
        model.to(memory_format=torch.channels_last)
    with genimg_fast.use_backend(backend):
        for _ in range(2):
            torch.testing.assert_close(results(fused, x), results(plain, x))


ORDERS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "images last": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
}


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_norm_beside_it_gets_the_strides_that_it_differentiates_rightly(training, order, images, backend):
    """PyTorch's F.batch_norm fails on strides that a view of images in another order has."""
    torch.manual_seed(0)
    norm, beside, x = nn.InstanceNorm2d(8), nn.BatchNorm2d(8).train(training), _cases.randn((images, 8, 6, 6))
    expected = results(nn.Sequential(norm, beside), x)
    genimg_fast.fuse(norm)
    with genimg_fast.use_backend(backend):
        ours = results(nn.Sequential(norm, beside), ORDERS[order](x))
        assert norm(ORDERS[order](x)).stride() == x.stride()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
