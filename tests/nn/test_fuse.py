# SPDX-License-Identifier: MIT
from __future__ import annotations

import abc
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import genimg_fast
from genimg_fast.nn import BCELoss, BCEWithLogitsLoss, Conv2dBNAct, ConvTranspose2dBNAct, FusedSequential
from tests import _cases


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2)), nn.Dropout(0.0)
        )
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, x):
        return self.criterion(self.head(self.decoder(self.encoder(x))), x.new_ones(len(x), 1))


def train(model: nn.Module, steps: int = 3, optimizer: torch.optim.Optimizer | None = None) -> list[float]:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(_cases.randn((4, 3, 8, 8), seed=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_swaps_classes_and_nothing_else():
    model = Autoencoder()
    tensors = {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    modules = {name: id(m) for name, m in model.named_modules()}
    keys = list(model.state_dict())
    genimg_fast.fuse(model)
    assert type(model.encoder) is type(model.encoder[0]) is type(model.decoder) is FusedSequential
    assert type(model.head) is nn.Sequential  # nothing in it fuses
    assert type(model.criterion) is BCEWithLogitsLoss
    assert {name: id(t) for name, t in [*model.named_parameters(), *model.named_buffers()]} == tensors
    assert {name: id(m) for name, m in model.named_modules()} == modules
    assert list(model.state_dict()) == keys


def test_trains_as_before_with_an_optimizer_built_before():
    model = Autoencoder()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    genimg_fast.fuse(model)
    torch.testing.assert_close(train(model, optimizer=optimizer), train(plain), rtol=1e-4, atol=1e-5)
    plain.load_state_dict(model.state_dict(), strict=True)


def test_unfuse_restores_every_class():
    model = Autoencoder()
    classes = [type(m) for m in model.modules()]
    genimg_fast.fuse(model)
    assert genimg_fast.unfuse(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert genimg_fast.unfuse(genimg_fast.fuse(model)) is model
    assert [type(m) for m in model.modules()] == classes


def test_unfuse_turns_the_blocks_of_this_package_plain():
    model = FusedSequential(ConvTranspose2dBNAct(3, 3, 1), Conv2dBNAct(3, 3, 1), nn.Flatten())
    genimg_fast.unfuse(model)
    assert [type(m) for m in (model, model[0], model[1])] == [nn.Sequential] * 3


def test_hooks_go_on_firing():
    model = Autoencoder()
    seen = []
    model.decoder.register_forward_hook(lambda *_: seen.append("decoder"))
    model.decoder[1].register_forward_hook(lambda *_: seen.append("bn"))
    report = genimg_fast.fuse(model)
    train(model, steps=1)
    assert seen == ["bn", "decoder"]
    assert ("decoder", ("1",), "BatchNorm2d", None, "it has hooks: <lambda>") in report.not_fused


def test_report_names_what_fused_and_why_the_rest_did_not():
    report = genimg_fast.fuse(Autoencoder())
    assert [(row.module, row.layers, row.kind) for row in report.fused] == [
        ("", ("encoder.0.0", "encoder.0.1", "encoder.0.2"), "conv2d_bn_act"),
        ("", ("decoder.0", "decoder.1", "decoder.2"), "conv_transpose2d_bn_act"),
        ("criterion", (), "bce_with_logits_loss"),
    ]
    assert [(row.module, row.layers, row.reason) for row in report.not_fused] == [
        ("head", ("0",), "Flatten is not a layer that fuses"),
        ("head", ("1",), "Linear is not a layer that fuses"),
    ]
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "layers", "what", "fused", "as", "why", "not"]
    assert any("ConvTranspose2d + BatchNorm2d + ReLU" in line and "conv_transpose2d_bn_act" in line for line in lines)
    assert lines[-1] == "3 fused, 2 left as they are"


def test_layers_of_several_sequentials_are_reported_as_they_run():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8)),
        nn.LeakyReLU(0.2),
        nn.Sequential(nn.Dropout(), nn.Sequential(nn.Conv2d(8, 8, 3))),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Softplus()),
    )
    report = genimg_fast.fuse(model)
    assert [(row.module, row.layers, row.kind) for row in report.rows] == [
        ("", ("0.0",), "conv2d_bn_act"),
        ("", ("0.1", "1"), "batch_norm_act"),
        ("", ("2.0",), None),
        ("", ("2.1.0", "3.0", "3.1"), "conv2d_bn_act"),
        ("", ("3.2",), None),
    ]
    explained = genimg_fast.explain(model, torch.randn(1, 3, 8, 8))
    assert [path for path, *_ in explained.plain_layers] == ["2.0", "3.2"]


