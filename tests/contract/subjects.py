# SPDX-License-Identifier: MIT
"""What the contract is checked on: every public function, in its variants, and a fused model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

import genimg_fast
from genimg_fast import functional
from genimg_fast.ops.reparameterize import reparameterize_with_seed
from genimg_fast.ops.reparameterize_with_kl import reparameterize_with_kl_and_seed
from tests import _cases


class Argument(NamedTuple):
    tensor: torch.Tensor
    grad: bool = True
    """Whether it is differentiated."""
    batch: bool = True
    """Whether dimension 0 is that of the examples."""


Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Subject:
    name: str
    variants: dict[str, Function | nn.Module]
    """Functions of the arguments' tensors, deterministic, with one tensor as the result; or modules, of which the first
    argument is the input and the others are the parameters."""
    arguments: Callable[[int], list[Argument]]
    """Those of a batch of that size, in float32."""
    autocasts: bool = False
    """Whether autocast lowers its dtype, as it does for convolutions."""

    def function(self, variant: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Function:
        of = self.variants[variant]
        if not isinstance(of, nn.Module):
            return of
        model = copy.deepcopy(of).to(device, dtype)
        names = [name for name, _ in model.named_parameters()]

        def function(input, *parameters):
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            state = dict(zip(names, parameters, strict=True)) | buffers
            return torch.func.functional_call(model, state, (input,))

        return function


def _randn(*shape: int, seed: int) -> torch.Tensor:
    return _cases.randn(shape, seed=seed)


def _norm(channels: int, seed: int) -> list[Argument]:
    """Weight and bias of a batch normalisation."""
    return [Argument(_randn(channels, seed=seed + i) + 0.5, batch=False) for i in range(2)]


# Functions make their constants on the device: while a CUDA graph is captured nothing may be copied there from the host.
def _linspace(start: float, end: float, n: int, like: torch.Tensor) -> torch.Tensor:
    return torch.linspace(start, end, n, device=like.device, dtype=like.dtype)


def _statistics(like: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _linspace(-0.3, 0.3, channels, like), _linspace(0.5, 2.0, channels, like)


def _batch_norm(training: bool, activation: str) -> Function:
    def function(input, weight, bias):
        statistics = (None, None) if training else _statistics(input, 3)
        return functional.batch_norm_act(input, *statistics, weight, bias, training=training, activation=activation)

    return function


def _sync_batch_norm(activation: str) -> Function:
    def function(input, weight, bias):
        return functional.sync_batch_norm_act(input, None, None, weight, bias, activation=activation)

    return function


def _convolution(op: Function, norm: str, **geometry: int) -> Function:
    def function(input, weight, bias, bn_weight, bn_bias):
        if norm == "none":
            return op(input, weight, bias, activation="tanh", **geometry)
        statistics = _statistics(input, 3) if norm == "fixed" else (None, None)
        return op(
            input,
            weight,
            bias,
            *statistics,
            bn_weight,
            bn_bias,
            training=norm == "batch",
            activation="tanh",
            **geometry,
        )

    return function


def _elbo(reconstruction: str, reduction: str) -> Function:
    def function(recon, target, mu, logvar):
        if reconstruction == "bce":
            recon = recon.sigmoid()
        total, reconstruction_loss, kl = functional.elbo_loss(
            recon, target, mu, logvar, reconstruction=reconstruction, beta=0.3, reduction=reduction
        )
        return 0.5 * total + 0.2 * reconstruction_loss + 0.7 * kl

    return function


def _seed(like: torch.Tensor) -> torch.Tensor:
    return torch.full((), 0x0123456789ABCDEF, device=like.device)


def _reparameterize_with_kl(reduction: str) -> Function:
    def function(mu, logvar):
        z, kl = reparameterize_with_kl_and_seed(mu, logvar, _seed(mu), reduction)
        return 0.5 * z + 0.7 * kl

    return function


def _gradient_penalty(real, weight):
    """Of a discriminator whose last step is a loss of this package; between equal images, so that chance plays no part."""

    def discriminator(x):
        return functional.bce_with_logits_loss(x.flatten(1) @ weight, torch.full_like(x[:, :2], 0.3), reduction="none")

    return functional.gradient_penalty(discriminator, real, real)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.ConvTranspose2d(4, 6, 4, 1, 0, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 5, 3, 1, 1), nn.BatchNorm2d(5, affine=False), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(5, 2, 4, 2, 1), nn.Tanh()),
    )
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    return model


def _fused(mode: str) -> nn.Module:
    model = _network().train(mode == "training")
    assert len(genimg_fast.fuse(model).fused) == 3
    return model


def _fused_arguments(n: int) -> list[Argument]:
    parameters = [Argument(p.detach(), batch=False) for p in _network().parameters()]
    return [Argument(_randn(n, 4, 2, 2, seed=1)), *parameters]


def _pair(n: int) -> list[Argument]:
    return [Argument(_randn(n, 3, seed=1)), Argument(_randn(n, 3, seed=2))]


def _with_target(n: int) -> list[Argument]:
    return [Argument(_randn(n, 3, seed=1)), Argument(_randn(n, 3, seed=2).sigmoid(), grad=False)]


def _weights(input: torch.Tensor) -> torch.Tensor:
    return _linspace(0.5, 2.0, 3, input)


REDUCTIONS = ("none", "mean", "sum")
NORMS = {"batch statistics": "batch", "fixed statistics": "fixed", "no normalisation": "none"}

SUBJECTS = [
    Subject(
        "batch_norm_act",
        {
            f"{norm}, {activation}": _batch_norm(norm == "batch statistics", activation)
            for activation in ("tanh", "relu", "none")
            for norm in ("batch statistics", "fixed statistics")
        },
        lambda n: [Argument(_randn(n, 3, 2, 2, seed=1)), *_norm(3, 2)],
    ),
    Subject(  # of one process: of several, see test_processes.py
        "sync_batch_norm_act",
        {activation: _sync_batch_norm(activation) for activation in ("tanh", "none")},
        lambda n: [Argument(_randn(n, 3, 2, 2, seed=1)), *_norm(3, 2)],
    ),
    Subject(
        "conv2d_bn_act",
        {name: _convolution(functional.conv2d_bn_act, norm, stride=2, padding=1) for name, norm in NORMS.items()},
        lambda n: [
            Argument(_randn(n, 2, 4, 4, seed=1)),
            *(Argument(_randn(*shape, seed=2), batch=False) for shape in ((3, 2, 3, 3), (3,))),
            *_norm(3, 4),
        ],
        autocasts=True,
    ),
    Subject(
        "conv_transpose2d_bn_act",
        {
            name: _convolution(functional.conv_transpose2d_bn_act, norm, stride=2, padding=1, output_padding=1)
            for name, norm in NORMS.items()
        },
        lambda n: [
            Argument(_randn(n, 2, 2, 2, seed=1)),
            *(Argument(_randn(*shape, seed=2), batch=False) for shape in ((2, 3, 3, 3), (3,))),
            *_norm(3, 4),
        ],
        autocasts=True,
    ),
    Subject(
        "reparameterize",
        {"": lambda mu, logvar: reparameterize_with_seed(mu, logvar, _seed(mu))},
        _pair,
    ),
    Subject(
        "reparameterize_with_kl",
        {reduction: _reparameterize_with_kl(reduction) for reduction in ("batchmean", *REDUCTIONS)},
        _pair,
    ),
    Subject(
        "gaussian_kl_loss",
        {
            reduction: lambda mu, logvar, reduction=reduction: functional.gaussian_kl_loss(mu, logvar, reduction)
            for reduction in ("batchmean", *REDUCTIONS)
        },
        _pair,
    ),
    Subject(
        "bce_loss",
        {
            f"{reduction}, weight": lambda x, target, reduction=reduction: functional.bce_loss(
                x.sigmoid(), target, _weights(x), reduction=reduction
            )
            for reduction in REDUCTIONS
        }
        | {"mean": lambda x, target: functional.bce_loss(x.sigmoid(), target)},
        _with_target,
    ),
    Subject(
        "bce_with_logits_loss",
        {
            f"{reduction}, weight, pos_weight": lambda x, target, reduction=reduction: functional.bce_with_logits_loss(
                x, target, _weights(x), pos_weight=2 * _weights(x), reduction=reduction
            )
            for reduction in REDUCTIONS
        }
        | {"mean": functional.bce_with_logits_loss},
        _with_target,
    ),
    Subject(
        "elbo_loss",
        {
            f"{reconstruction}, {reduction}": _elbo(reconstruction, reduction)
            for reconstruction in ("bce_with_logits", "bce", "mse")
            for reduction in ("batchmean", "sum", "mean")
        },
        lambda n: [*_with_target(n), *_pair(n)],
    ),
    Subject(
        "gan_loss",
        {
            kind: lambda logits, kind=kind: functional.gan_loss(logits, True, kind)
            for kind in ("bce", "hinge", "wasserstein", "lsgan")
        },
        lambda n: _pair(n)[:1],
    ),
    Subject(
        "gradient_penalty",
        {"": _gradient_penalty},
        lambda n: [Argument(_randn(n, 3, seed=1), grad=False), Argument(_randn(3, 2, seed=3), batch=False)],
    ),
    *(
        Subject(f"a fused model, {mode}", {mode: _fused(mode)}, _fused_arguments, autocasts=True)
        for mode in ("training", "eval")
    ),
]  # fmt: skip
