# SPDX-License-Identifier: MIT
"""What autograd keeps between forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genimg_fast.benchmark.models import GeneratorTraining
from genimg_fast.benchmark.runtimes import Runtime


@dataclass(frozen=True)
class SavedBytes:
    """Bytes that the generator saves for its backward pass: distinct storages, those of the model and its input left out."""

    workload: GeneratorTraining
    dtype: torch.dtype = torch.float32

    def __call__(self, runtime: Runtime) -> int:
        generator, z = self.workload.build(runtime, self.dtype)
        present = {t.untyped_storage().data_ptr() for t in (*generator.parameters(), *generator.buffers(), z)}
        saved: dict[int, torch.UntypedStorage] = {}  # holds the storages, so that no address is used twice

        def pack(t: torch.Tensor) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in present:
                saved[storage.data_ptr()] = storage
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            images = generator(z)
        total = sum(storage.nbytes() for storage in saved.values())
        images.sum().backward()  # what was saved must be enough
        return total
