# SPDX-License-Identifier: MIT
"""Data-parallel and sharded training of fused models: two processes with gloo, against the plain model and one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.contract import _processes
from tests.contract._processes import NORM_OPTIONS, PROCESSES, SCALE, batch_norm_network, joined_batch, network, train


def spawn(tmp_path_factory, processes):
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_processes.main, (str(folder), processes), nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return spawn(tmp_path_factory, PROCESSES)


@pytest.fixture(scope="module")
def results_of_three(tmp_path_factory):
    return spawn(tmp_path_factory, 3)


def test_ddp_gives_the_gradients_of_one_process_on_the_joined_batch(results):
    alone = train(network("no batch statistics", fused=False), joined_batch)
    for of_process in results:
        torch.testing.assert_close(of_process["DDP, no batch statistics, fused"], alone)


def test_ddp_with_batch_norm_is_that_of_the_plain_model(results):
    for of_process in results:
        torch.testing.assert_close(of_process["DDP, BatchNorm2d, fused"], of_process["DDP, BatchNorm2d, plain"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_fsdp_trains_a_fused_model_as_the_plain_one(results, when):
    for of_process in results:
        torch.testing.assert_close(of_process[f"FSDP2, fused {when}"], of_process["FSDP2, plain"])


def joined(options, processes):
    """One process on the joined batch, by PyTorch alone; DistributedDataParallel divides by the number of processes."""
    return train(batch_norm_network(nn.BatchNorm2d, options), joined_batch, SCALE / processes)


WAYS = {
    **{f"SyncBatchNorm, {options}": options for options in (*NORM_OPTIONS, "one in eval")},
    "SyncBatchNorm, auto": "",
    "SyncBatchNorm, another backend in one process": "",
    "SyncBatchNorm, static graph": "",
    "SyncBatchNorm, compiled": "",
}


@pytest.mark.parametrize("way", WAYS)
def test_sync_batch_norm_is_that_of_one_process_on_the_joined_batch(results, way):
    """Gradients, weights and running statistics, of shares of unequal size."""
    for of_process in results:
        torch.testing.assert_close(of_process[way], joined(WAYS[way], PROCESSES))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_sync_batch_norm_of_three_processes_one_without_images(results_of_three, way):
    for of_process in results_of_three:
        torch.testing.assert_close(of_process[way], joined(WAYS[way], 3))


@pytest.mark.skipif(
    not (torch.backends.cuda.is_built() and torch.cuda.is_available()),
    reason="needs CUDA, and a gloo that was built with it",
)
def test_sync_batch_norm_on_cuda_is_that_of_one_process_on_the_joined_batch(results):
    alone = network("BatchNorm2d", fused=False, device="cuda")
    expected = train(alone, lambda step: joined_batch(step, "cuda"))
    for of_process in results:
        actual = {name: t.to(expected[name]) for name, t in of_process["SyncBatchNorm on CUDA"].items()}
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
