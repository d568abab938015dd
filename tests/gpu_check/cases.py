# SPDX-License-Identifier: MIT
"""What each op computes on the GPU: forward and backward, as functions of their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from genimg_fast import functional, use_backend
from genimg_fast.backends import cpu
from genimg_fast.ops._check import ACTIVATIONS, REDUCTIONS
from genimg_fast.ops.reparameterize import reparameterize_with_seed
from genimg_fast.ops.reparameterize_with_kl import reparameterize_with_kl_and_seed
from tests import _cases
from tests import test_random_configurations as convolutions
from tests.test_random_configurations import Configuration

Tensors = dict[str, torch.Tensor | None]
SHAPES = [*_cases.ELEMENTWISE_SHAPES, (64, 1025)]
# A large GPU has room for more than 1,024 blocks that share one channel of these, which no pack of a half type divides.
FEW_CHANNELS = [(16, 3, 72, 72), (8400, 20), (3, 1, 297, 297)]
IMAGE_SHAPES = [(5, 3), (2, 7, 5), (3, 5, 7, 9), (8, 64, 16, 16), (64, 3, 8, 8), (0, 4, 2, 2), *FEW_CHANNELS]
NEAR_KINK = {torch.float64: 1e-4, torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 5e-2}
RANDOM_CONFIGURATIONS = 40


@dataclass(frozen=True)
class Case:
    name: str
    draw: Callable[[int], Tensors]
    """From a seed: the arguments, on the CPU in float32."""
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    leaves: tuple[str, ...]
    """The arguments that gradients are wanted for."""

    def tensors(self, seed: int, device: str, dtype: torch.dtype) -> Tensors:
        """Rounded to `dtype`."""
        return {n: _placed(t, device, dtype) for n, t in self.draw(seed).items()}

    def run(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Outputs and gradients by name.  Changes nothing in `tensors`."""
        arguments = {n: None if t is None else t.clone() for n, t in tensors.items()}
        leaves = [arguments[n].requires_grad_() for n in self.leaves]
        outputs = self.function(**arguments)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        gradients = torch.autograd.grad(outputs, leaves, [upstream(o) for o in outputs])
        results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
        results |= {n: t for n, t in arguments.items() if n.startswith("running_") and t is not None}
        return results | {f"gradient of {n}": g for n, g in zip(self.leaves, gradients, strict=True)}


def _placed(t: torch.Tensor | None, device: str, dtype: torch.dtype) -> torch.Tensor | None:
    return t.to(device, dtype) if t is not None and t.is_floating_point() else t if t is None else t.to(device)


def upstream(output: torch.Tensor) -> torch.Tensor:
    """A gradient that differs from element to element, of numbers that every dtype holds exactly."""
    values = torch.arange(output.numel(), device=output.device) % 7 * 0.25 - 0.5
    return values.to(output.dtype).reshape(output.shape)


