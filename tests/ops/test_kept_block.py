# SPDX-License-Identifier: MIT
"""The memory of a large gradient is used again by the next step, and by nothing while anyone still holds it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import bce_with_logits_loss
from tests import _cases

STATM = Path("/proc/self/statm")  # its second number: resident pages


def logits(megabytes: int, seed: int = 1) -> torch.Tensor:
    return _cases.randn((megabytes << 18,), seed=seed).requires_grad_()


def gradient(x: torch.Tensor, target: float = 0.25) -> torch.Tensor:
    (grad,) = torch.autograd.grad(bce_with_logits_loss(x, torch.full_like(x, target)), x)
    return grad


def expected_gradient(x: torch.Tensor, target: float = 0.25) -> torch.Tensor:
    with _backend.use_backend("reference"):
        return gradient(x, target)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual * actual.numel(), expected * expected.numel())


def test_the_next_step_writes_where_the_last_one_freed():
    x = logits(5)
    assert len({gradient(x).data_ptr() for _ in range(4)}) == 1
    assert_close(gradient(x), expected_gradient(x))


def test_a_smaller_last_batch_fits_and_a_much_smaller_tensor_gets_its_own():
    address = gradient(logits(9)).data_ptr()
    last_batch = logits(5)
    grad = gradient(last_batch)
    assert grad.data_ptr() == address
    assert_close(grad, expected_gradient(last_batch))
    del grad
    gradient(logits(16))
    assert_close(gradient(last_batch), expected_gradient(last_batch))


def test_gradients_that_are_held_stay_as_they_are():
    x = logits(5)
    targets = [0.0, 0.25, 0.5, 0.75]
    held = [gradient(x, target) for target in targets]
    for grad, target in zip(held, targets, strict=True):
        assert_close(grad, expected_gradient(x, target))


def test_a_view_keeps_the_memory():
    x = logits(5)
    view, expected = gradient(x)[:16], expected_gradient(x)
    gradient(x, 0.75)
    assert_close(view, expected[:16])


def test_the_memory_order_is_the_inputs():
    x = _cases.randn((2, 5, 512, 512)).to(memory_format=torch.channels_last).requires_grad_()
    grad = gradient(x)
    assert grad.stride() == x.stride()
    assert_close(grad, expected_gradient(x))


def test_threads_that_free_and_ask_at_once():
    failures = []

    def train(x: torch.Tensor, expected: torch.Tensor) -> None:
        for _ in range(20):
            try:
                assert_close(gradient(x), expected)
            except AssertionError as error:
                failures.append(error)

    inputs = [logits(4, seed) for seed in range(4)]
    threads = [threading.Thread(target=train, args=(x, expected_gradient(x))) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell what memory is resident (no /proc/self/statm)")
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer holds freed memory back")
def test_a_very_large_gradient_is_given_back():
    def resident_megabytes() -> float:
        return int(STATM.read_text().split()[1]) * 4096 / 2**20

    x = logits(160)
    gradient(logits(4))  # whatever was kept before, now it is this
    before = resident_megabytes()
    grad = gradient(x)
    assert resident_megabytes() > before + 150
    del grad
    assert resident_megabytes() < before + 20
