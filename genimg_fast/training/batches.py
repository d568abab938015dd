# SPDX-License-Identifier: MIT
"""Which images a step uses: a function of (seed, step) alone, so that a resumed run sees the order it would have seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from genimg_fast.training.errors import UserError


def share_step(images: int, *, batch_size: int, processes: int) -> tuple[int, int]:
    """(batch size, grad accumulation) with which so many processes take `images` images a step.

    A run that is resumed on another number of processes keeps its steps: the same images, the same learning rate.

    Args:
        batch_size: what a process takes at once at most; reached wherever it divides its share of the step.

    Raises:
        UserError: if the processes cannot share the step equally.
    """
    share, rest = divmod(images, processes)
    if rest or not share:
        raise UserError(
            f"the run takes {images} images a step, which {processes} processes cannot share equally; "
            f"resume it on a number of processes that divides {images}"
        )
    batch = max(size for size in range(1, min(batch_size, share) + 1) if share % size == 0)
    return batch, share // batch


class StepSampler(Sampler[list[int]]):
    """Yields the image indices of one process, `grad_accumulation` lists of `batch_size` a step, for steps start..stop - 1.

    An epoch is a permutation drawn from (seed, epoch), cut into steps; what does not fill a step is left out of that epoch.
    The processes take neighbouring slices of a step, so together they train on the batch a larger process would have had.
    """

    def __init__(
        self, images: int, *, batch_size: int, grad_accumulation: int, rank: int, processes: int, seed: int
    ) -> None:
        self.batch_size, self.grad_accumulation = batch_size, grad_accumulation
        self.rank, self.processes = rank, processes
        self.images, self.seed = images, seed
        self.images_per_step = batch_size * grad_accumulation * processes
        self.steps_per_epoch = images // self.images_per_step
        self.start = self.stop = 0
        if self.steps_per_epoch == 0:
            raise UserError(
                f"a step needs {self.images_per_step} images (batch_size {batch_size} x grad_accumulation {grad_accumulation}"
                f" x {processes} process{'es' if processes > 1 else ''}), but the training data has only {images}"
            )

    def permutation(self, epoch: int) -> torch.Tensor:
        # Spread the epochs far apart: seeds 0 and 1 must not share orders in neighbouring epochs.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch * 7_919) % 2**63)
        return torch.randperm(self.images, generator=generator)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.permutation(epoch)
            first = (step % self.steps_per_epoch) * self.images_per_step
            for micro in range(self.grad_accumulation):
                at = first + (micro * self.processes + self.rank) * self.batch_size
                yield order[at : at + self.batch_size].tolist()

    def __len__(self) -> int:
        return (self.stop - self.start) * self.grad_accumulation


def batches(
    dataset: Dataset, sampler: StepSampler, *, num_workers: int, device: torch.device
) -> Iterator[list[torch.Tensor]]:
    """For each step of the sampler, its list of batches (N, C, H, W) on `device`."""
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # A loader draws a seed for its workers; from a generator of its own, it leaves the noise of the training alone.
        generator=torch.Generator().manual_seed(sampler.seed),
    )
    step: list[torch.Tensor] = []
    for batch in loader:
        step.append(batch.to(device, non_blocking=True))
        if len(step) == sampler.grad_accumulation:
            yield step
            step = []