@dataclass(frozen=True)
class ConvolutionCase:
    """A `Configuration` with the interface of a `Case`."""

    configuration: Configuration

    @property
    def name(self) -> str:
        c = self.configuration
        layer = f"{c.function} {c.in_channels}-{c.out_channels} k{c.kernel[0]}s{c.stride[0]} @{c.size[0]}"
        return f"{layer}, {c.norm}, {c.layout}"

    def tensors(self, seed: int, device: str, dtype: torch.dtype) -> Tensors:
        made = convolutions.make_tensors(dataclasses.replace(self.configuration, seed=seed))
        return {n: _placed(t, device, dtype) for n, t in made.items()}

    def run(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        return convolutions.run(getattr(functional, self.configuration.function), tensors, self.configuration)


def run_native(tensors: Tensors, configuration: Configuration) -> dict[str, torch.Tensor]:
    """On the native kernels, with plain sums as on a GPU; what they refuse goes where "auto" sends it."""
    function = getattr(functional, configuration.function)
    before, cpu.allow_winograd = cpu.allow_winograd, False
    try:
        with use_backend("native"):
            return convolutions.run(function, tensors, configuration)
    except RuntimeError as error:
        if "cannot serve this call" not in str(error):
            raise
    finally:
        cpu.allow_winograd = before
    with use_backend("auto"):
        return convolutions.run(function, tensors, configuration)


# --- the cases of each op --------------------------------------------------------------------------------------------


def of(op: str) -> list[Case]:
    """The cases of an op that is no convolution."""
    return list(_MAKERS[op]())


def representatives(op: str, images: int, step: int) -> list[Case] | list[ConvolutionCase]:
    """A few that between them run every kernel of the op: for graphs, determinism and the sanitizer.

    Args:
        step: of those that differ in little, every how many are wanted.
    """
    if op in LAYERS:
        some = LAYERS[op][:1] + LAYERS[op][-2:]
        norms = ("none", "training", "folded")
        made = [layer_configuration(op, layer, images, n) for layer in some for n in norms]
        return [ConvolutionCase(c) for c in made + _image_layers_in_nchw(made)][::step]
    some = [case for case in of(op) if case.name.startswith(("(64, 1025)", "(8, 64, 16, 16)"))]
    of_few_channels = {f"{shape} relu, training" for shape in FEW_CHANNELS}
    return some[::step] + [case for case in of(op) if case.name in of_few_channels]


def _randn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _probabilities(x: torch.Tensor) -> torch.Tensor:
    """Off the ends: in float16 PyTorch's own gradient is NaN there."""
    return (3 * x).sigmoid().clamp(0.01, 0.99)


def _latents(seed: int, shape: tuple[int, ...]) -> Tensors:
    mu, logvar = _randn(seed, shape, shape)
    return {"mu": mu, "logvar": logvar}


def _latents_and_seed(seed: int, shape: tuple[int, ...]) -> Tensors:
    return {**_latents(seed, shape), "seed": torch.tensor(seed * 2**40 + 12345)}


def _gaussian_kl_loss() -> Iterator[Case]:
    for shape in SHAPES:
        for reduction in REDUCTIONS:

            def draw(seed: int, shape=shape) -> Tensors:
                return _latents(seed, shape)

            def function(reduction=reduction, **tensors):
                return functional.gaussian_kl_loss(**tensors, reduction=reduction)

            yield Case(f"{shape} {reduction}", draw, function, ("mu", "logvar"))


def _under_autocast(loss: Callable[..., Any]) -> Callable[..., Any]:
    """As autocast meets it: images that nobody rounded, beside an output of a half type."""

    def function(*, target: torch.Tensor, **more: Any) -> Any:
        with torch.autocast("cuda"):
            return loss(target=target if target.dtype == torch.float64 else target.float(), **more)

    return function


def _bce(name: str) -> Iterator[Case]:
    weights = ("none", "weight", "pos_weight") if name == "bce_with_logits_loss" else ("none", "weight")
    for shape in SHAPES:
        for reduction in ("none", "mean", "sum"):
            for weighted in weights:

                def draw(seed: int, shape=shape, weighted=weighted) -> Tensors:
                    input, target, weight = _randn(seed, shape, shape, shape)
                    input = input if name == "bce_with_logits_loss" else _probabilities(input)
                    more = {} if weighted == "none" else {weighted: weight.abs() + 0.1}
                    return {"input": input, "target": target.sigmoid(), **more}

                def function(reduction=reduction, **tensors):
                    return getattr(functional, name)(**tensors, reduction=reduction)

                yield Case(f"{shape} {reduction}, weight: {weighted}", draw, function, ("input",))
                if weighted == "none" and reduction != "none":
                    autocast = _under_autocast(function)
                    yield Case(f"{shape} {reduction}, under autocast", draw, autocast, ("input",))


def _elbo_loss() -> Iterator[Case]:
    for shape in [s for s in SHAPES if len(s) >= 2]:
        for kind in ("bce_with_logits", "bce", "mse"):
            for reduction in ("batchmean", "sum", "mean"):

                def draw(seed: int, shape=shape, kind=kind) -> Tensors:
                    recon, target, mu, logvar = _randn(seed, shape, shape, (shape[0], 5), (shape[0], 5))
                    recon = _probabilities(recon) if kind == "bce" else recon
                    return {"recon": recon, "target": target.sigmoid(), "mu": mu, "logvar": logvar}

                def function(kind=kind, reduction=reduction, **tensors):
                    return functional.elbo_loss(**tensors, reconstruction=kind, beta=0.5, reduction=reduction)

                leaves = ("recon", "mu", "logvar")
                yield Case(f"{shape} {kind} {reduction}", draw, function, leaves)
                if reduction == "batchmean":
                    yield Case(f"{shape} {kind} {reduction}, under autocast", draw, _under_autocast(function), leaves)


def _reparameterize() -> Iterator[Case]:
    for shape in SHAPES:

        def draw(seed: int, shape=shape) -> Tensors:
            return _latents_and_seed(seed, shape)

        yield Case(f"{shape}", draw, reparameterize_with_seed, ("mu", "logvar"))


def _reparameterize_with_kl() -> Iterator[Case]:
    for shape in SHAPES:
        for reduction in REDUCTIONS:

            def draw(seed: int, shape=shape) -> Tensors:
                return _latents_and_seed(seed, shape)

            def function(reduction=reduction, **tensors):
                return reparameterize_with_kl_and_seed(**tensors, reduction=reduction)

            yield Case(f"{shape} {reduction}", draw, function, ("mu", "logvar"))


def _batch_norm_act() -> Iterator[Case]:
    for shape in IMAGE_SHAPES:
        formats = [torch.contiguous_format, *[torch.channels_last] * (len(shape) == 4)]
        for training in (True, False) if 0 not in shape else (False,):
            for i, activation in enumerate(ACTIVATIONS):

                def draw(seed: int, shape=shape) -> Tensors:
                    c = shape[1]
                    x, mean, var, weight, bias = _randn(seed, shape, (c,), (c,), (c,), (c,))
                    norm = {"running_mean": mean, "running_var": var.abs() + 0.5, "weight": weight, "bias": bias}
                    return {"input": 2 * x + 3, **norm}

                format = formats[i % len(formats)]

                def function(input, format=format, training=training, activation=activation, **norm):
                    input = input.contiguous(memory_format=format)
                    options = {"training": training, "momentum": 0.3, "activation": activation, "negative_slope": 0.2}
                    return functional.batch_norm_act(input, **norm, **options)

                name = f"{shape} {activation}, {'training' if training else 'eval'}"
                yield Case(name, draw, function, ("input", "weight", "bias"))


_MAKERS: dict[str, Callable[[], Iterator[Case]]] = {
    "batch_norm_act": _batch_norm_act,
    "reparameterize": _reparameterize,
    "reparameterize_with_kl": _reparameterize_with_kl,
    "bce_loss": lambda: _bce("bce_loss"),
    "bce_with_logits_loss": lambda: _bce("bce_with_logits_loss"),
    "gaussian_kl_loss": _gaussian_kl_loss,
    "elbo_loss": _elbo_loss,
}

# DCGAN-64's: Cin, Cout, input size, kernel, stride, padding.
LAYERS = {
    "conv_transpose2d_bn_act": [
        (100, 512, 1, 4, 1, 0), (512, 256, 4, 4, 2, 1), (256, 128, 8, 4, 2, 1), (128, 64, 16, 4, 2, 1), (64, 3, 32, 4, 2, 1),
    ],
    "conv2d_bn_act": [
        (512, 1, 4, 4, 1, 0), (64, 64, 16, 3, 1, 1), (256, 512, 8, 4, 2, 1), (128, 256, 16, 4, 2, 1), (64, 128, 32, 4, 2, 1),
        (3, 64, 64, 4, 2, 1),
    ],
}  # fmt: skip
OPS = (*LAYERS, *_MAKERS)


def layer_configuration(op: str, layer: tuple[int, ...], images: int, norm: str) -> Configuration:
    cin, cout, size, kernel, stride, padding = layer
    return Configuration(
        seed=0, function=op, batch=images, in_channels=cin, out_channels=cout, size=(size, size), kernel=(kernel, kernel),
        stride=(stride, stride), padding=(padding, padding), bias=norm == "none", norm=norm, affine=True,
        activation="relu", layout="channels_last", allow_winograd=False,
    )  # fmt: skip


def layers(op: str, images: int) -> list[Configuration]:
    """DCGAN's, in every way they are normalised; the image layer has no batch normalisation, and is made in NCHW too."""
    made = [
        layer_configuration(op, layer, images, norm)
        for layer in LAYERS[op]
        for norm in ("none", "training", "folded", "frozen")
        if norm == "none" or layer[1] > 3
    ]
    return [*_image_layers_in_nchw(made), *made]


def _image_layers_in_nchw(layers: list[Configuration]) -> list[Configuration]:
    return [dataclasses.replace(c, layout="contiguous") for c in layers if c.out_channels == 3]


def random_configurations(op: str, seed: int, count: int) -> Iterator[Configuration]:
    while count > 0:
        configuration = convolutions.random_configuration(seed)
        seed += 1
        if configuration.function == op:
            count -= 1
            yield dataclasses.replace(configuration, variant=None, allow_winograd=False, threads=1)
