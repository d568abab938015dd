# SPDX-License-Identifier: MIT
"""The gradient penalty of WGAN-GP, in plain PyTorch: its second derivatives come from the ops in the discriminator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genimg_fast.ops import _check


def gradient_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    op = "gradient_penalty"
    if not callable(discriminator):
        raise TypeError(f"{op}: discriminator must be a module or a function, got {type(discriminator).__name__}")
    _check.tensor(op, real=real, fake=fake)
    _check.same_dtype(op, real=real, fake=fake)
    _check.same_shape(op, real=real, fake=fake)
    if real.dim() < 2:
        raise ValueError(f"{op}: real and fake must be batches (N, ...), got shape {tuple(real.shape)}")
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{op}: torch.inference_mode records no gradient, which the penalty is of; use torch.no_grad"
        )
    _check.generator(op, generator)
    one_each = (real.shape[0], *[1] * (real.dim() - 1))
    # given a generator, even None, torch.rand takes no dynamic size
    drawn_by: dict[str, Any] = {} if generator is None else {"generator": generator}
    share = torch.rand(one_each, dtype=real.dtype, device=real.device, **drawn_by)
    mixed = torch.lerp(fake.detach(), real.detach(), share).requires_grad_()
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():  # the penalty is a gradient: under no_grad too, where it is only looked at
        scores = discriminator(mixed)
        score = scores.sum() if isinstance(scores, torch.Tensor) else None
    if not isinstance(scores, torch.Tensor) or scores.shape[:1] != real.shape[:1]:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(
            f"{op}: discriminator must give scores of each image, (N, ...) with N = {len(real)}, got {got}; "
            "reshape what it gives of parts of an image to (N, -1)"
        )
    gradient = None
    if score is not None and score.requires_grad:
        (gradient,) = torch.autograd.grad(score, mixed, create_graph=create_graph, allow_unused=True)
    if gradient is None:
        raise ValueError(f"{op}: the scores of discriminator do not depend on the images that it is given")
    norm = torch.linalg.vector_norm(
        gradient.flatten(1), dim=1, dtype=torch.promote_types(gradient.dtype, torch.float32)
    )
    return (norm - 1).square().mean()
