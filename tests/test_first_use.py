# SPDX-License-Identifier: MIT
"""The check on first use, with the CPU in the place of a GPU."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from genimg_fast import _first_use, _parity, functional, use_backend
from genimg_fast._backend import current_backend, record_decisions

OP = "gaussian_kl_loss"


@pytest.fixture(autouse=True)
def cpu_is_checked(monkeypatch):
    monkeypatch.setattr(_first_use, "_CHECKED_DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(_first_use, "_findings", {})


@pytest.fixture
def checks(monkeypatch):
    """The calls of the parity check."""
    calls = []
    check = _parity.check

    def counted(*args):
        calls.append(args)
        return check(*args)

    monkeypatch.setattr(_parity, "check", counted)
    return calls


@pytest.fixture
def wrong_kernel(monkeypatch):
    """The op is off by a thousandth on its native kernel."""
    right = torch.ops.genimg_fast.gaussian_kl_loss

    def wrong(*args):
        loss, *rest = right(*args)
        return loss * 1.001, *rest

    monkeypatch.setattr(torch.ops.genimg_fast, OP, wrong)


def loss(dtype=torch.float32):
    mu, logvar = torch.ones(3, 4, dtype=dtype), torch.zeros(3, 4, dtype=dtype)
    with record_decisions() as decisions:
        value = functional.gaussian_kl_loss(mu, logvar)
    return value, decisions[-1]


def test_once_for_each_op_device_and_dtype(checks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float32, torch.float32, torch.float64, torch.float32):
            assert loss(dtype)[1].native
    cpu = torch.device("cpu")
    assert checks == [(OP, cpu, torch.float32), (OP, cpu, torch.float64)]


def test_what_it_calls_is_not_what_was_called(checks):
    with record_decisions() as decisions:
        functional.gaussian_kl_loss(torch.ones(3, 4), torch.zeros(3, 4))
    assert len(checks) == 1
    assert [d.op for d in decisions] == [OP]


def test_other_threads_keep_their_backend_while_one_checks(monkeypatch):
    case, checking, may_go_on = _parity.CASES[OP], threading.Event(), threading.Event()

    def slow_case(inputs):
        checking.set()
        assert current_backend() in ("native", "reference")
        assert may_go_on.wait(60)
        return case(inputs)

    monkeypatch.setitem(_parity.CASES, OP, slow_case)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(loss)
        assert checking.wait(60)
        try:
            assert current_backend() == "auto"
        finally:
            may_go_on.set()
        assert checked.result()[1].native


def test_a_wrong_kernel_is_told_once_and_replaced(wrong_kernel):
    with pytest.warns(
        RuntimeWarning, match=f"the kernels of {OP} for float32 on cpu differ from the reference"
    ) as told:
        value, decision = loss()
    assert value == pytest.approx(0.5, rel=1e-6)
    assert not decision.native
    assert decision.reason.startswith(f"the kernels of {OP} for float32 on cpu differ")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not loss()[1].native


def test_who_asks_for_native_gets_it(wrong_kernel, checks):
    with use_backend("native"):
        assert loss()[0] == pytest.approx(0.5005, rel=1e-6)
    assert checks == []


def test_a_kernel_that_does_not_run_is_replaced(monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(torch.ops.genimg_fast, OP, fails)
    with pytest.warns(
        RuntimeWarning, match="on cpu do not run: CUDA error: no kernel image is available for execution"
    ):
        assert not loss()[1].native


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("full"), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")],
    ids=["of torch", "through the stable ABI"],
)
def test_full_memory_says_nothing_about_a_kernel(monkeypatch, error):
    def check(*_):
        raise error

    monkeypatch.setattr(_parity, "check", check)
    assert loss()[1].native


def test_not_where_it_could_disturb(checks, monkeypatch):
    torch.compile(loss, backend="eager")()
    torch.vmap(functional.gaussian_kl_loss)(torch.ones(2, 3), torch.ones(2, 3))
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        loss()
    assert checks == []
    loss()
    assert len(checks) == 1


def test_activation_checkpointing_counts_no_tensor_of_the_check(checks):
    """It compares what is saved forward with what is saved when forward is repeated, where nothing is checked any more."""
    mu, logvar = torch.ones(3, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(functional.gaussian_kl_loss, mu, logvar, use_reentrant=False).backward()
    assert len(checks) == 1
    assert torch.equal(mu.grad, torch.full((3, 4), 1 / 12))


def test_not_where_nothing_may_be_saved(checks):
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        loss()
    assert checks == []


@pytest.mark.parametrize("op", _parity.CASES)
def test_it_changes_nothing_else(op):
    """No random number, mode or dtype of the caller's."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        before = torch.get_rng_state()
        assert _first_use.why_distrusted(op, torch.ones((), device="cpu")) is None
        assert torch.equal(torch.get_rng_state(), before)
    assert current_backend() == "auto"
    assert _first_use._findings == {(op, torch.device("cpu"), torch.float32, False): None}
