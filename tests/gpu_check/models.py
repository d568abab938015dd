# SPDX-License-Identifier: MIT
"""The checks that take a model: the sampler, a captured training pass, an upsampling before a convolution, and that the check on first
use finds nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn

from genimg_fast import Sampler, _first_use, _parity, fuse, models, use_backend

Results = dict[str, torch.Tensor]


def captured(function: Callable[[], Results]) -> Callable[[], Results]:
    """`function` as a CUDA graph.  What it returns is overwritten by the next call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = function()

    def replay() -> Results:
        for t in results.values():  # what the replay does not write is seen
            t.detach().fill_(float("nan") if t.is_floating_point() else 0)
        graph.replay()
        return results

    return replay


def run(check: Callable[[torch.dtype], None], found: Any) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with found.case(str(dtype).removeprefix("torch.")):
            check(dtype)


def sampler(dtype: torch.dtype) -> None:
    """Images, also those of changed weights and of streams, are those of the model called by itself."""
    model = _dcgan(dtype).eval()

    def seeded(where: str = "cuda") -> torch.Generator:
        return torch.Generator(where).manual_seed(0)

    for where in ("cuda", "cpu"):
        images = Sampler(model, 8, generator=seeded(where)).sample(8)
        torch.testing.assert_close(images, model.sample(8, generator=seeded(where)), rtol=0, atol=_ONE_STEP)
    ways = Sampler(model, 8, generator=seeded()), Sampler(model, 8, generator=seeded())
    streamed, endless = torch.cat(list(ways[0].stream(20))), torch.cat(list(islice(ways[1], 3)))
    assert not streamed.is_cuda
    torch.testing.assert_close(streamed, endless[:20].cpu(), rtol=0, atol=_ONE_STEP)

    sampler = Sampler(model, 8, generator=seeded())
    before = sampler.sample(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    sampler.generator.manual_seed(0)  # type: ignore[union-attr]
    after = sampler.sample(8)
    torch.testing.assert_close(after, model.sample(8, generator=seeded()), rtol=0, atol=_ONE_STEP)
    assert not torch.equal(before, after)

    # What others drop, such as packed weights that a pass with gradients forgets, the graph still holds.
    model.latent_to_images(torch.randn(8, *model.latent_shape, device="cuda", dtype=dtype)).sum().backward()
    junk = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(20)]
    del junk
    sampler.generator.manual_seed(0)  # type: ignore[union-attr]
    assert torch.equal(sampler.sample(8), after)


_ONE_STEP = 1 / 256  # of an 8-bit image: with and without a graph other kernels of cuDNN's may be chosen


def captured_training(dtype: torch.dtype) -> None:
    """Forward and backward of a generator in training mode, as a graph, on other noise: the bits of a plain run."""
    generator = _dcgan(dtype).train().generator
    parameters = list(generator.parameters())
    z = torch.randn(8, 100, 1, 1, device="cuda", dtype=dtype)

    def training() -> Results:
        images = generator(z)
        gradients = torch.autograd.grad(images, parameters, torch.ones_like(images))
        return {"images": images, **{f"gradient {i}": g for i, g in enumerate(gradients)}}

    replay = captured(training)
    z.normal_()
    expected = {name: t.detach().clone() for name, t in training().items()}
    for name, t in replay().items():
        assert torch.equal(t, expected[name]), f"{name} of the graph differs from that of a plain run"


def resize_convolution(dtype: torch.dtype) -> None:
    """An upsampling and its convolution as one kernel err no more than twice as much as PyTorch's two, forward and backward."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # the default: else the kernels take no float32
    torch.manual_seed(0)
    exact = nn.Sequential(  # without kinks, at which a rounding decides on a whole gradient
        *(nn.Upsample(scale_factor=2), nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Sigmoid()),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(64, 3, 3, padding=1), nn.Tanh()),
    ).to("cuda", torch.float64)
    x = torch.randn(8, 32, 9, 8, device="cuda", dtype=torch.float64).to(dtype).double()
    plain = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(plain.state_dict())  # what is exact has its weights
    fused = copy.deepcopy(plain)
    fuse(fused)

    def results(model: nn.Module, x: torch.Tensor) -> Results:
        x = x.clone().requires_grad_()
        y = model.train()(x)
        wanted = [x, *(p for p in model.parameters() if p.dim() > 1)]
        grads = torch.autograd.grad(y.double().square().sum(), wanted)
        values = {f"gradient {i}": g for i, g in enumerate(grads)}
        return {"images": y, **values, "images in eval": model.eval()(x)}

    with use_backend("native"):
        ours = results(fused, x.to(dtype))
    theirs, right = results(plain, x.to(dtype)), results(exact, x)
    for name, value in right.items():
        error, allowed = ((t[name].double() - value).square().mean().sqrt().item() for t in (ours, theirs))
        least = (2e-3 if dtype == torch.float32 else torch.finfo(dtype).eps) * value.abs().max().item()
        assert error <= max(2 * allowed, least), f"{name}: rms error {error:.2e}, PyTorch's {allowed:.2e}"


def first_use(dtype: torch.dtype) -> None:
    """It trusts every op: a false alarm would send users to the reference."""
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # the default: else the kernels take no float32
    for op in _parity.CASES:
        finding = _first_use._check(op, torch.device("cuda"), dtype)
        assert finding is None, finding


def _dcgan(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return models.create("dcgan", image_size=32, width=16).to("cuda", dtype)


CHECKS = {
    "sampler": sampler,
    "captured training": captured_training,
    "resize-convolution": resize_convolution,
    "check on first use": first_use,
}
