# SPDX-License-Identifier: MIT
"""What the modules of normalisation ask of `genimg_fast.functional`, and a `torch.nn.SyncBatchNorm` that runs on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from genimg_fast import _backend, functional
from genimg_fast.nn.fused import Fused
from genimg_fast.ops._autocast import autocasts
from genimg_fast.ops.sync_batch_norm_act import process_count
from genimg_fast.reference.activation import activate


class FusedSyncBatchNorm(Fused, nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm`, run by `functional.sync_batch_norm_act`.

    It is no subclass: DistributedDataParallel refuses a model on the CPU in which there is an instance of `SyncBatchNorm`.
    """

    _genimg_fast_plain_class = nn.SyncBatchNorm
    process_group: Any

    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # the second inside a mode too: it may be there in one process alone, and what the processes exchange must be the same
        if type(self) is not FusedSyncBatchNorm or not _backend.may_fuse(input, inside_mode=joins_processes(self)):
            return as_in_torch(self, nn.SyncBatchNorm.forward, input)
        # at any size: all processes must run PyTorch's own, or all this one
        return run_norm(self, input, "none", 0.01)


def as_in_torch(layer: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """`forward(layer, *inputs)`, of its plain class; what torch.fx records is the layer, as it does with those of `torch.nn`."""
    tracer: Any = inputs[0].tracer if isinstance(inputs[0], fx.Proxy) else None
    if tracer is not None and tracer.root is not layer:
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), inputs, {})
    return forward(layer, *inputs)


def joins_processes(bn: Any) -> bool:
    """Whether the next pass of this module takes its statistics over several processes."""
    return type(bn) is FusedSyncBatchNorm and bn.training and process_count(bn.process_group) > 1


def run_norm(bn: Any, input: torch.Tensor, activation: str, negative_slope: float) -> torch.Tensor:
    """The normalisation, and an activation after it."""
    if isinstance(bn, nn.InstanceNorm2d):
        return _run_instance_norm(bn, input, activation, negative_slope)
    arguments = norm_arguments(bn, input)
    arguments |= {"weight": parameter(bn, "weight"), "bias": parameter(bn, "bias")}
    arguments |= {"activation": activation, "negative_slope": negative_slope}
    if joins_processes(bn):
        del arguments["training"]
        return functional.sync_batch_norm_act(input, process_group=bn.process_group, **arguments)
    return functional.batch_norm_act(input, **arguments)


def _run_instance_norm(
    norm: nn.InstanceNorm2d, input: torch.Tensor, activation: str, negative_slope: float
) -> torch.Tensor:
    """As PyTorch computes it: the batch normalisation of one image, which has a channel for each channel of each image."""
    n, c, h, w = input.shape if input.dim() == 4 else (0, 0, 0, 0)
    if n == 0 or c != norm.num_features or h * w <= 1 or autocasts(input):
        return activate(nn.InstanceNorm2d.forward(norm, input), activation, negative_slope)
    weight, bias = parameter(norm, "weight"), parameter(norm, "bias")
    output = functional.batch_norm_act(
        # F.batch_norm differentiates a view in another order wrongly; Inductor's code for varying sizes knows no -1
        input.contiguous().view(1, n * c, h, w),
        None,
        None,
        None if weight is None else weight.repeat(n),
        None if bias is None else bias.repeat(n),
        training=True,
        momentum=0.0,
        eps=norm.eps,
        activation=activation,
        negative_slope=negative_slope,
    )
    return output.view(input.shape)


def norm_arguments(bn: Any, input: torch.Tensor) -> dict[str, Any]:
    """What `bn(input)` would pass to `F.batch_norm`, counting the batch as it does."""
    bn._check_input_dim(input)
    momentum, training = bn.momentum, bn.training
    running_mean, running_var = bn._buffers["running_mean"], bn._buffers["running_var"]
    tracks = training and bn.track_running_stats
    if counts(bn):
        bn.num_batches_tracked.add_(1)
        if momentum is None:  # the cumulative average
            momentum = 1.0 / float(bn.num_batches_tracked)
    uses_running = tracks or not training
    return {
        "running_mean": running_mean if uses_running else None,
        "running_var": running_var if uses_running else None,
        "training": training or (running_mean is None and running_var is None),
        "momentum": 0.0 if momentum is None else momentum,
        "eps": bn.eps,
    }


def counts(bn: Any) -> bool:
    """Whether the next pass of this module adds to `num_batches_tracked`."""
    return bn.training and bn.track_running_stats and bn.num_batches_tracked is not None


def parameter(module: Any, name: str) -> torch.Tensor | None:
    """As ``module.name``, which takes three times as long."""
    try:
        return module._parameters[name]
    except KeyError:  # a replica of nn.DataParallel holds its tensors as plain attributes
        return getattr(module, name)
