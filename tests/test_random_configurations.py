# SPDX-License-Identifier: MIT
"""Random configurations of the two convolution blocks, forward and backward, against float64.

A seed makes a configuration and its values, so the id of a test is all it takes to repeat it.  A test that fails prints
its configuration as a line of Python: paste it below `from tests.test_random_configurations import *`, then make it smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch

from genimg_fast import _backend, _extension, functional
from genimg_fast.backends import cpu
from genimg_fast.ops._check import ACTIVATIONS
from genimg_fast.reference.conv2d_bn_act import conv2d_bn_act as reference_conv2d
from genimg_fast.reference.conv_transpose2d_bn_act import conv_transpose2d_bn_act as reference_conv_transpose2d
from tests import _cases

SEEDS, SEEDS_IN_CI = 2000, 150
MOST_WORK = 4_000_000  # multiply-adds of one convolution
TRANSPOSED = "conv_transpose2d_bn_act"

# Around one, the tiles of Toom-Cook (2, 4) and of the direct kernel (12 rows), and the vector widths (4, 8, 16).
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 23, 33]
CHANNELS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, 96]
# kernel, stride, padding, output_padding of the models' own blocks, which have kernels of their own
COMMON = [
    (4, 2, 1, 0),
    (4, 2, 1, 0),
    (4, 1, 0, 0),
    (3, 1, 1, 0),
    (3, 2, 1, 0),
    (3, 2, 1, 1),
    (2, 2, 0, 0),
    (5, 2, 2, 1),
    (4, 2, 3, 0),
]
NORMS = ("none", "training", "training_without_statistics", "folded", "frozen")  # folded: without gradients
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")
NEAR_KINK = 1e-4


@dataclass(frozen=True)
class Configuration:
    seed: int
    function: str
    batch: int | None  # None: unbatched
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    norm: str = "none"
    affine: bool = False
    activation: str = "none"
    layout: str = "contiguous"
    weight_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    backend: str = "native"
    isa: str = "portable"
    variant: str | None = None
    allow_winograd: bool = True
    threads: int = 1

    @property
    def transposed(self) -> bool:
        return self.function == TRANSPOSED

    @property
    def output_size(self) -> tuple[int, int]:
        def axis(size: int, k: int, s: int, p: int, o: int, d: int) -> int:
            reach = d * (k - 1) + 1
            return (size - 1) * s - 2 * p + reach + o if self.transposed else (size + 2 * p - reach) // s + 1

        height, width = (
            axis(*numbers)
            for numbers in zip(
                self.size, self.kernel, self.stride, self.padding, self.output_padding, self.dilation, strict=True
            )
        )
        return height, width

    def is_valid(self) -> bool:
        height, width = self.output_size
        pixels = (self.size[0] * self.size[1]) if self.transposed else height * width
        weights = self.in_channels * self.out_channels // self.groups * self.kernel[0] * self.kernel[1]
        values_per_channel = (self.batch or 0) * height * width
        return (
            min(height, width) >= 1
            and (self.batch or 1) * pixels * weights <= MOST_WORK
            # Of few values normalisation leaves little more than rounding errors.
            and ((values_per_channel >= 12 and weights > self.out_channels) or not self.norm.startswith("training"))
            and (self.batch is not None or self.norm == "none")
        )

    @property
    def native_may_refuse(self) -> bool:
        return self.groups != 1 or self.dilation != (1, 1) or self.batch is None

    @property
    def error_factor(self) -> float:
        winograd = self.allow_winograd if self.variant is None else self.variant.startswith("toom_cook")
        winograd = winograd and self.dtype == torch.float32
        return _cases.ERROR_FACTOR_WINOGRAD if winograd else _cases.ERROR_FACTOR


def random_configuration(seed: int) -> Configuration:
    rng = random.Random(seed)

    def both(draw: Callable[[], int]) -> tuple[int, int]:
        """Of height and width, often the same."""
        first = draw()
        return (first, first) if rng.random() < 0.6 else (first, draw())

    def one_of(*weighted: tuple[object, int]):
        return rng.choices([value for value, _ in weighted], [weight for _, weight in weighted])[0]

    while True:
        function = rng.choice([TRANSPOSED, "conv2d_bn_act"])
        groups = one_of((1, 9), (2, 1), (3, 1))
        if rng.random() < 0.6:
            kernel, stride, padding, output_padding = ((n, n) for n in rng.choice(COMMON))
            dilation = (1, 1)
        else:
            kernel, stride = both(lambda: rng.randint(1, 9)), both(lambda: rng.randint(1, 4))
            padding = both(lambda: rng.randint(0, 4))
            dilation = both(lambda: one_of((1, 5), (2, 1), (3, 1)))
            output_padding = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        configuration = Configuration(
            seed=seed,
            function=function,
            batch=one_of((None, 1), (0, 1), (1, 8), (2, 8), (3, 4), (5, 4), (13, 2)),
            in_channels=rng.choice(CHANNELS) * groups,
            out_channels=rng.choice(CHANNELS) * groups,
            size=both(lambda: rng.choice(SIZES)),
            kernel=kernel,
            stride=stride,
            padding=padding,
            output_padding=output_padding if function == TRANSPOSED else (0, 0),
            dilation=dilation,
            groups=groups,
            bias=rng.random() < 0.5,
            norm=rng.choice(NORMS),
            affine=rng.random() < 0.8,
            activation=rng.choice(list(ACTIVATIONS)),
            layout=rng.choice(LAYOUTS),
            weight_layout=one_of(("contiguous", 3), ("channels_last", 1), ("sliced", 1)),
            grad_layout=rng.choice(LAYOUTS),
            dtype=one_of((torch.float32, 6), (torch.float64, 1)),
            backend=one_of(("native", 3), ("auto", 1)),
            isa=rng.choice(["portable", "avx2", "avx512"]),
            variant=one_of((None, 4), *((name, 1) for name in cpu.VARIANTS)),
            allow_winograd=rng.random() < 0.7,
            threads=rng.randint(1, 3),
        )
        if configuration.is_valid():
            return configuration


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    return dict(_cases.layouts(tuple(tensor.shape))).get(layout, lambda t: t)(tensor)


def make_tensors(configuration: Configuration) -> dict[str, torch.Tensor | None]:
    """The tensor arguments by name, contiguous, and `grad`, the upstream gradient."""
    c = configuration
    batch = () if c.batch is None else (c.batch,)
    per_group = (c.out_channels if c.transposed else c.in_channels) // c.groups
    shapes = {
        "input": (*batch, c.in_channels, *c.size),
        "weight": (c.in_channels if c.transposed else c.out_channels, per_group, *c.kernel),
        "grad": (*batch, c.out_channels, *c.output_size),
    }
    channels = []
    if c.bias:
        channels += ["bias"]
    if c.norm in ("training", "folded", "frozen"):
        channels += ["running_mean", "running_var"]
    if c.affine and c.norm != "none":
        channels += ["bn_weight", "bn_bias"]
    shapes |= dict.fromkeys(channels, (c.out_channels,))
    tensors = {n: _cases.randn(s, c.dtype, 1000 * c.seed + i) for i, (n, s) in enumerate(shapes.items())}
    tensors["weight"] = tensors["weight"] * 2 / max(1, tensors["weight"][0].numel()) ** 0.5
    if "running_var" in tensors:
        tensors["running_var"] = tensors["running_var"].abs() + 0.5
    names = ("input", "weight", "bias", "running_mean", "running_var", "bn_weight", "bn_bias", "grad")
    return {name: tensors.get(name) for name in names}


def keywords(configuration: Configuration) -> dict[str, object]:
    c = configuration
    options = {name: getattr(c, name) for name in ("stride", "padding", "dilation", "groups", "activation")}
    if c.transposed:
        options["output_padding"] = c.output_padding
    return {**options, "training": c.norm.startswith("training"), "momentum": 0.3, "negative_slope": 0.2}


def run(function: Callable[..., torch.Tensor], tensors, configuration: Configuration) -> dict[str, torch.Tensor]:
    """Output, running statistics afterwards and the gradients, by name."""
    c = configuration
    arguments = {n: None if t is None else t.clone() for n, t in tensors.items() if n != "grad"}
    arguments["input"] = laid_out(arguments["input"], c.layout)
    arguments["weight"] = laid_out(arguments["weight"], c.weight_layout)
    leaves = {n: t for n, t in arguments.items() if t is not None and not n.startswith("running")}
    with torch.set_grad_enabled(c.norm != "folded"):
        for leaf in leaves.values():
            leaf.requires_grad_(c.norm != "folded")
        output = function(*arguments.values(), **keywords(c))
    results = {"output": output.detach()}
    results |= {n: arguments[n] for n in ("running_mean", "running_var") if arguments[n] is not None}
    if c.norm != "folded":
        grads = torch.autograd.grad(output, list(leaves.values()), laid_out(tensors["grad"], c.grad_layout))
        results |= {f"gradient of {n}": g for n, g in zip(leaves, grads, strict=True)}
    if c.norm.startswith("training"):
        results.pop("gradient of bias", None)  # normalisation removes a bias: its gradient is 0, all noise
    return results


def run_native(tensors, configuration: Configuration) -> dict[str, torch.Tensor]:
    """The public function under the configuration's settings.  Only a documented refusal may send it to "auto"."""
    c = configuration
    function = getattr(functional, c.function)
    before = _extension.cpu_isa(), cpu.allow_winograd, torch.get_num_threads()
    with ExitStack() as restored:
        restored.callback(_extension.set_cpu_isa, before[0])
        restored.callback(setattr, cpu, "allow_winograd", before[1])
        restored.callback(torch.set_num_threads, before[2])
        _extension.set_cpu_isa(
            c.isa if c.isa in _extension.available_cpu_isas() else _extension.available_cpu_isas()[-1]
        )
        cpu.allow_winograd = c.allow_winograd
        torch.set_num_threads(c.threads)
        if c.variant is not None:
            restored.enter_context(cpu.force_variant(c.variant))
        try:
            with _backend.use_backend(c.backend):
                return run(function, tensors, c)
        except RuntimeError as error:
            refusal = f"{c.function}: backend 'native' was asked for but cannot serve this call: "
            if c.backend != "native" or not c.native_may_refuse or not str(error).startswith(refusal):
                raise
        with _backend.use_backend("auto"):
            return run(function, tensors, c)


