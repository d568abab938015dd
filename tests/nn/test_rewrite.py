# SPDX-License-Identifier: MIT
"""Methods in which `fuse` joins calls of layers do what they did, however they are written."""

from __future__ import annotations

import ast
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
from tests.nn._methods import JOINED, Assigned, ConditionThatCounts, LoopThatKeeps, Nested, OtherMethod
from tests.nn._outcome import outcome

CONV, NORM = "conv2d_bn_act", "batch_norm_act"


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
