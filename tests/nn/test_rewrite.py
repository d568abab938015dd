# SPDX-License-Identifier: MIT
"""Methods in which `fuse` joins calls of layers do what they did, however they are written."""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import sys
from typing import ClassVar
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genimg_fast
from genimg_fast.nn import rewrite
from genimg_fast.nn.twin import chains_of, named
from tests import _cases

CONV, NORM = "conv2d_bn_act", "batch_norm_act"


class Model(nn.Module):
    """The layers that the cases below call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.bn2 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)])
        self.norm1d = nn.BatchNorm1d(3)  # which refuses images
        self.unset = None
        self.slope = 0.3
        self.activation = F.relu


class Nested(Model):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Assigned(Model):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        return self.relu(x)


class OneName(Model):
    """Each result in a variable of its own."""

    def forward(self, x):
        h = self.conv(x)
        n = self.bn(h)
        y = torch.tanh(n)
        return y


class Methods(Model):
    def forward(self, x):
        return self.bn(self.conv(x)).relu() + self.bn2(self.conv2(x)).sigmoid_()


class FunctionInAttribute(Model):
    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


class SlopeInAttribute(Model):
    def forward(self, x):
        return F.leaky_relu(self.conv(x), negative_slope=self.slope, inplace=True)


class Indexed(Model):
    def forward(self, x):
        return F.relu(self.layers[1](self.layers[0](x)), True)


class GuardedNorm(Model):
    def forward(self, x):
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.unset is not None:
            x = self.unset(x)
        return self.relu(x)


class Stages(Model):
    def forward(self, x):
        out = self.stage(x)
        out = self.stage2(out)
        return out


class SharedRelu(Model):
    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return x


class SharedConvolution(Model):
    """With a different normalisation in each place."""

    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) + F.relu(self.bn2(self.conv(x)))


class SameLayersTwice(Model):
    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        x = F.relu(self.bn(self.conv(x)))
        return x


class InLoopAndBranch(Model):
    def forward(self, x):
        for i in range(3):
            x = self.relu(self.bn(self.conv(x))) if i % 2 and x.sum() < 1e9 else self.conv2(x)
            if x.mean() > 0:
                x = self.bn2(x)
                x = F.relu(x)
        return x


class OtherMethod(Model):
    def encode(self, x, power=1, *, factor=1.0):
        return F.relu(self.bn(self.conv(x))) ** power * factor

    def forward(self, x, scale=2.0, *, shift=1.0):
        noise = torch.randn(x.size(), dtype=x.dtype)
        return self.encode(x) * scale + shift + 0 * noise


class ConvolutionAlsoReturned(Model):
    def forward(self, x):
        h = self.conv(x)
        y = self.bn(h)
        return F.relu(y), h


class NormalisedUsedTwice(Model):
    def forward(self, x):
        x = self.bn(self.conv(x))
        y = F.relu(x)
        return x + y


class Skip(Model):
    def forward(self, x):
        out = self.bn(self.conv(x))
        out += x
        return self.relu(out)


class InPlaceOnOutput(Model):
    def forward(self, x):
        out = F.leaky_relu(self.bn(self.conv(x)), 0.2)
        out += x
        return out


class InPlaceOnInput(Model):
    """The activation changes x, and the skip connection sees that."""

    def forward(self, x):
        x = x * 1
        y = self.conv(self.relu(x))
        return torch.cat([x, y], 1)


class Feature(Model):
    def forward(self, x):
        self.feature = self.conv(x)
        x = self.bn(self.feature)
        return F.relu(x)


class Alias(Model):
    def forward(self, x):
        x = self.conv(x)
        kept = x
        x = self.bn(x)
        return self.relu(x) + kept


class Closure(Model):
    """`bn` looks at a variable of the function that calls it."""

    def forward(self, x):
        def norm(h):
            return self.bn(h) + x.mean()

        x = self.conv(x)
        x = norm(x)
        return x


class Comprehension(Model):
    def forward(self, x):
        return torch.stack([F.relu(self.bn(self.conv(part))) for part in x.split(1)])


class AfterAnError(Model):
    def forward(self, x):
        try:
            x = self.conv(x)
            x = self.norm1d(x)
        except ValueError:
            return x


class Suppressed(Model):
    def forward(self, x):
        with contextlib.suppress(ValueError):
            x = self.conv(x)
            x = self.norm1d(x)
        return x


class LooksAtItsVariables(Model):
    def forward(self, x):
        h = self.conv(x)
        y = self.bn(h)
        return y + locals()["h"]


class OtherSelf(Model):
    def forward(self, x):
        y = self.relu(self.conv(x))
        self, other = copy.copy(self), self
        return y + other.bn(self.conv2(x))


class ConditionOnTheVariable(Model):
    def forward(self, x):
        x = self.conv(x)
        if x.mean() > 0:
            x = self.bn(x)
        return x


class ConditionOnWhatTheLayerCounts(Model):
    def forward(self, x):
        x = self.bn(x)
        if self.bn.num_batches_tracked > 0:
            x = self.relu(x)
        return x


class ConditionOnItsAttribute(Model):
    def forward(self, x):
        x = self.conv(x)
        if x.is_leaf:  # as the input is
            x = self.bn(x)
        return x


class TwoLayersUnderACondition(Model):
    def forward(self, x):
        x = self.conv(x)
        if self.training or self.bn is None:
            x = self.bn(x)
            x = self.relu(x)
        return x


class Stateful(Model):
    """What it calls depends on what it computed so far."""

    def __init__(self):
        super().__init__()
        self.reads = 0
        self.other = False
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        nn.init.constant_(self.norms[1].bias, 3.0)

    @property
    def odd(self):
        self.reads += 1
        return self.reads % 2 == 1

    @property
    def next_slope(self):
        self.reads += 1
        return 1 / self.reads

    def turn(self, x):
        self.other, self.slope, self.conv, self.bn = True, 0.9, self.conv2, self.norms[1]
        return x


class ConditionThatCounts(Stateful):
    def forward(self, x):
        x = self.conv(x)
        if self.odd:
            x = F.relu(self.bn(x))
        if self.odd:
            x = self.bn2(x)
        return x


class InputChangesLayer(Stateful):
    def forward(self, x):
        x = self.conv(self.turn(x))
        x = self.bn(x)
        return self.relu(x)


class InputChangesNestedLayer(Stateful):
    def forward(self, x):
        return self.relu(self.bn(self.conv(self.turn(x))))


class InputChangesCondition(Stateful):
    def forward(self, x):
        x = self.conv(self.turn(x))
        if self.other:
            x = self.norms[1](x)
        return x


class InputChangesArgument(Stateful):
    def forward(self, x):
        return F.leaky_relu(self.conv(self.turn(x)), self.slope)


class ArgumentsThatCount(Stateful):
    def forward(self, x):
        return F.leaky_relu(self.bn(F.leaky_relu(self.conv(x), self.next_slope)), negative_slope=self.next_slope)


class InputAssigns(Model):
    def forward(self, x):
        h = self.conv(y := x * 2)
        h = self.bn(h)
        return h + y


class CalledInput(Model):
    def forward(self, x):
        x = self.relu(self.bn(self.conv(F.avg_pool2d(x, 1))))
        x = self.conv2(torch.stack([x, x]).sum(0))
        x = self.bn2(x)
        return x


class MoreArguments(Model):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x):
        return F.relu(self.up(x, output_size=[11, 12]))


class LoopOverLayers(Model):
    def forward(self, x):
        x = self.conv(x)
        for layer in self.layers:
            x = layer(x)
        return F.relu(x)


class LoopWithActivation(Model):
    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(self.relu(layer(x)), self.slope)
        return x


class LoopOverPart(Model):
    def forward(self, x):
        for layer in self.layers[1:]:
            x = layer(x)
        for layer in self.stage:
            x = layer(x)
        return x


each = torch.tanh


class LoopOfLoops(Model):
    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = each(layer(x))
            x = self.stage(x)
        return x


class LoopOverNothing(Model):
    def forward(self, x):
        for layer in self.layers[2:]:
            x = layer(x)
        return self.conv(x)


class LoopAfterWhichOneIsUsed(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return layer(x)


class LoopThatKeeps(Model):
    def forward(self, x):
        kept = []
        for layer in self.layers:
            x = layer(x)
            kept.append(x)
        return sum(kept)


class LoopWithElse(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        else:
            x = -x
        return x


class LoopOverOthers(Model):
    def __init__(self):
        super().__init__()
        self.others = nn.ModuleList([nn.GELU(), nn.Linear(6, 6)])
        self.pairs = [torch.exp, torch.tanh]

    def forward(self, x):
        for layer in self.others:
            x = layer(x)
        for layer in self.pairs:
            x = layer(x)
        for layer in reversed(self.layers):
            x = layer(x)
        return x


class LoopThatFails(Model):
    def forward(self, x):
        try:
            for layer in [*self.layers, self.norm1d]:
                x = layer(x)
        except ValueError:
            pass
        try:
            for layer in self.layers:
                x = layer(x)
        finally:
            x = x + 1
        return x


class LoopOverWhatIsLookedAt(Model):
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x if "layer" in locals() else -x


class Super(Nested):
    def forward(self, x):
        return super().forward(x) + self.bn2(self.conv2(x))


class Private(Model):
    def __init__(self):
        super().__init__()
        self.__conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.__conv(x)) + F.relu(self.conv(x))


class Wrapped(Model):
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        return F.relu(self.conv(x))


JOINED = {
    Nested: [["conv", "bn", "relu"]],
    Assigned: [["conv", "bn", "relu"]],
    OneName: [["conv", "bn", "tanh"]],
    Methods: [["conv", "bn", "relu"], ["conv2", "bn2", "sigmoid_"]],
    FunctionInAttribute: [["conv", "bn", "relu"]],
    SlopeInAttribute: [["conv", "leaky_relu"]],
    Indexed: [["layers.0", "layers.1", "relu"]],
    GuardedNorm: [["conv", "bn", "relu"]],
    Stages: [["stage", "stage2"]],
    SharedRelu: [["conv", "bn", "relu", "conv2", "bn2", "relu"]],
    SharedConvolution: [["conv", "bn", "relu"], ["conv", "bn2", "relu"]],
    SameLayersTwice: [["conv", "bn", "relu", "conv", "bn", "relu"]],
    InLoopAndBranch: [["conv", "bn", "relu"], ["conv2"], ["bn2", "relu"]],
    OtherMethod: [["conv", "bn", "relu"]],
    ConvolutionAlsoReturned: [["conv"], ["bn"]],
    NormalisedUsedTwice: [["conv", "bn"]],
    Skip: [["conv", "bn"]],
    InPlaceOnOutput: [["conv", "bn", "leaky_relu"]],
    InPlaceOnInput: [["relu", "conv"]],
    Feature: [["conv"], ["bn", "relu"]],
    Alias: [["conv"], ["bn"]],
    Closure: [["conv"]],
    Comprehension: [["conv", "bn", "relu"]],
    AfterAnError: [["conv"], ["norm1d"]],
    Suppressed: [["conv"], ["norm1d"]],
    LooksAtItsVariables: [["conv"], ["bn"]],
    OtherSelf: [],
    ConditionOnTheVariable: [["conv"], ["bn"]],
    ConditionOnWhatTheLayerCounts: [["bn"]],
    ConditionOnItsAttribute: [["conv"], ["bn"]],
    TwoLayersUnderACondition: [["conv", "bn", "relu"]],
    ConditionThatCounts: [["conv", "bn", "relu"]],
    InputChangesLayer: [["conv", "bn", "relu"]],
    InputChangesNestedLayer: [["conv", "bn", "relu"]],
    InputChangesCondition: [["conv"]],
    InputChangesArgument: [["conv", "leaky_relu"]],
    ArgumentsThatCount: [["conv", "leaky_relu", "bn", "leaky_relu"]],
    InputAssigns: [["conv", "bn"]],
    CalledInput: [["conv", "bn", "relu"], ["conv2", "bn2"]],
    MoreArguments: [],
    LoopOverLayers: [["conv", "layers.0", "layers.1", "relu"]],
    LoopWithActivation: [["layers.0", "relu", "leaky_relu", "layers.1", "relu", "leaky_relu"]],
    LoopOverPart: [["layers.1", "stage.0", "stage.1"]],
    LoopOfLoops: [["layers.0", "tanh", "layers.1", "tanh", "stage"]],
    LoopOverNothing: [["conv"]],
    LoopAfterWhichOneIsUsed: [],
    LoopThatKeeps: [],
    LoopWithElse: [],
    LoopOverOthers: [],
    LoopThatFails: [],
    LoopOverWhatIsLookedAt: [],
    Super: [["conv2", "bn2"]],
    Private: [["conv", "relu"]],
    Wrapped: [],
}


def outcome(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, gradients and buffers after a pass."""
    x = x.clone().requires_grad_()
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    grads = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in grads if g is not None), *(b.clone() for b in model.buffers())]


