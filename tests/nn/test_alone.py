# SPDX-License-Identifier: MIT
"""Layers that run fused each by itself: those of an `nn.Sequential`, too, that a method calls one by one to collect features."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import genimg_fast
from genimg_fast.nn import FusedSequential
from genimg_fast.nn.alone import ALONE
from tests import _cases
from tests.nn._outcome import outcome


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.ConvTranspose2d(4, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, x):
        return [self.layers(x)]


class ByNumber(Features):
    def forward(self, x):
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in (2, 5):
                features.append(x)
        return features


class ByName(Features):
    def forward(self, x):
        features = []
        for name, layer in self.layers._modules.items():
            x = layer(x)
            if name in "25":
                features.append(x)
        return features


class FromAVariable(Features):
    def forward(self, x):
        layers = list(self.layers.children())
        features = []
        while layers:
            x = layers.pop(0)(x)
            features.append(x)
        return [features[2], features[5]]


class ByIndex(Features):
    def forward(self, x):
        first = self.layers[:3](x)
        second = self.layers[4](self.layers[3](first))
        return [first, self.layers[5](second)]


class WholeAndApart(ByNumber):
    def sample(self, x):
        return self.layers(x)


class OnlyTested(Features):
    def forward(self, x):
        if self.layers is None or not self.layers:
            return [x]
        return [self.layers(x) if self.layers else x]


class OnlyUsed(Features):
    """It makes and uses the Sequential in ways that call none of its layers."""

    def __init__(self):
        super().__init__()
        self.build()

    def build(self):
        self.layers = nn.Sequential(*Features().layers)
        self.layers.eval().train()
        return len(list(self.layers.parameters()))


class WithAKernelOfOne(ByNumber):
    def __init__(self):
        super().__init__()
        self.layers[4] = nn.Conv2d(4, 3, 1)


class Reader(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.layers = features

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x) * (i + 1)
        return x


APART = [ByNumber, ByName, FromAVariable, WholeAndApart]


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", [*APART, ByIndex, OnlyTested, OnlyUsed, WithAKernelOfOne])
def test_does_what_it_did(kind, mode, backend):
    torch.manual_seed(0)
    model = kind().double().train(mode == "train")
    fused = copy.deepcopy(model)
    genimg_fast.fuse(fused)
    x = _cases.randn((2, 3, 6, 8), torch.float64)
    with genimg_fast.use_backend(backend):
        for _ in range(2):  # the second may repeat the first
            torch.testing.assert_close(outcome(fused, x), outcome(model, x))
    with torch.no_grad():
        torch.testing.assert_close(list(fused(x)), list(model(x)))


@pytest.mark.parametrize("kind", APART)
def test_the_layers_run_fused_each_by_itself(kind):
    model = kind()
    classes = [type(layer) for layer in model.modules()]
    report = genimg_fast.fuse(model)
    assert all(type(layer) is ALONE.get(cls, cls) for layer, cls in zip(model.layers, classes[2:], strict=True))
    assert {row.module for row in report.fused} == {"layers", "layers.0", "layers.1", "layers.4"}
    assert str(genimg_fast.fuse(model)) == str(report)
    genimg_fast.unfuse(model)
    assert all(type(layer) is cls for layer, cls in zip(model.modules(), classes, strict=True))


def test_together_they_still_run_as_one():
    model = WholeAndApart()
    genimg_fast.fuse(model)
    assert isinstance(model.layers, FusedSequential)
    kinds = [(step.kind, len(step.layers)) for step in model.layers.plan()]
    assert kinds == [("conv2d_bn_act", 3), (None, 1), ("conv_transpose2d_bn_act", 2)]


@pytest.mark.parametrize("kind", [OnlyTested, OnlyUsed])
def test_a_sequential_whose_layers_nobody_takes_keeps_them_plain(kind):
    model = kind()
    genimg_fast.fuse(model)
    assert all(type(layer) is type(plain) for layer, plain in zip(model.layers, Features().layers, strict=True))


def test_the_report_has_one_row_for_a_layer_that_only_its_sequential_fuses():
    report = genimg_fast.fuse(model := WithAKernelOfOne())
    assert [(row.module, row.layers) for row in report.not_fused] == [("layers", ("3",))]
    explained = genimg_fast.explain(model, _cases.randn((2, 3, 6, 8)))
    assert {path for path, _, _ in explained.plain_layers} == {"layers.3"}


@pytest.mark.parametrize("before", [True, False])
def test_whoever_takes_the_layers_one_by_one(before):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            layers = Features().layers
            for name in ("reader", "layers") if before else ("layers", "reader"):
                setattr(self, name, layers if name == "layers" else Reader(layers))

        def forward(self, x):
            return self.layers(x) + self.reader(x)

    model = Holder()
    plain = copy.deepcopy(model)
    genimg_fast.fuse(model)
    assert type(model.layers[0]) is ALONE[nn.Conv2d]
    x = _cases.randn((2, 3, 6, 8))
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left_out", ["", "layers"])
def test_filter_leaves_the_layers_that_a_module_calls_alone(left_out):
    model = ByNumber()
    genimg_fast.fuse(model, filter_fn=lambda name, module: name != left_out)
    assert isinstance(model.layers, FusedSequential) == (left_out == "")
    assert all(type(layer) is type(plain) for layer, plain in zip(model.layers, ByNumber().layers, strict=True))


def test_compiles_in_one_graph():
    model = WholeAndApart()
    plain = copy.deepcopy(model)
    genimg_fast.fuse(model)
    x = _cases.randn((2, 3, 6, 8))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    sample = torch.compile(model.sample, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(sample(x), plain.sample(x), rtol=1e-4, atol=1e-5)


class Lone(nn.Module):
    """Every layer of which is called by itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.deconv = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.norm, self.instance_norm, self.flat_norm = nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.conv(x) + 1
        x = self.norm(x) + 1
        x = self.deconv(x) + 1
        x = self.instance_norm(x) + 1
        return self.flat_norm(x.mean((2, 3))) + 1


