# SPDX-License-Identifier: MIT
"""The workloads that run a model: inference, training, whole steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import genimg_fast
from genimg_fast import models
from genimg_fast.benchmark.functions import noise_of, sampler
from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.workloads import Inputs, Prepared, tolerances

TOLERANCE_OF_TRAINING, TOLERANCE_OF_TRAINING_IN_TF32 = 0.05, 0.2
"""The error that a whole model's gradients may have.  Where rounding puts a value on the other side of a ReLU's corner, gradients change in
steps, and Adam's first step is a sign: eager's own errors reach 0.02."""


def plain_model(name: str, runtime: Runtime, dtype: torch.dtype, **arguments: int) -> Any:
    """A model of `genimg_fast.models` as plain `torch.nn` layers with ReLUs in place, as public code writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = genimg_fast.unfuse(models.create(name, **arguments))
    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.LeakyReLU):
            module.inplace = True
    return model.to(runtime.device, dtype)


@torch.no_grad()
def settle_statistics(model: nn.Module, *inputs: torch.Tensor) -> None:
    """Sets the running statistics to those of one batch, so that values are as large as in a trained model, and eval()."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [bn.momentum for bn in norms]
    for bn in norms:
        bn.momentum = 1.0
    model.train()(*inputs)
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum
    model.eval()


def _gradient_tolerances(model: nn.Module) -> dict[str, float]:
    in_tf32 = next(model.parameters()).is_cuda
    tolerance = TOLERANCE_OF_TRAINING_IN_TF32 if in_tf32 else TOLERANCE_OF_TRAINING
    return {f"gradient of {name}": tolerance for name, _ in model.named_parameters()}


@dataclass(frozen=True)
class GeneratorInference:
    """DCGAN's generator in eval mode, NCHW in and out."""

    images: int
    image_size: int = 64
    width: int = 64

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        generator = plain_model("dcgan", runtime, dtype, image_size=self.image_size, width=self.width).generator
        draw = Inputs(runtime, dtype)
        settle_statistics(generator, draw.randn(16, 100, 1, 1))
        return inference(generator, draw.randn(self.images, 100, 1, 1), runtime)


@dataclass(frozen=True)
class BlockInference:
    """One block ConvTranspose2d k4s2p1 + BatchNorm2d + ReLU in eval mode."""

    images: int
    cin: int
    cout: int
    size: int
    """Height and width of the input."""

    @property
    def flops(self) -> int:
        return 2 * self.images * self.size**2 * self.cin * self.cout * 16

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (
                nn.ConvTranspose2d(self.cin, self.cout, 4, 2, 1, bias=False),
                nn.BatchNorm2d(self.cout),
                nn.ReLU(True),
            )
        block, draw = nn.Sequential(*layers).to(runtime.device, dtype), Inputs(runtime, dtype)
        settle_statistics(block, draw.randn(2, self.cin, self.size, self.size))
        return inference(block, draw.randn(self.images, self.cin, self.size, self.size).relu_(), runtime)


def inference(model: nn.Module, x: torch.Tensor, runtime: Runtime) -> Prepared:
    run = runtime.inference(model, x)

    def call() -> Sequence[Any]:
        with torch.no_grad():
            return (run(),)

    return Prepared(call, tolerances("images"))


@dataclass(frozen=True)
class GeneratorTraining:
    """DCGAN's generator in training mode, forward and backward."""

    images: int
    image_size: int = 64
    width: int = 64

    def build(self, runtime: Runtime, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
        """The generator as the runtime runs it, and its input."""
        generator = plain_model("dcgan", runtime, dtype, image_size=self.image_size, width=self.width).generator
        return runtime.convert(generator.train()), Inputs(runtime, dtype).randn(self.images, 100, 1, 1)

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        generator, z = self.build(runtime, dtype)
        upstream = Inputs(runtime, dtype).randn(self.images, 3, self.image_size, self.image_size)
        parameters, run = tuple(generator.parameters()), runtime.compile(generator)

        def call() -> Sequence[Any]:
            images = run(z)
            return (images, *torch.autograd.grad(images, parameters, upstream))

        return Prepared(call, tolerances("images") | _gradient_tolerances(generator))


@dataclass(frozen=True)
class GANStep:
    """A whole training step of a DCGAN: discriminator and generator, each with Adam."""

    images: int
    image_size: int = 64
    channels: int = 3
    width: int = 64
    latent: int = 100

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        arguments = {
            "image_size": self.image_size,
            "channels": self.channels,
            "width": self.width,
            "latent": self.latent,
        }
        model = runtime.convert(plain_model("dcgan", runtime, dtype, **arguments).train())
        parameters = tuple(model.parameters())
        generator, discriminator = runtime.compile(model.generator), runtime.compile(model.discriminator)
        adam_g = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        adam_d = torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        draw = Inputs(runtime, dtype)
        real, z = draw.rand(self.images, *model.image_shape) * 2 - 1, draw.randn(self.images, self.latent, 1, 1)
        ones, zeros = torch.ones_like(z[:, 0, 0, 0]), torch.zeros_like(z[:, 0, 0, 0])
        bce = runtime.functional.bce_with_logits_loss

        def call() -> Sequence[Any]:
            fake = generator(z)
            loss_d = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
            adam_d.zero_grad()
            loss_d.backward()
            adam_d.step()
            loss_g = bce(discriminator(fake), ones)
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()
            return (loss_d.detach(), loss_g.detach(), *(p.grad for p in parameters))

        after_a_step = {"generator's loss": TOLERANCE_OF_TRAINING}
        return Prepared(call, tolerances("discriminator's loss") | after_a_step | _gradient_tolerances(model))


@dataclass(frozen=True)
class VAEStep:
    """A training step of the convolutional VAE with Adam."""

    images: int
    image_size: int = 64
    channels: int = 3
    width: int = 32
    latent: int = 64

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        arguments = {
            "image_size": self.image_size,
            "channels": self.channels,
            "width": self.width,
            "latent": self.latent,
        }
        model = runtime.convert(plain_model("conv_vae", runtime, dtype, **arguments).train())
        parameters = tuple(model.parameters())
        adam = torch.optim.Adam(parameters, lr=1e-3)
        x = Inputs(runtime, dtype).rand(self.images, *model.image_shape)
        sample = sampler(runtime, noise)

        def forward(x: torch.Tensor) -> Sequence[torch.Tensor]:
            mu, logvar = model.encode(x)
            z = sample(mu, logvar)
            loss, _, _ = runtime.functional.elbo_loss(model.decode(z), x, mu, logvar)
            return loss, mu, logvar, z

        run = runtime.compile(forward)

        def call() -> Sequence[Any]:
            loss, mu, logvar, z = run(x)
            adam.zero_grad()
            loss.backward()
            adam.step()
            return (loss, mu, logvar, z, *(p.grad for p in parameters))

        allowed = tolerances("loss", "mu", "logvar", "z") | _gradient_tolerances(model)
        return Prepared(call, allowed, lambda t: noise_of(*t[1:4]))