@pytest.mark.parametrize("kind", JOINED, ids=lambda kind: kind.__name__)
def test_joins_what_nobody_else_sees(kind):
    model = kind()
    found = chains_of(model)
    assert not found.reason
    chains = [*found.joined, *([layer] for layer in found.alone)]
    assert sorted([path or layer.name for path, layer in named(chain, model)] for chain in chains) == sorted(
        JOINED[kind]
    )


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", JOINED, ids=lambda kind: kind.__name__)
def test_does_what_it_did(kind, mode, backend):
    torch.manual_seed(0)
    model = kind().double().train(mode == "train")
    fused = copy.deepcopy(model)
    genimg_fast.fuse(fused)
    x = _cases.randn((2, 3, 5, 6), torch.float64)
    expected = outcome(model, x)
    with genimg_fast.use_backend(backend):
        torch.testing.assert_close(outcome(fused, x), expected)
    assert isinstance(fused, kind)
    assert genimg_fast.unfuse(fused) is fused
    assert type(fused) is kind


def test_looking_at_a_model_does_not_change_it():
    model = ConditionThatCounts()
    genimg_fast.fuse(model)
    assert model.reads == 0
    genimg_fast.explain(model, torch.zeros(2, 3, 4, 4))
    assert model.reads == 2  # by the pass


