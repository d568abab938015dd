# SPDX-License-Identifier: MIT
"""Data-parallel and sharded training of fused models: two processes with gloo, against the plain model and one process."""

from __future__ import annotations

import pytest
import torch

import genimg_fast
from tests.contract import _two_processes
from tests.contract._two_processes import PROCESSES, joined_batch, network, train


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of each process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_two_processes.main, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


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


def test_sync_batch_norm_is_left_alone_with_the_reason(results):
    model = network("SyncBatchNorm", fused=False)
    report = genimg_fast.fuse(model)
    reasons = {row.description: row.reason for row in report.not_fused}
    assert reasons["SyncBatchNorm"] == "SyncBatchNorm takes its statistics over all processes"
    assert {type(m) for m in (model.down[1], model.norm)} == {torch.nn.SyncBatchNorm}
    for of_process in results:  # PyTorch's own words
        assert "SyncBatchNorm expected input tensor to be on GPU" in of_process["SyncBatchNorm on the CPU"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_sync_batch_norm_gives_the_gradients_of_one_process_on_the_joined_batch(results):
    alone = network("BatchNorm2d", fused=False, device="cuda")
    expected = train(alone, lambda step: joined_batch(step, "cuda"))
    for of_process in results:
        torch.testing.assert_close(of_process["DDP, SyncBatchNorm, fused"], expected)