def test_tools_that_ask_for_a_class_find_it():
    model, plain = Lone(), Lone()
    genimg_fast.fuse(model)
    known = {nn.Conv2d: "a", nn.ConvTranspose2d: "b", nn.BatchNorm2d: "c", nn.InstanceNorm2d: "d", nn.BatchNorm1d: "e"}
    for fused, layer in zip(model.children(), plain.children(), strict=True):
        assert type(fused) is not type(layer)
        assert type(fused) == type(layer)  # noqa: E721
        assert type(layer) == type(fused)  # noqa: E721
        assert known[type(fused)] == known[type(layer)]
        assert type(fused) in [type(layer)]
        assert type(fused).__name__ == type(layer).__name__
        assert type(fused).__module__ == type(layer).__module__
        others = [cls for cls in known if cls is not type(layer)]
        assert type(fused) not in others
    assert FusedSequential == nn.Sequential
    assert type(genimg_fast.fuse(nn.BCELoss()).model) == nn.BCELoss  # noqa: E721
    assert repr(model) == repr(plain)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, *(lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in (0, 1, 2, 5))],
)
def test_copies_run_fused_too(copied):
    model = Lone()
    classes = [type(layer) for layer in model.children()]
    genimg_fast.fuse(model)
    x = _cases.randn((2, 3, 4, 4))
    again = copied(model.eval())
    assert [type(layer) for layer in again.children()] == classes
    for layer, of in zip(again.children(), model.children(), strict=True):
        assert type(layer) is type(of)
    torch.testing.assert_close(again(x), model(x))
    genimg_fast.unfuse(again)
    assert all(type(layer) is cls for layer, cls in zip(again.children(), classes, strict=True))


def test_classes_are_pickled_and_subclassed():
    model = genimg_fast.fuse(Lone()).model
    for layer in model.children():
        assert pickle.loads(pickle.dumps(type(layer))) is type(layer)
        layer.__class__ = type("Tagged", (type(layer),), {})
        assert type(copy.deepcopy(layer)) is type(layer)
    assert type(model.conv) != nn.Conv2d  # noqa: E721


def test_together_and_compiled_they_still_run_as_one():
    model = WholeAndApart()
    genimg_fast.fuse(model)
    graphs = []
    compiled = torch.compile(model.sample, backend=lambda graph, _: graphs.append(graph) or graph)
    with genimg_fast.use_backend("native"):
        compiled(_cases.randn((2, 3, 6, 8)))
    calls = [node.target for node in graphs[0].graph.nodes if "genimg_fast" in str(node.target)]
    assert len(calls) == 2, calls  # and not one for the batch normalisation


def test_what_autograd_saves_are_tensors():
    model = Features()
    genimg_fast.fuse(model)
    with genimg_fast.use_backend("native"):
        output = model.layers[:3](_cases.randn((2, 3, 6, 8)))  # held: in torch 2.11 what is saved goes with it
    assert all(isinstance(t, torch.Tensor) for t in output.grad_fn.saved_tensors)


@pytest.mark.parametrize("n", [1, 2])
def test_instance_normalisation_on_the_meta_device(n):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()).to("meta")
    genimg_fast.fuse(model)
    assert model(torch.empty(n, 3, 6, 6, device="meta")).shape == (n, 4, 4, 4)


class CalledByNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs, self.norm = nn.ModuleList([nn.Conv2d(3, 3, 3)]), nn.InstanceNorm2d(3)

    def forward(self, x):
        for i in range(len(self.convs)):
            x = self.convs[i](x)
        return self.norm(x)


def test_a_model_prints_as_before():
    model = CalledByNumber()
    before = str(model)
    assert len(genimg_fast.fuse(model).fused) == 2
    assert str(model) == before
