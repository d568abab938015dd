# SPDX-License-Identifier: MIT
"""What is timed: one table for `genimg-fast bench` and for `benchmarks/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

import genimg_fast
from genimg_fast import functional, models
from genimg_fast._parity import Inputs, Outputs

Module = TypeVar("Module", bound=torch.nn.Module)

FORWARD, FORWARD_BACKWARD, TRAIN_STEP = "forward", "forward+backward", "training step"

Function = Callable[[], Outputs]
"""What is timed.  Its inputs are bound to it."""


class Backend(NamedTuple):
    """What a workload runs on: one of

    - "native": fused modules and the native kernels;
    - "eager": plain `torch.nn` modules and `torch.nn.functional`;
    - "torch.compile": eager, compiled;
    - "reference": eager but for the noise, which is that of the kernels: what results are compared with.
    """

    name: str

    @property
    def setting(self) -> str:
        return "auto" if self.name == "native" else "reference"

    def module(self, module: Module) -> Module:
        return module if self.name == "native" else genimg_fast.unfuse(module)

    def function(self, function: Callable) -> Callable:
        return torch.compile(function) if self.name == "torch.compile" else function

    def reparameterize(self, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        if self.name in ("native", "reference"):
            return functional.reparameterize(mu, logvar)
        # The reference draws the kernels' noise by integer arithmetic on tensors, slowly: no eager code would do that.
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


TIMED_BACKENDS = ("native", "eager", "torch.compile")


@dataclass(frozen=True)
class Workload:
    group: str
    """The op, or "models": the bench_<group>.py that times it."""
    name: str
    batch: int
    prepare: Callable[[Inputs, int, Backend], Function]
    """(inputs, batch, backend) -> function."""
    passes: tuple[str, ...] = (FORWARD, FORWARD_BACKWARD)
    quick: tuple[str, ...] = ()
    """The passes that the quick suite times."""
    unit: str = "GB/s"
    """What a rate counts: "images/s", or "GB/s" of the bytes that must move (inputs, outputs and gradients once each)."""


@dataclass(frozen=True)
class Prepared:
    call: Callable[[], list[torch.Tensor]]
    """Runs the workload once and returns its outputs and gradients."""
    inputs: list[torch.Tensor]

    def amount(self, workload: Workload) -> float:
        """Images, or gigabytes, that one call works off."""
        if workload.unit == "images/s":
            return workload.batch
        return sum(t.nbytes for t in (*self.inputs, *self.call())) / 1e9


def prepare(workload: Workload, passes: str, backend_name: str, device: torch.device | str) -> Prepared:
    """The workload on fresh inputs and weights, the same for every backend."""
    backend = Backend(backend_name)
    inputs = Inputs(device, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # initial weights
        function = workload.prepare(inputs, workload.batch, backend)
    upstream: list[torch.Tensor] = []

    def call() -> list[torch.Tensor]:
        with genimg_fast.use_backend(backend.setting), torch.set_grad_enabled(passes != FORWARD):
            outputs = function()
            outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            if passes != FORWARD_BACKWARD:
                return list(outputs)
            if not upstream:
                upstream.extend(torch.ones_like(o) for o in outputs)
            return [*outputs, *torch.autograd.grad(outputs, inputs.leaves, upstream)]

    return Prepared(call, inputs.drawn)


# --- ops -------------------------------------------------------------------------------------------------------------


def _elbo_loss(t: Inputs, n: int, backend: Backend) -> Function:
    recon, target, mu, logvar = t.randn(n, 3, 64, 64), t.rand(n, 3, 64, 64), t.randn(n, 128), t.randn(n, 128)
    return backend.function(lambda: functional.elbo_loss(recon, target, mu, logvar)[0])


def _bce_with_logits_loss(t: Inputs, n: int, backend: Backend) -> Function:
    logits, target = t.randn(n, 3, 64, 64), t.rand(n, 3, 64, 64)
    return backend.function(lambda: functional.bce_with_logits_loss(logits, target))


def _bce_loss(t: Inputs, n: int, backend: Backend) -> Function:
    probabilities, target = t.rand(n, 3, 64, 64).clamp_(1e-3, 1 - 1e-3).requires_grad_(), t.rand(n, 3, 64, 64)
    t.leaves.append(probabilities)
    return backend.function(lambda: functional.bce_loss(probabilities, target))


def _gaussian_kl_loss(t: Inputs, n: int, backend: Backend) -> Function:
    mu, logvar = t.randn(n, 128), t.randn(n, 128)
    return backend.function(lambda: functional.gaussian_kl_loss(mu, logvar))


def _reparameterize(t: Inputs, n: int, backend: Backend) -> Function:
    mu, logvar = t.randn(n, 128), t.randn(n, 128)
    return backend.function(lambda: backend.reparameterize(mu, logvar))


def _batch_norm_act(t: Inputs, n: int, backend: Backend) -> Function:
    x, mean, var, weight, bias = t.randn(n, 64, 32, 32), t.rand(64), t.rand(64), t.randn(64), t.randn(64)
    return backend.function(
        lambda: functional.batch_norm_act(x, mean, var, weight, bias, training=True, activation="relu")
    )


def _convolution(name: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], channels: int, training: bool):
    """A 4x4 convolution of stride 2 with batch normalisation: DCGAN's block."""

    def prepare(t: Inputs, n: int, backend: Backend) -> Function:
        function = getattr(functional, name)
        x, weight, mean, var = t.randn(n, *shape), t.randn(*weight_shape), t.rand(channels), t.rand(channels)
        scale, shift = t.randn(channels), t.randn(channels)
        block = {"training": training, "stride": 2, "padding": 1, "activation": "relu"}
        return backend.function(lambda: function(x, weight, None, mean, var, scale, shift, **block))

    return prepare


