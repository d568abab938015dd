# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast.training import UserError
from genimg_fast.training.batches import StepSampler, batches, share_step
from genimg_fast.training.schedule import lr_factor


def sampler(*, start=0, stop, images=22, batch_size=2, grad_accumulation=1, rank=0, processes=1, seed=0):
    result = StepSampler(
        images, batch_size=batch_size, grad_accumulation=grad_accumulation, rank=rank, processes=processes, seed=seed
    )
    result.start, result.stop = start, stop
    return result


def test_an_epoch_uses_each_image_once_and_epochs_differ():
    order = [index for batch in sampler(stop=22) for index in batch]
    assert sorted(order[:22]) == sorted(order[22:]) == list(range(22))
    assert order[:22] != order[22:]
    assert order != [index for batch in sampler(stop=22, seed=1) for index in batch]


@pytest.mark.parametrize("start", [1, 10, 11, 12, 25])
def test_starting_late_continues_the_same_order(start):
    assert list(sampler(start=start, stop=30)) == list(sampler(stop=30))[start:]


def test_processes_share_a_step_without_overlap():
    whole = list(sampler(stop=5, batch_size=4))
    ranks = [list(sampler(stop=5, rank=rank, processes=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    accumulated = list(sampler(stop=5, grad_accumulation=2))
    assert [a + b for a, b in zip(accumulated[::2], accumulated[1::2], strict=True)] == whole


@pytest.mark.parametrize(
    ("processes", "expected"), [(1, (6, 8)), (2, (6, 4)), (3, (4, 4)), (8, (6, 1)), (16, (3, 1)), (48, (1, 1))]
)
def test_another_number_of_processes_takes_the_same_steps(processes, expected):
    batch_size, grad_accumulation = share_step(48, batch_size=6, processes=processes)
    assert (batch_size, grad_accumulation) == expected
    whole = list(sampler(images=200, stop=6, batch_size=48))
    ranks = [
        list(
            sampler(
                images=200,
                stop=6,
                batch_size=batch_size,
                grad_accumulation=grad_accumulation,
                rank=rank,
                processes=processes,
            )
        )
        for rank in range(processes)
    ]
    for step, images in enumerate(whole):
        mine = slice(step * grad_accumulation, (step + 1) * grad_accumulation)
        together = [index for rank in ranks for batch in rank[mine] for index in batch]
        assert sorted(together) == sorted(images)


def test_processes_that_cannot_share_a_step_are_told_which_can():
    message = r"\Athe run takes 48 images a step, which 5 processes cannot share equally; .* that divides 48\Z"
    with pytest.raises(UserError, match=message):
        share_step(48, batch_size=6, processes=5)
    with pytest.raises(UserError, match="which 96 processes cannot share"):
        share_step(48, batch_size=6, processes=96)


def test_too_few_images_is_one_line():
    with pytest.raises(
        UserError, match=r"needs 64 images \(batch_size 8 x grad_accumulation 4 x 2 processes\).* only 22$"
    ):
        sampler(stop=1, batch_size=8, grad_accumulation=4, processes=2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_grouped_by_step_and_draw_nothing_from_the_global_generator(num_workers):
    dataset = torch.arange(22).float().reshape(22, 1, 1, 1)
    order = sampler(stop=3, grad_accumulation=2)
    before = torch.get_rng_state()
    steps = list(batches(dataset, order, num_workers=num_workers, device=torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), before)
    assert [[batch.flatten().tolist() for batch in step] for step in steps] == [
        list(order)[2 * i : 2 * i + 2] for i in range(3)
    ]


def test_schedules():
    def curve(schedule, warmup_steps=0):
        return [lr_factor(s, schedule=schedule, warmup_steps=warmup_steps, total_steps=8) for s in range(8)]

    assert curve("constant", 4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert curve("linear") == [1 - s / 8 for s in range(8)]
    assert curve("cosine", 4)[:5] == [0.25, 0.5, 0.75, 1, 1]
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    torch_cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for expected in curve("cosine"):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        torch_cosine.step()
