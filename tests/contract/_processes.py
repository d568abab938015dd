# SPDX-License-Identifier: MIT
"""What each process does for test_processes.py: `results` of every scenario, saved to a file a rank."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import genimg_fast
from genimg_fast import use_backend
from tests import _cases

PROCESSES = 2
STEPS = 3
SCALE = 1 / 256  # of the loss where it is a sum
SHARES = {2: (3, 1), 3: (3, 1, 0)}  # of a joined batch
Results = dict[str, torch.Tensor]


class Network(nn.Module):
    """Stages of its own, a chain in its forward(), and a loss."""

    def __init__(self, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), norm(6), nn.LeakyReLU(0.2))
        self.conv, self.norm = nn.Conv2d(6, 6, 3, 1, 1), norm(6)
        self.up = nn.Sequential(nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh())
        self.criterion = nn.BCEWithLogitsLoss()

    def images(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.relu(self.norm(self.conv(self.down(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.criterion(self.images(x), x.sigmoid())


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "no batch statistics": lambda channels: nn.GroupNorm(2, channels),
    "BatchNorm2d": nn.BatchNorm2d,
}
NORM_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "momentum=None": {"momentum": None},
    "affine=False": {"affine": False},
    "track_running_stats=False": {"track_running_stats": False},
}


def batch_norm_network(kind: Callable[..., nn.Module], options: str) -> Network:
    """Its loss is a sum, so that shares of the batch may differ in size."""
    torch.manual_seed(0)
    model = Network(lambda channels: kind(channels, **NORM_OPTIONS.get(options, {}))).double()
    if options == "one in eval":
        model.norm.eval()
    model.criterion.reduction = "sum"
    return model


def _sync_batch_norm(rank: int, processes: int) -> dict[str, Results]:
    def share(step: int) -> torch.Tensor:
        return joined_batch(step).split(SHARES[processes])[rank]

    def trained(options: str, **of_ddp: bool) -> Results:
        model = batch_norm_network(nn.SyncBatchNorm, options)
        genimg_fast.fuse(model)
        return train(DistributedDataParallel(model, broadcast_buffers=False, **of_ddp), share, SCALE)

    results = {f"SyncBatchNorm, {options}": trained(options) for options in (*NORM_OPTIONS, "one in eval")}
    with use_backend("auto"):  # PyTorch's convolutions
        results["SyncBatchNorm, auto"] = trained("")
    with use_backend("reference" if rank == 0 else "native"):
        results["SyncBatchNorm, another backend in one process"] = trained("")
    results["SyncBatchNorm, static graph"] = trained("", static_graph=True)
    compiled = batch_norm_network(nn.SyncBatchNorm, "")
    genimg_fast.fuse(compiled)
    compiled.compile(backend="aot_eager", fullgraph=True)
    results["SyncBatchNorm, compiled"] = train(DistributedDataParallel(compiled, broadcast_buffers=False), share, SCALE)
    return results


def network(norm: str, fused: bool, device: str = "cpu") -> Network:
    torch.manual_seed(0)
    model = Network(NORMS[norm]).to(device, torch.float64)
    if fused:
        genimg_fast.fuse(model)
    return model


def joined_batch(step: int, device: str = "cpu") -> torch.Tensor:
    return _cases.randn((4, 3, 8, 8), torch.float64, seed=step).to(device)


def train(model: nn.Module, images: Callable[[int], torch.Tensor], scale: float = 1.0) -> Results:
    """Loss and gradients of each step; weights and buffers after the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results: Results = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        (scale * model(images(step))).backward()
        results.update({f"step {step}: {_bare(name)}": _whole(p.grad) for name, p in model.named_parameters()})
        optimizer.step()
    return results | {_bare(name): _whole(t) for name, t in model.state_dict().items()}


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _whole(t: torch.Tensor) -> torch.Tensor:
    """A copy, of all shards."""
    return (t.full_tensor() if isinstance(t, torch.distributed.tensor.DTensor) else t).detach().cpu().clone()


def _shard(model: Network) -> Network:
    mesh = dist.device_mesh.init_device_mesh(
        "cpu", (PROCESSES,)
    )  # without one the shards are a GPU's, where there is one
    for stage in (model.down, model.up):
        fully_shard(stage, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _evaluate_around_training(model: Network, images: Callable[[int], torch.Tensor]) -> Results:
    """Inference keeps what it packed of the weights: not beyond their change."""
    outputs = {}
    for when in ("before", "after"):
        model.eval()
        with torch.no_grad():
            for i in range(3):
                outputs[f"loss {when}, {i}"] = model(images(0)).detach().clone()
        model.train()
        if when == "before":
            outputs |= train(model, images)
    return outputs


def scenarios(rank: int) -> dict[str, Results]:
    def share(step: int) -> torch.Tensor:
        return joined_batch(step).chunk(PROCESSES)[rank]

    results = {}
    for norm in ("no batch statistics", "BatchNorm2d"):
        for fused in (True, False):
            model = DistributedDataParallel(network(norm, fused))
            results[f"DDP, {norm}, {'fused' if fused else 'plain'}"] = train(model, share)
    for name in ("plain", "fused before", "fused after"):
        model = _shard(network("BatchNorm2d", fused=name == "fused before"))
        if name == "fused after":
            assert len(genimg_fast.fuse(model).fused) == 4
        results[f"FSDP2, {name}"] = _evaluate_around_training(model, share)
    if torch.backends.cuda.is_built() and torch.cuda.is_available():  # one GPU serves both processes
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        model = nn.SyncBatchNorm.convert_sync_batchnorm(network("BatchNorm2d", False, "cuda").float())
        genimg_fast.fuse(model)
        with use_backend("auto"):  # cuDNN's convolutions
            results["SyncBatchNorm on CUDA"] = train(
                DistributedDataParallel(model), lambda step: share(step).cuda().float()
            )
    return results


def main(rank: int, folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=processes, timeout=timedelta(minutes=10)
    )
    with use_backend("native"):
        results = _sync_batch_norm(rank, processes) | (scenarios(rank) if processes == PROCESSES else {})
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
