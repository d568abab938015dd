# SPDX-License-Identifier: MIT
"""The kernels use as many threads as torch.set_num_threads allows, and none of their own; they run in forked workers."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from genimg_fast import functional, fuse, use_backend
from tests import _cases

ROOT = Path(__file__).resolve().parents[1]
TASKS = Path("/proc/self/task")


def run_all_kernels(size: int = 64) -> list[torch.Tensor]:
    """One training step through each function, on tensors that are worth several threads; the gradients."""
    x = _cases.randn((8, 8, size, size)).requires_grad_()
    half = x[:, :, ::2, ::2]
    weight = _cases.randn((8, 8, 4, 4), seed=1).requires_grad_()
    target = torch.full_like(x, 0.25)
    geometry = {"stride": 2, "padding": 1, "activation": "relu"}
    with use_backend("native"):
        up = functional.conv_transpose2d_bn_act(half, weight, training=True, **geometry)
    losses = [
        up.square().mean(),
        functional.conv2d_bn_act(x, weight, training=True, **geometry).square().mean(),
        functional.batch_norm_act(x, None, None, training=True, activation="tanh").mean(),
        functional.bce_with_logits_loss(x, target),
        functional.bce_loss(x.sigmoid(), target),
        functional.gaussian_kl_loss(x, x),
        functional.reparameterize(x, x, generator=torch.Generator().manual_seed(0)).mean(),
        sum(t.mean() for t in functional.reparameterize_with_kl(x, x, generator=torch.Generator().manual_seed(0))),
        functional.elbo_loss(x, target, x, x)[0],
    ]
    return list(torch.autograd.grad(torch.stack(losses).sum(), [x, weight]))


def threads_that_run(function) -> int:
    """How many of this process's threads get time on a core meanwhile."""

    def nanoseconds():
        return {task.name: int((task / "schedstat").read_text().split()[0]) for task in TASKS.iterdir()}

    before = nanoseconds()
    function()
    return sum(spent > before.get(task, 0) for task, spent in nanoseconds().items())


@pytest.mark.skipif(not TASKS.exists(), reason="the system does not tell which threads ran (no /proc/self/task)")
@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_as_many_threads_run_as_torch_allows(allowed):
    program = f"""
import torch
from tests import test_threads
torch.set_num_threads({allowed})
test_threads.run_all_kernels()  # all pools are started
print(test_threads.threads_that_run(test_threads.run_all_kernels))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(allowed)], done.stderr


def test_threads_share_a_model_in_inference():
    """On more shapes than are remembered, so that they forget each other's packed weights."""
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ReLU()).eval().requires_grad_(False)
    fuse(model)
    images = [_cases.randn((n, 8, size, size), seed=n) for n in range(1, 5) for size in (3, 4)]
    with use_backend("native"):
        expected = [model(x) for x in images]

        def run(first: int) -> None:
            for i in range(first, first + 200):
                assert torch.equal(model(images[i % len(images)]), expected[i % len(images)])

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(run, range(8)))
        finally:
            sys.setswitchinterval(interval)


class GradientsOfKernels(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([t.flatten() for t in run_all_kernels(32 * (index + 1))])


def forked_workers_run_the_kernels() -> None:
    torch.set_num_threads(3)
    data, options = GradientsOfKernels(), {"batch_size": None, "multiprocessing_context": "fork", "timeout": 120}
    here = [data[i] for i in range(len(data))]  # which starts the threads that a fork does not take along
    there = list(DataLoader(data, num_workers=2, **options))
    torch.testing.assert_close(there, here)


def test_forked_workers_of_a_process_with_threads_run_the_kernels():
    """In a process of its own: where another test has used a GPU, PyTorch refuses backward in what is forked."""
    program = "from tests import test_threads; test_threads.forked_workers_run_the_kernels()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
