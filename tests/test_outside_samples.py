# SPDX-License-Identifier: MIT
"""The samples by which PyTorch tests its own functions and modules (OpInfo and ModuleInfo), run against ours.

They live in private modules of PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import genimg_fast
from genimg_fast import functional, use_backend
from tests import _cases

NEWEST_KNOWN = "2.15"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Databases(NamedTuple):
    ops: dict[str, Any]
    modules: dict[type, Any]


@pytest.fixture(scope="module")
def databases() -> Databases:
    try:
        # importing it would forbid every other test to set a flag such as torch.backends.cudnn.benchmark
        with mock.patch.object(torch.backends, "disable_global_flags", return_value=None):
            from torch.testing._internal.common_methods_invocations import op_db
            from torch.testing._internal.common_modules import module_db
    except ImportError as error:
        message = f"the test samples of PyTorch {torch.__version__} cannot be imported: {error}"
        if torch.__version__ >= f"{NEWEST_KNOWN}.999":
            pytest.skip(message)
        pytest.fail(message, pytrace=False)
    ops = {op.name: op for op in reversed(op_db)}  # of several variants of a name, the first
    return Databases(ops, {module.module_cls: module for module in module_db})


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return functional.conv2d_bn_act(
        input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    return functional.conv_transpose2d_bn_act(
        input, weight, bias, stride=stride, padding=padding, output_padding=output_padding, groups=groups,
        dilation=dilation,
    )  # fmt: skip


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    return functional.batch_norm_act(
        input, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps
    )


OURS: dict[str, Callable[..., torch.Tensor]] = {
    "nn.functional.conv2d": conv2d,
    "nn.functional.conv_transpose2d": conv_transpose2d,
    "nn.functional.batch_norm": batch_norm,
    "nn.functional.binary_cross_entropy": functional.bce_loss,
    "nn.functional.binary_cross_entropy_with_logits": functional.bce_with_logits_loss,
}
REFUSED = {
    "nn.functional.conv2d": (
        lambda input, weight, bias=None, **kwargs: isinstance(kwargs.get("padding"), str),
        "padding must be one or two integers >= 0",
    ),
    "nn.functional.batch_norm": (lambda input, *args, **kwargs: input.dim() < 2, r"input must be \(N, C, ...\)"),
}
"""Samples that our functions refuse: which, and what they say."""


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Copies in the dtype: leaves that require grad where the values did."""

    def one(value):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value.detach().to(dtype, copy=True).requires_grad_(value.requires_grad)

    return pytree.tree_map(one, values)


def results(function: Callable[..., torch.Tensor], arguments: Any, module: nn.Module | None = None) -> dict[str, Any]:
    """Output and gradients under an upstream gradient that varies; running statistics and buffers afterwards."""
    args, kwargs = arguments
    output = function(*args, **kwargs)
    tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    leaves = {f"argument {i}": t for i, t in enumerate(tensors)}
    state = {} if module is None else dict(module.named_parameters()) | dict(module.named_buffers())
    if output.requires_grad:
        upstream = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).to(output).view(output.shape)
        output.backward(upstream)
    everything = {"output": output, **leaves, **state}
    gradients = {f"gradient of {name}": t.grad for name, t in everything.items() if t.is_leaf and t.grad is not None}
    return {name: t.detach() for name, t in (everything | gradients).items()}


def assert_accurate(actual: dict[str, Any], exact: dict[str, Any], torch_result: dict[str, Any], what: str) -> None:
    assert actual.keys() == torch_result.keys(), what
    factor = _cases.ERROR_FACTOR_WINOGRAD if "conv" in what.lower() else _cases.ERROR_FACTOR
    normalised = "batch_norm" in what or "BatchNorm" in what
    for name, value in actual.items():
        if value.is_floating_point():
            # of few values the gradient of a normalised input cancels; its terms have the size of the upstream one, 1
            terms = 1.0 if normalised and name.startswith("gradient") else 0.0
            _cases.assert_accurate(value, exact[name], torch_result[name], factor, f"{what}: {name}", terms)
        else:
            assert torch.equal(value, torch_result[name]), f"{what}: {name}"


def on_each_backend(run: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What it gives under "auto", and under "native" where the kernels take it."""
    yield run()
    with use_backend("native"):
        try:
            native = run()
        except RuntimeError as error:
            if "backend 'native' was asked for but cannot serve this call: " not in str(error):
                raise
        else:
            yield native


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OURS)
def test_op_info(databases, record_property, name, dtype):
    op, ours = databases.ops[name], OURS[name]
    is_refused, words = REFUSED.get(name, (lambda *args, **kwargs: False, ""))
    count = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        given = ((sample.input, *sample.args), sample.kwargs)
        what = f"{name}{sample.summary()}"
        count += 1
        if is_refused(*given[0], **given[1]):
            with pytest.raises(ValueError, match=words):
                ours(*given[0], **given[1])
            continue
        exact = results(op.op, cast(given, torch.float64))
        torch_result = results(op.op, cast(given, dtype))
        for actual in on_each_backend(lambda given=given: results(ours, cast(given, dtype))):
            assert_accurate(actual, exact, torch_result, what)
    assert count > 10
    record_property("OpInfo samples", count)


MODULES = [nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BCELoss, nn.BCEWithLogitsLoss]
ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh]


def module_of(cls: type, constructor: Any, input: torch.Tensor) -> nn.Module | None:
    """The sample's module: an activation behind the batch normalisation that it is fused with, if one takes the input."""
    module = cls(*constructor.args, **constructor.kwargs)
    if cls not in ACTIVATIONS:
        return module
    norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return nn.Sequential(norms[input.dim()](input.shape[1]), module) if input.dim() in norms else None


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cls", MODULES + ACTIVATIONS)
def test_module_info(databases, record_property, cls, dtype, training):
    info = databases.modules[cls]
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training)
    count = 0
    for sample in samples:
        module = module_of(cls, sample.constructor_input, sample.forward_input.args[0])
        if module is None:
            continue
        module = module.to(dtype).train(training)
        fused = copy.deepcopy(module)
        report = genimg_fast.fuse(fused)
        uneven = getattr(module, "padding", 0) == "same" and any(k % 2 == 0 for k in module.kernel_size)
        assert len(report.fused) == (0 if uneven else 1), report
        given = (sample.forward_input.args, sample.forward_input.kwargs)
        what = f"{module} of {sample.desc}"
        count += 1

        def run(of: nn.Module, dtype: torch.dtype = dtype, given: Any = given) -> dict[str, Any]:
            of = copy.deepcopy(of).to(dtype)
            return results(of, cast(given, dtype), of)

        exact, torch_result = run(module, torch.float64), run(module)
        for actual in on_each_backend(lambda fused=fused, run=run: run(fused)):
            assert_accurate(actual, exact, torch_result, what)
    assert count
    record_property("ModuleInfo samples", count)
