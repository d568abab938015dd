# SPDX-License-Identifier: MIT
"""Every cell of the table in docs/contract.md."""

from __future__ import annotations

import pytest
import torch

from genimg_fast import _backend, use_backend
from tests.contract import properties, table
from tests.contract.properties import Case
from tests.contract.subjects import SUBJECTS

QUICK_IN_ONNX = "a fused model, eval"


def cells() -> list:
    needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    not_by_old_torch = pytest.mark.xfail(
        condition=torch.__version__ < "2.13", reason="F.binary_cross_entropy with a weight, for a batch of any size"
    )
    cells = []
    for property in table.PROPERTIES:
        for subject in SUBJECTS:
            for i, variant in enumerate(subject.variants):
                name = f"{property.name}-{subject.name}-{variant}"
                in_onnx = property.check is properties.exports_to_onnx and subject.name != QUICK_IN_ONNX
                marks = [pytest.mark.slow] if property.slow and (i > 0 or in_onnx) else []
                if property.check is properties.exports and name.endswith("bce_loss-none, weight"):
                    marks.append(not_by_old_torch)
                if not property.needs_cuda:
                    cells.append(pytest.param(property, subject, variant, "cpu", id=f"{name}-cpu", marks=marks))
                if torch.cuda.is_available() or (property.needs_cuda and i == 0):
                    marks = [*marks, needs_cuda]
                    cells.append(pytest.param(property, subject, variant, "cuda", id=f"{name}-cuda", marks=marks))
    return cells


@pytest.mark.filterwarnings("ignore")  # of PyTorch's own tracers and exporters
@pytest.mark.parametrize(("property", "subject", "variant", "device"), cells())
def test_cell(property, subject, variant, device):
    cell, case = table.cell(property, subject), Case(subject, variant, device)
    if cell.kind == "refuses":
        for backend in ("native", "auto"):
            with use_backend(backend), pytest.raises(Exception, match=cell.message):
                property.check(case)
        return
    if cell is table.NATIVE and device == "cpu":
        compiles = property.check in (properties.compiles, properties.compiles_with_dynamic_shapes)
        for backend in ("native", "auto") if compiles else ("native",):  # "auto" has more to trace
            with use_backend(backend):
                property.check(case)
        return
    if device == "cpu":
        assert_never_native(property, case)
    with use_backend("auto"):
        property.check(case)


def assert_never_native(property, case):
    """Where the table says PyTorch, the kernels say why they do not serve the call, or are not asked."""
    before = _backend.native_calls()
    with use_backend("native"):
        try:
            property.check(case)
        except RuntimeError as error:
            if "backend 'native' was asked for but cannot serve this call: " not in str(error):
                raise
    assert _backend.native_calls() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", [properties.compiles, properties.compiles_with_dynamic_shapes])
@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.name != "gradient_penalty"], ids=lambda s: s.name)
def test_in_inductor(subject, check):
    with use_backend("native"):
        check(Case(subject, next(iter(subject.variants)), "cpu"), backend="inductor")


def test_the_page_is_current():
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "run: python -m tests.contract.table"


def test_every_public_function_is_in_the_table():
    from genimg_fast import functional

    assert {*functional.__all__} <= {subject.name for subject in SUBJECTS}