def test_fusing_twice_reports_the_same():
    model = Autoencoder()
    first = genimg_fast.fuse(model)
    classes = [type(m) for m in model.modules()]
    second = genimg_fast.fuse(model)
    assert [row.kind for row in second.rows] == [row.kind for row in first.rows]
    assert [type(m) for m in model.modules()] == classes


def test_model_may_be_the_sequential():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    report = genimg_fast.fuse(model)
    assert type(model) is FusedSequential
    assert "(model)" in str(report)


def test_losses_of_any_reduction():
    for plain, fused in (
        (nn.BCELoss(reduction="sum"), BCELoss),
        (nn.BCEWithLogitsLoss(reduction="none"), BCEWithLogitsLoss),
    ):
        x, y = torch.rand(3, 4), torch.rand(3, 4)
        expected = plain(x, y)
        genimg_fast.fuse(plain)
        assert type(plain) is fused
        torch.testing.assert_close(plain(x, y), expected)


def test_a_lone_convolution_with_groups_is_left_as_it_is():
    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.GroupNorm(2, 8)
            self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, groups=2), nn.ReLU())

        def forward(self, x):
            return self.expand(self.norm(self.depthwise(x)))

    model = Depthwise()
    report = genimg_fast.fuse(model)
    assert type(model.depthwise) is nn.Conv2d
    assert [row.reason for row in report.not_fused if row.module == "depthwise"] == [
        "groups=8; the kernels take 1, and nothing follows that fuses"
    ]
    assert [row.module for row in report.fused] == ["expand"]  # with its activation


def test_a_filter_fn_that_raises_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3)))
    model.loss = nn.BCELoss()
    before = [type(m) for m in model.modules()]

    def not_the_loss(name, module):
        if name == "loss":
            raise KeyError(name)
        return True

    with pytest.raises(KeyError, match="loss"):
        genimg_fast.fuse(model, filter_fn=not_the_loss)
    assert [type(m) for m in model.modules()] == before


def test_filter_fn_leaves_modules_out():
    model = Autoencoder()
    asked = []

    def not_the_decoder(name, module):
        asked.append((name, module))
        return name != "decoder"

    report = genimg_fast.fuse(model, filter_fn=not_the_decoder)
    assert type(model.decoder) is nn.Sequential
    assert type(model.encoder[0]) is FusedSequential
    assert ("decoder", (), "Sequential", None, "filter_fn left it out") in report.not_fused
    assert asked == [
        (name, model.get_submodule(name)) for name in ("", "encoder", "encoder.0", "decoder", "head", "criterion")
    ]


def block(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), activation)


NESTED = {
    "two blocks": (lambda: nn.Sequential(block(nn.ReLU()), block(nn.Tanh())), True),
    "blocks inside": (lambda: nn.Sequential(nn.Sequential(block(nn.ReLU())), nn.Sequential(block(nn.Tanh()))), True),
    "none that fuses": (lambda: nn.Sequential(nn.Sequential(nn.GELU()), nn.Sequential(nn.Linear(6, 6))), False),
}


@pytest.mark.parametrize(("make", "joined"), NESTED.values(), ids=NESTED)
def test_a_sequential_runs_those_inside_as_one(make, joined):
    model, x = make(), _cases.randn((2, 4, 6, 6))
    expected = model(x)
    genimg_fast.fuse(model)
    assert (type(model) is FusedSequential) == joined
    with genimg_fast.use_backend("native"):
        output = model(x)
    torch.testing.assert_close(output, expected)
    if joined:
        before = {node.name().split("::")[-1] for node, _ in output.grad_fn.next_functions if node is not None}
        assert before == {"AccumulateGrad"}  # one node is all