# --- models ----------------------------------------------------------------------------------------------------------


def _generator(image_size: int, training: bool):
    def prepare(t: Inputs, n: int, backend: Backend) -> Function:
        model = models.DCGAN(image_size=image_size).to(t.device).train(training)
        generator = backend.function(backend.module(model).generator)
        z = t.randn(n, *model.latent_shape).detach()
        t.leaves[:] = model.generator.parameters()
        return lambda: generator(z)

    return prepare


def vae_step(name: str, **arguments: int):
    def prepare(t: Inputs, n: int, backend: Backend) -> Function:
        model = backend.module(models.create(name, **arguments).to(t.device))
        assert isinstance(model, models.VAE)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        images = t.rand(n, *model.image_shape)

        def batch_loss() -> torch.Tensor:
            mu, logvar = model.encode(images)
            recon = model.decode(backend.reparameterize(mu, logvar))
            return functional.elbo_loss(recon, images, mu, logvar, reconstruction=model.reconstruction)[0]

        compute_loss = backend.function(batch_loss)

        def step() -> Outputs:
            loss = compute_loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return prepare


def gan_step(name: str, **arguments: int):
    def prepare(t: Inputs, n: int, backend: Backend) -> Function:
        model = backend.module(models.create(name, **arguments).to(t.device))
        assert isinstance(model, models.GAN)
        generator, discriminator = backend.function(model.generator), backend.function(model.discriminator)
        generator_optimizer = torch.optim.Adam(model.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        discriminator_optimizer = torch.optim.Adam(model.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        images, z = t.rand(n, *model.image_shape) * 2 - 1, t.randn(n, *model.latent_shape).detach()

        def step() -> Outputs:
            fakes = generator(z)
            real_loss = functional.gan_loss(discriminator(images), True)
            discriminator_loss = real_loss + functional.gan_loss(discriminator(fakes.detach()), False)
            discriminator_optimizer.zero_grad()
            discriminator_loss.backward()
            discriminator_optimizer.step()
            generator_loss = functional.gan_loss(discriminator(fakes), True)
            generator_optimizer.zero_grad()
            generator_loss.backward()
            generator_optimizer.step()
            return discriminator_loss.detach(), generator_loss.detach()

        return step

    return prepare


_DECONVOLUTION = ("conv_transpose2d_bn_act", (256, 8, 8), (256, 128, 4, 4), 128)
_CONVOLUTION = ("conv2d_bn_act", (128, 16, 16), (256, 128, 4, 4), 256)
_STEP = ((TRAIN_STEP,), (TRAIN_STEP,), "images/s")

WORKLOADS = [
    Workload("models", "DCGAN-64 generator, eval, B=64", 64, _generator(64, False), (FORWARD,), (FORWARD,), "images/s"),
    Workload("models", "DCGAN-64 generator, eval, B=1", 1, _generator(64, False), (FORWARD,), (FORWARD,), "images/s"),
    Workload("models", "DCGAN-64 generator, training, B=64", 64, _generator(64, True), unit="images/s"),
    Workload("models", "DCGAN-32 (width 32), B=64", 64, gan_step("dcgan", image_size=32, width=32), *_STEP),
    Workload("models", "DCGAN-64, B=64", 64, gan_step("dcgan", image_size=64), (TRAIN_STEP,), unit="images/s"),
    Workload("models", "VAE 784-400-20, B=128", 128, vae_step("vae"), *_STEP),
    Workload("models", "convolutional VAE, 32x32, B=64", 64, vae_step("conv_vae", image_size=32), *_STEP),
    Workload(
        "conv_transpose2d_bn_act", "conv_transpose2d_bn_act, eval, 64x256x8x8 to 128", 64,
        _convolution(*_DECONVOLUTION, False), (FORWARD,), (FORWARD,), "images/s",
    ),
    Workload(
        "conv_transpose2d_bn_act", "conv_transpose2d_bn_act, training, 64x256x8x8 to 128", 64,
        _convolution(*_DECONVOLUTION, True), quick=(FORWARD_BACKWARD,), unit="images/s",
    ),
    Workload(
        "conv2d_bn_act", "conv2d_bn_act, eval, 64x128x16x16 to 256", 64,
        _convolution(*_CONVOLUTION, False), (FORWARD,), (FORWARD,), "images/s",
    ),
    Workload(
        "conv2d_bn_act", "conv2d_bn_act, training, 64x128x16x16 to 256", 64,
        _convolution(*_CONVOLUTION, True), quick=(FORWARD_BACKWARD,), unit="images/s",
    ),
    Workload("batch_norm_act", "batch_norm_act 64x64x32x32", 64, _batch_norm_act, quick=(FORWARD_BACKWARD,)),
    Workload("elbo_loss", "elbo_loss 128x3x64x64", 128, _elbo_loss, quick=(FORWARD_BACKWARD,)),
    Workload("bce_with_logits_loss", "bce_with_logits_loss 128x3x64x64", 128, _bce_with_logits_loss, quick=(FORWARD_BACKWARD,)),
    Workload("bce_loss", "bce_loss 128x3x64x64", 128, _bce_loss, quick=(FORWARD_BACKWARD,)),
    Workload("gaussian_kl_loss", "gaussian_kl_loss 4096x128", 4096, _gaussian_kl_loss, quick=(FORWARD_BACKWARD,)),
    Workload("reparameterize", "reparameterize 4096x128", 4096, _reparameterize, quick=(FORWARD_BACKWARD,)),
]  # fmt: skip