def test_signature_and_place_stay():
    model = OtherMethod()
    genimg_fast.fuse(model)
    assert type(model) is not OtherMethod
    method = type(model).encode
    plain = OtherMethod.encode
    assert method.__qualname__ == plain.__qualname__
    assert (method.__code__.co_filename, method.__code__.co_firstlineno) == (
        plain.__code__.co_filename,
        plain.__code__.co_firstlineno,
    )
    x = torch.zeros(1, 3, 4, 4)
    torch.testing.assert_close(model(x, 3.0, shift=2.0), genimg_fast.unfuse(model)(x, 3.0, shift=2.0))


def test_an_error_names_the_line():
    model = Nested()
    genimg_fast.fuse(model)
    with pytest.raises(ValueError, match="channels") as error:
        model.eval()(torch.zeros(1, 4, 5, 5))
    assert any("return F.relu(self.bn(self.conv(x)))" in str(entry.statement) for entry in error.traceback)


CHANGES = {
    "a hook": lambda m: m.bn.register_forward_hook(lambda module, args, output: 2 * output),
    "another activation": lambda m: setattr(m, "relu", nn.GELU()),
    "no normalisation": lambda m: setattr(m, "bn", nn.Identity()),
    "a function": lambda m: (delattr(m, "bn"), setattr(m, "bn", torch.sin)),
    "a parametrization": lambda m: nn.utils.parametrizations.spectral_norm(m.conv),
    "the mode of a layer": lambda m: m.bn.eval(),
    "a padding mode": lambda m: setattr(m.conv, "padding_mode", "circular"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_after_fusing_count(change):
    torch.manual_seed(0)
    model = Assigned().double()
    fused = copy.deepcopy(model)
    genimg_fast.fuse(fused)
    x = _cases.randn((2, 3, 5, 6), torch.float64)
    for m in (model, fused):
        torch.manual_seed(0)  # spectral_norm draws
        CHANGES[change](m)
    if change == "a padding mode":
        model.conv._reversed_padding_repeated_twice = fused.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    torch.testing.assert_close(outcome(fused, x), outcome(model, x))


def test_a_method_replaced_on_the_instance_counts():
    model = OtherMethod()
    model.encode = lambda x: x
    report = genimg_fast.fuse(model)
    assert type(model) is OtherMethod
    assert [row.module for row in report.fused][:2] == ["conv", "conv2"]  # each by itself


def test_settings_of_a_layer_fused_by_itself_count():
    model = LoopThatKeeps().double()
    genimg_fast.fuse(model)
    plain = genimg_fast.unfuse(copy.deepcopy(model))
    for m in (model, plain):
        m.layers[0] = m.conv  # kernel 3, padding 1
        m.conv.padding_mode, m.conv._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
    assert type(model.conv) is not nn.Conv2d
    x = _cases.randn((2, 3, 5, 6), torch.float64)
    torch.testing.assert_close(outcome(model, x), outcome(plain, x))


def test_a_class_patched_after_fusing_counts(monkeypatch):
    class Patched(Nested):
        pass

    model = Patched().eval()
    genimg_fast.fuse(model)
    x = torch.zeros(1, 3, 4, 4)
    expected = model(x)
    with monkeypatch.context() as patch:
        patch.setattr(Nested, "forward", lambda self, x: x + 1)
        torch.testing.assert_close(model(x), x + 1)
        patch.setattr(Patched, "forward", lambda self, x: super(Patched, self).forward(x) + 1, raising=False)
        torch.testing.assert_close(model(x), x + 2)
        with mock.patch.object(Patched, "forward", return_value="mocked") as mocked:
            assert model(x) == "mocked"
            mocked.assert_called_once_with(x)
    torch.testing.assert_close(model(x), expected)
    assert type(model).forward is not Nested.forward


class Listening(torch.Tensor):
    """It sees each function that is called on it."""

    seen: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs)


def test_a_subclass_of_tensor_sees_the_functions_of_torch():
    model = Nested().eval()
    genimg_fast.fuse(model)
    Listening.seen.clear()
    with genimg_fast.use_backend("native"):
        model(torch.zeros(1, 3, 4, 4).as_subclass(Listening))
    assert F.conv2d in Listening.seen or torch.conv2d in Listening.seen
    assert F.batch_norm in Listening.seen
    assert F.relu in Listening.seen


def test_calling_a_layer_that_is_none_is_still_an_error():
    model = Assigned()
    genimg_fast.fuse(model)
    model.bn = None
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        model(torch.zeros(2, 3, 4, 4))


SOURCE = """
import torch.nn.functional as F
from torch import nn

class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(x))
"""


def imported(path, source):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.Written()


def test_a_file_edited_since_it_was_imported_is_not_what_runs(tmp_path):
    model = imported(tmp_path / "edited.py", SOURCE)
    (tmp_path / "edited.py").write_text(SOURCE.replace("F.relu", "F.tanh"))
    report = genimg_fast.fuse(model)
    assert [(row.module, row.kind, row.reason) for row in report.rows] == [
        ("", None, "forward(): its source is not what runs"),
        ("conv", CONV, ""),
    ]
    assert model(torch.full((1, 3, 2, 2), 9.0)).max() > 1  # it is still the relu


def test_without_source_each_layer_is_fused_by_itself():
    namespace = {"__name__": __name__}
    exec(SOURCE, namespace)
    model = namespace["Written"]()
    plain = copy.deepcopy(model)
    report = genimg_fast.fuse(model)
    model_itself, conv = report.rows
    # Since 3.13 Python looks for it in the file of this test, and finds another class there.
    told = ("forward(): its source is not available", "forward(): its source is not what runs")
    assert (model_itself.module, model_itself.kind) == ("", None)
    assert model_itself.reason in told
    assert (conv.module, conv.kind, conv.reason) == ("conv", CONV, "")
    x = _cases.randn((2, 3, 4, 4))
    torch.testing.assert_close(model(x), plain(x))


def test_of_a_large_file_the_class_alone_is_compiled(tmp_path, monkeypatch):
    others = "".join(f"\nclass Other{i}:\n    pass\n" for i in range(9))
    sizes = []
    compiled = rewrite._compile
    monkeypatch.setattr(
        rewrite, "_compile", lambda tree, code: sizes.append(len([*ast.walk(tree)])) or compiled(tree, code)
    )
    future = "from __future__ import annotations\n"
    guarded = SOURCE.replace(
        "import torch.nn.functional as F", "try:\n    from torch.nn import functional as F\nfinally:\n    pass"
    )
    for i, source in enumerate((SOURCE, SOURCE + others, others + SOURCE, future + others + guarded)):
        report = genimg_fast.fuse(imported(tmp_path / f"large{i}.py", source))
        assert [row.kind for row in report.rows] == [CONV]
    small, *large = sizes[::2]
    assert max(large) < small + 15