def magnification(c: Configuration, reference, doubles: dict) -> float:
    """How many times as large a rounding of the convolution is once the batch is normalised: |values| / their deviation."""
    raw = reference(doubles["input"], doubles["weight"], doubles["bias"], *[None] * 4,
                    **(keywords(c) | {"activation": "none", "training": False}))  # fmt: skip
    values = raw.transpose(0, 1).flatten(1)
    if values.shape[1] < 2:
        return 1.0
    return (values.square().mean(1).sqrt() / values.std(1, correction=0).clamp(min=1e-6)).max().item()


def check(
    configuration: Configuration, run_native=run_native, *, device="cpu", near_kink=NEAR_KINK, tf32=False
) -> dict[str, float]:
    """The error of each result as a multiple of PyTorch's own, or of one rounding if that is more.

    Raises:
        AssertionError: a result is less accurate than tests/_cases.py asks.
    """
    c = configuration
    reference = reference_conv_transpose2d if c.transposed else reference_conv2d
    tensors = {n: None if t is None else t.to(device) for n, t in make_tensors(c).items()}
    doubles = {n: None if t is None else t.double() for n, t in tensors.items()}
    if c.activation in ("relu", "leaky_relu"):
        # On which side of the kink a value lies that nearly touches it is decided by rounding: no gradient passes there.
        arguments = {n: None if t is None else t.clone() for n, t in doubles.items() if n != "grad"}
        before = reference(*arguments.values(), **(keywords(c) | {"activation": "none"}))
        for some in (tensors, doubles):
            some["grad"] = torch.where(before.abs() < near_kink, 0, some["grad"])
    magnified = magnification(c, reference, doubles) if c.norm.startswith("training") else 1.0
    exact = run(reference, doubles, c)
    torch_results = run(reference, tensors, c)
    allowed = [torch_results]
    if tf32:  # PyTorch need not use the tensor cores for the same products
        rounded = {n: _cases.round_to_tf32(t) if n in ("input", "weight", "grad") else t for n, t in doubles.items()}
        allowed.append({n: t.float() for n, t in run(reference, rounded, c).items()})
    actual = run_native(tensors, c)
    assert actual.keys() == exact.keys()
    factors = {}
    for name, value in actual.items():
        is_sum = name in ("gradient of bias", "gradient of bn_weight", "gradient of bn_bias")
        size_of_terms = tensors["grad"].norm().item() / c.out_channels**0.5 if is_sum else 0.0
        if c.norm.startswith("training"):
            size_of_terms = max(size_of_terms, magnified * exact[name].square().mean().sqrt().item())
        error, *errors = ((t.double() - exact[name]).norm().item() for t in (value, *(a[name] for a in allowed)))
        torch_error = errors[0]
        least_accurate = allowed[errors.index(max(errors))][name]
        _cases.assert_accurate(value, exact[name], least_accurate, c.error_factor, name, size_of_terms, tf32)
        rounding = (_cases.EPS_OF_TF32 if tf32 else torch.finfo(value.dtype).eps) * exact[name].norm().item()
        factors[name] = error / max(torch_error, rounding, 1e-30)
    return factors


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[pytest.mark.slow] if s >= SEEDS_IN_CI else []) for s in range(SEEDS)]
)
def test_random_configuration(seed):
    configuration = random_configuration(seed)
    print(f"check({configuration})")
    check(configuration)
