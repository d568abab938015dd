# SPDX-License-Identifier: MIT
"""The workloads that run a function of `genimg_fast.functional` forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.workloads import Inputs, Prepared, tolerances


@dataclass(frozen=True)
class Function:
    """A function of `genimg_fast.functional`, forward and backward."""

    shape: tuple[int, ...]
    """Of the images, or of mu."""
    images: ClassVar[None] = None

    @property
    def bytes(self) -> int:
        """What must move at least: inputs, outputs and gradients once each, in float32."""
        raise NotImplementedError

    def inputs(self, draw: Inputs) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(those with gradient, those without)"""
        raise NotImplementedError

    def output(self, runtime: Runtime, *inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        leaves, constants = self.inputs(Inputs(runtime, dtype))
        for leaf in leaves:
            leaf.requires_grad_()
        run = runtime.compile(lambda *inputs: self.output(runtime, *inputs))
        shape = run(*leaves, *constants).shape
        upstream = Inputs(runtime, dtype).randn(*shape) if shape else None  # of a loss it is 1, as in `loss.backward()`

        def call() -> Sequence[Any]:
            output = run(*leaves, *constants)
            return (output, *torch.autograd.grad(output, leaves, upstream))

        return Prepared(call, tolerances("output", *(f"gradient of input {i}" for i in range(len(leaves)))))


@dataclass(frozen=True)
class BCELoss(Function):
    """On probabilities."""

    @property
    def bytes(self) -> int:
        return 4 * 3 * math.prod(self.shape)

    def inputs(self, draw):
        return [draw.rand(*self.shape).clamp_(1e-3, 1 - 1e-3)], [draw.rand(*self.shape)]

    def output(self, runtime, *inputs):
        return runtime.functional.bce_loss(*inputs)


@dataclass(frozen=True)
class BCEWithLogitsLoss(BCELoss):
    def inputs(self, draw):
        return [draw.randn(*self.shape)], [draw.rand(*self.shape)]

    def output(self, runtime, *inputs):
        return runtime.functional.bce_with_logits_loss(*inputs)


@dataclass(frozen=True)
class ELBOLoss(Function):
    """BCE with logits and the KL term."""

    latent: int = 128

    @property
    def bytes(self) -> int:
        return 4 * (3 * math.prod(self.shape) + 4 * self.shape[0] * self.latent)

    def inputs(self, draw):
        recon, target = draw.randn(*self.shape), draw.rand(*self.shape)
        return [recon, draw.randn(self.shape[0], self.latent), draw.randn(self.shape[0], self.latent)], [target]

    def output(self, runtime, *inputs):
        recon, mu, logvar, target = inputs
        return runtime.functional.elbo_loss(recon, target, mu, logvar)[0]


@dataclass(frozen=True)
class GaussianKLLoss(Function):
    @property
    def bytes(self) -> int:
        return 4 * 4 * math.prod(self.shape)

    def inputs(self, draw):
        return [draw.randn(*self.shape), draw.randn(*self.shape)], []

    def output(self, runtime, *inputs):
        return runtime.functional.gaussian_kl_loss(*inputs)


@dataclass(frozen=True)
class BatchNormAct(Function):
    """Batch normalisation in training mode, then ReLU."""

    @property
    def bytes(self) -> int:
        return 4 * 5 * math.prod(self.shape)  # the input is read again by the backward pass

    def inputs(self, draw):
        c = self.shape[1]
        return [draw.randn(*self.shape), draw.rand(c), draw.randn(c)], [draw.rand(c), draw.rand(c)]

    def output(self, runtime, *inputs):
        x, weight, bias, mean, var = inputs
        return runtime.functional.batch_norm_act(x, mean, var, weight, bias, training=True, activation="relu")


@dataclass(frozen=True)
class Reparameterize(Function):
    outputs: ClassVar[tuple[str, ...]] = ("z",)

    @property
    def bytes(self) -> int:
        return 4 * 6 * math.prod(self.shape)

    def sampler(
        self, runtime: Runtime, noise: torch.Tensor | None
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
        """A function of mu and logvar."""
        sample = sampler(runtime, noise)
        return lambda mu, logvar: (sample(mu, logvar),)

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        draw = Inputs(runtime, dtype)
        mu, logvar, upstream = (draw.randn(*self.shape) for _ in range(3))
        leaves = mu.requires_grad_(), logvar.requires_grad_()
        upstreams = [upstream, *(upstream.new_ones(()) for _ in self.outputs[1:])]
        run = runtime.compile(self.sampler(runtime, noise))

        def call() -> Sequence[Any]:
            outputs = run(*leaves)
            return (*outputs, *torch.autograd.grad(outputs, leaves, upstreams))

        return Prepared(
            call,
            tolerances(*self.outputs, "gradient of mu", "gradient of logvar"),
            lambda t: noise_of(mu.detach().cpu().double(), logvar.detach().cpu().double(), t[0]),
        )


@dataclass(frozen=True)
class ReparameterizeWithKL(Reparameterize):
    """What a VAE does between encoder and decoder: a sample of the posterior, and its KL divergence."""

    outputs = ("z", "kl")

    def sampler(self, runtime, noise):
        if noise is None:
            return lambda mu, logvar: runtime.functional.reparameterize_with_kl(mu, logvar, "batchmean")
        sample = sampler(runtime, noise)
        return lambda mu, logvar: (sample(mu, logvar), runtime.functional.gaussian_kl_loss(mu, logvar, "batchmean"))


def sampler(runtime: Runtime, noise: torch.Tensor | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if noise is None:
        return runtime.functional.reparameterize
    return lambda mu, logvar: mu + torch.exp(0.5 * logvar) * noise


def noise_of(mu: torch.Tensor, logvar: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return (z - mu) / torch.exp(0.5 * logvar)