class Given(nn.Module):
    """Its methods are given a layer, of which their source does not say what it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def before(self, x, act):
        return act(self.bn(self.conv(x)))

    def after(self, x, conv):
        x = conv(x)
        x = self.bn(x)
        return nn.functional.relu(x)

    def forward(self, x):
        return self.before(x, torch.tanh) + self.after(x, self.conv)


def test_what_a_method_is_given_leaves_the_layers_around_it_joined():
    torch.manual_seed(0)
    model, x = Given(), _cases.randn((2, 4, 6, 6))
    plain = copy.deepcopy(model)
    report = genimg_fast.fuse(model)
    assert [row.description for row in report.fused] == ["Conv2d + BatchNorm2d", "BatchNorm2d + relu"]
    with genimg_fast.use_backend("native"):
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


class HandsOn(nn.Module):
    """Its method calls a layer, or hands it on to one that upsamples before it does; and joins another one in one branch of two."""

    def __init__(self, up):
        super().__init__()
        self.up = up
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def upsampled(self, x, layer):
        return layer(nn.functional.interpolate(x, scale_factor=2))

    def forward(self, x):
        x = self.upsampled(x, self.first) if self.up else self.first(x)
        return self.second(x) if self.up else torch.tanh(self.second(x))


@pytest.mark.parametrize("up", [True, False])
def test_a_layer_that_is_joined_with_no_other_runs_fused_wherever_it_is_called(up):
    torch.manual_seed(0)
    model, x = HandsOn(up), _cases.randn((2, 4, 6, 6))
    expected = model(x)
    report = genimg_fast.fuse(model)
    assert sorted(row.description for row in report.fused) == ["Conv2d", "Conv2d", "Conv2d + tanh"]
    assert type(model.second) is nn.Conv2d
    with genimg_fast.use_backend("native"):
        explained = genimg_fast.explain(model, x)
        torch.testing.assert_close(model(x), expected)
    first = "conv_transpose2d_bn_act" if up else "conv2d_bn_act"  # with the upsampling before it
    assert [(call.op, call.native) for call in explained.calls] == [(first, True), ("conv2d_bn_act", True)]


def test_filter_fn_leaves_out_a_module_with_the_layers_that_it_joins_with_no_other():
    model = nn.Sequential(HandsOn(True), nn.Conv2d(4, 4, 3))
    report = genimg_fast.fuse(model, filter_fn=lambda name, module: not isinstance(module, HandsOn))
    assert [row.layers for row in report.fused] == [("1",)]
    assert [type(layer) for layer in model[0].children()] == [nn.Conv2d, nn.Conv2d]


def test_replaced_forward_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    model.forward = lambda x: x
    report = genimg_fast.fuse(model)
    assert type(model) is nn.Sequential
    assert [(row.module, row.layers, row.reason) for row in report.rows] == [("", (), "its forward() was replaced")]


def test_nothing_to_report():
    assert str(genimg_fast.fuse(nn.Linear(1, 1))) == "0 fused, 0 left as they are"


@pytest.mark.parametrize("function", [genimg_fast.fuse, genimg_fast.unfuse])
def test_bad_input_gets_one_clear_line(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be a torch.nn.Module, got dict"):
        function({})


def test_a_lazy_layer_is_fused_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    report = genimg_fast.fuse(model)
    assert "run the model once, then fuse() it again" in report.not_fused[0].reason
    model(torch.zeros(1, 3, 8, 8))
    assert [row.kind for row in genimg_fast.fuse(model).rows] == ["conv2d_bn_act"]


def test_a_filter_that_is_no_function():
    with pytest.raises(TypeError, match=r"^fuse: filter_fn must be a function, got int"):
        genimg_fast.fuse(nn.Linear(2, 2), filter_fn=3)


def test_a_module_that_is_a_dictionary_too():
    class Both(nn.Module, dict):
        __hash__, __eq__ = object.__hash__, object.__eq__

        def __init__(self):
            nn.Module.__init__(self)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.relu(self.conv(x))

    model, x = Both(), _cases.randn((2, 3, 6, 6))
    expected = model(x)
    assert [row.kind for row in genimg_fast.fuse(model).rows] == ["conv2d_bn_act"]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("base", [nn.Module, nn.Sequential])
def test_a_class_with_a_metaclass_of_its_own(base):
    class Abstract(base, abc.ABC):
        @abc.abstractmethod
        def images(self, x): ...

    class Concrete(Abstract):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

        def images(self, x):
            return self.act(self.conv(x))

        if base is nn.Module:
            forward = images

    model, x = Concrete(), _cases.randn((2, 3, 6, 6))
    expected = model(x)
    assert [row.kind for row in genimg_fast.fuse(model).rows] == ["conv2d_bn_act"]
    assert type(model) is not Concrete
    assert isinstance(model, Concrete)
    torch.testing.assert_close(model(x), expected)


def test_a_layer_that_cannot_fuse_says_so_whatever_the_filter():
    model = nn.Module()
    model.conv = nn.Conv2d(3, 4, 3)
    model.conv.register_forward_hook(lambda *_: None)
    (row,) = genimg_fast.fuse(model, filter_fn=lambda *_: False).rows
    assert row.reason == "it has hooks: <lambda>"


def test_a_parametrized_layer_in_a_sequential_has_its_row():
    normed = parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))
    report = genimg_fast.fuse(nn.Sequential(nn.Conv2d(3, 3, 3), normed, nn.ReLU()))
    first = report.not_fused[0]
    assert (first.layers, first.reason) == (("1",), "weight is parametrized")
