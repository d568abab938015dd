# SPDX-License-Identifier: MIT
"""The public functions: drop-in for compositions of `torch.nn.functional`, each equal to the expression it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genimg_fast import ops

__all__ = [
    "batch_norm_act",
    "bce_loss",
    "bce_with_logits_loss",
    "conv2d_bn_act",
    "conv_transpose2d_bn_act",
    "elbo_loss",
    "gan_loss",
    "gaussian_kl_loss",
    "gradient_penalty",
    "reparameterize",
    "reparameterize_with_kl",
    "sync_batch_norm_act",
]


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Batch normalisation (Ioffe and Szegedy 2015) and activation in the fewest passes over memory.

    Equal to ``activation(F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps))``. Only
    ``input`` is kept for backward, which recomputes the normalised value and the activation's mask. In float32 on the CPU
    tanh errs by at most 1.4 ulp and sigmoid by 2.3.

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or any (N, C, ...).
        running_mean, running_var: (C,). With ``training`` they may be None, else they are updated in place.
        weight, bias: (C,), the affine part. These and the running statistics have input's dtype, or are float32 with
            a half-precision input.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        The shape, dtype and memory format of input. Under autocast, too, the dtype is input's.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line; ValueError if
            ``training`` meets a single value per channel.
    """
    return ops.batch_norm_act(
        input, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def conv2d_bn_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Convolution, batch normalisation and activation in one call: a block of an encoder or a discriminator.

    Equal to ``activation(F.batch_norm(F.conv2d(input, weight, bias, ...), running_mean, running_var, bn_weight, bn_bias,
    training, momentum, eps))``, without the batch normalisation when not training and no running statistics are given.
    The block is that of DCGAN's discriminator (Radford, Metz and Chintala 2016).

    Args:
        input: (N, Cin, H, W), or (Cin, H, W) without batch normalisation.
        weight: (Cout, Cin / groups, kH, kW), of input's dtype.
        bias: (Cout,), the convolution's, of input's dtype.
        running_mean, running_var: (Cout,). With ``training`` they are updated in place, as ``F.batch_norm`` does.
        bn_weight, bn_bias: (Cout,), the affine part of the batch normalisation. These and the running statistics have
            input's dtype, or are float32 with a half-precision input.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        stride, padding, groups, dilation: of the convolution, as in ``F.conv2d``; padding in numbers.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        (N, Cout, H', W') with H' = (H + 2 * padding - dilation * (kH - 1) - 1) // stride + 1, in input's memory format
        and dtype; under autocast in autocast's.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line; ValueError if
            ``training`` meets a single value per channel.
        RuntimeError: PyTorch's own, where no output is left, as of a kernel larger than the padded input.
    """
    return ops.conv2d_bn_act(
        input, weight, bias, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        stride=stride, padding=padding, groups=groups, dilation=dilation, activation=activation,
        negative_slope=negative_slope,
    )  # fmt: skip


def conv_transpose2d_bn_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Transposed convolution, batch normalisation and activation in one call: a block of a convolutional generator.

    Equal to ``activation(F.batch_norm(F.conv_transpose2d(input, weight, bias, ...), running_mean, running_var, bn_weight,
    bn_bias, training, momentum, eps))``, without the batch normalisation when not training and no running statistics are
    given. The block is that of DCGAN (Radford, Metz and Chintala 2016).

    Args:
        input: (N, Cin, H, W), or (Cin, H, W) without batch normalisation.
        weight: (Cin, Cout / groups, kH, kW), of input's dtype.
        bias: (Cout,), the convolution's, of input's dtype.
        running_mean, running_var: (Cout,). With ``training`` they are updated in place, as ``F.batch_norm`` does.
        bn_weight, bn_bias: (Cout,), the affine part of the batch normalisation. These and the running statistics have
            input's dtype, or are float32 with a half-precision input.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        stride, padding, output_padding, groups, dilation: of the convolution, as in ``F.conv_transpose2d``.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        (N, Cout, H', W') with H' = (H - 1) * stride - 2 * padding + dilation * (kH - 1) + output_padding + 1, in input's
        memory format and dtype; under autocast in autocast's.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line; ValueError if
            ``training`` meets a single value per channel.
        RuntimeError: PyTorch's own, where padding leaves no output.
    """
    return ops.conv_transpose2d_bn_act(
        input, weight, bias, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def bce_loss(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, *, reduction: str = "mean"
) -> torch.Tensor:
    """Binary cross-entropy of probabilities; the gradient is made in the forward pass.

    Equal to ``F.binary_cross_entropy(input, target, weight, reduction=reduction)``, its logarithms clamped at -100
    included, but legal under autocast, where it is computed in float32. In float32 on the CPU log(input) errs by at most
    0.8 ulp and log(1 - input) by 1.5.

    Args:
        input: probabilities in [0, 1], any shape.
        target: of input's shape and dtype, in [0, 1].
        weight: factor of each element's loss, of a shape that broadcasts to input's.
        reduction: "none", "mean" or "sum".

    Returns:
        A scalar, or for "none" a tensor of input's shape.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
        RuntimeError: on the CPU, an input or a target outside [0, 1]. On CUDA, where finding out would stop the host,
            such a value makes the loss NaN (and trips torch's device-side assertion on the reference backend).
    """
    return ops.bce_loss(input, target, weight, reduction=reduction)


def bce_with_logits_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    pos_weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Binary cross-entropy of logits; the gradient is made in the forward pass.

    Equal to ``F.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight, reduction=reduction)``.
    Under autocast it is computed in float32. In float32 on the CPU its exp errs by at most 1.1 ulp, its log1p by 1.9 and
    the sigmoid of its gradient by 2.3.

    Args:
        input: logits, any shape.
        target: of input's shape, usually in [0, 1].
        weight: factor of each element's loss, of a shape that broadcasts to input's.
        pos_weight: factor of the part of the loss that belongs to the target, of a shape that broadcasts to input's.
        reduction: "none", "mean" or "sum".

    Returns:
        A scalar, or for "none" a tensor of input's shape.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
    """
    return ops.bce_with_logits_loss(input, target, weight, pos_weight=pos_weight, reduction=reduction)


def gaussian_kl_loss(mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, I)): how far a VAE's posterior is from its prior (Kingma and Welling 2014, appendix B).

    Equal to ``-0.5 * (1 + logvar - mu**2 - logvar.exp())``, reduced. Under autocast it is computed in float32. In float32
    on the CPU its exp errs by at most 1.1 ulp.

    Args:
        mu: the means, any shape.
        logvar: the logarithms of the variances, of mu's shape and dtype.
        reduction: "none", "mean" over all elements, "sum", or "batchmean": the sum divided by the size of dimension 0, which is
            how `elbo_loss` weighs the divergence.

    Returns:
        A scalar, or for "none" a tensor of mu's shape.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
    """
    return ops.gaussian_kl_loss(mu, logvar, reduction)


def elbo_loss(
    recon: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    reconstruction: str = "bce_with_logits",
    beta: float = 1.0,
    reduction: str = "batchmean",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a VAE, its negative evidence lower bound (Kingma and Welling 2014; beta: Higgins et al. 2017).

    Equal to ``reconstruction = F.binary_cross_entropy_with_logits(recon, target, reduction="sum") / N``,
    ``kl = gaussian_kl_loss(mu, logvar, "batchmean")`` and ``total = reconstruction + beta * kl``, with all gradients made
    in the forward pass. Any of the three may be differentiated. Under autocast it is computed in float32. With another
    reconstruction than the three below, take the divergence from `reparameterize_with_kl`, together with the sample.

    Args:
        recon: the decoder's output, (N, ...): logits for "bce_with_logits", probabilities for "bce".
        target: the images, of recon's shape and dtype.
        mu: the posterior's means, (N, ...).
        logvar: the logarithms of its variances, of mu's shape and dtype.
        reconstruction: "bce_with_logits", "bce" or "mse" (the squared error).
        beta: weight of the divergence in the total.
        reduction: "batchmean": both sums divided by N. "sum". "mean": each term the mean over its own elements.

    Returns:
        (total, reconstruction, kl), scalars.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
        RuntimeError: for "bce", what `bce_loss` says of values outside [0, 1].
    """
    return ops.elbo_loss(recon, target, mu, logvar, reconstruction=reconstruction, beta=beta, reduction=reduction)


def gan_loss(logits: torch.Tensor, real: bool, kind: str = "bce", *, generator: bool = False) -> torch.Tensor:
    """The loss of one player of a GAN on one batch.

    The discriminator minimises ``gan_loss(D(x), True) + gan_loss(D(G(z).detach()), False)``, and the generator
    ``gan_loss(D(G(z)), True, generator=True)``. Equal, as a mean over the logits l, to

    ===============  =================  =======================  =========  ==============
    kind             discriminator on   discriminator on         generator  source
                     a real image       a fake image
    ===============  =================  =======================  =========  ==============
    "bce"            -log sigmoid(l)    -log(1 - sigmoid(l))     as real    Goodfellow et al. 2014, non-saturating
    "hinge"          relu(1 - l)        relu(1 + l)              -l         Lim and Ye 2017
    "wasserstein"    -l                 l                        as real    Arjovsky et al. 2017
    "lsgan"          (l - 1)^2          l^2                      as real    Mao et al. 2017
    ===============  =================  =======================  =========  ==============

    Args:
        logits: the discriminator's output, any shape, before any sigmoid. Under autocast they are taken to float32.
        real: what the logits ought to say of the images.
        kind: "bce", "hinge", "wasserstein" or "lsgan".
        generator: the generator's loss rather than the discriminator's. Only "hinge" tells them apart.

    Returns:
        A scalar.

    Raises:
        TypeError: logits that are not a floating-point tensor.
        ValueError: another kind, or ``generator=True`` with ``real=False``.
    """
    return ops.gan_loss(logits, real, kind, generator=generator)


def gradient_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The penalty of WGAN-GP (Gulrajani et al. 2017): ``((||grad D(x)||_2 - 1)^2).mean()`` at random mixtures x.

    Each x lies on the line between a real and a fake image, at a place drawn uniformly. The paper adds it to the
    discriminator's loss with a weight of 10, and leaves batch normalisation out of the discriminator, since the penalty
    is on the gradient of each image by itself. Differentiable with respect to the discriminator's parameters.

    Args:
        discriminator: maps (N, ...) images to scores, one or more an image.
        real, fake: (N, ...), of the same shape and dtype. No gradient flows into them.
        generator: of the random numbers; on real's device.

    Returns:
        A scalar, in float32 or wider.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
        RuntimeError: within ``torch.inference_mode``, which records no gradient.
    """
    return ops.gradient_penalty(discriminator, real, fake, generator=generator)


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """A sample of N(mu, exp(logvar)) through which gradient flows (Kingma and Welling 2014).

    Equal to ``mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)``, with other noise of the same distribution: Philox4x32-10
    and Box-Muller, float32 whatever the dtype, drawn in the kernel and drawn again in backward, so that it is never stored.

    One call takes one 63-bit seed from torch's generator of mu's device; ``torch.manual_seed`` therefore reproduces it. The
    same seed gives the same noise on every device, layout, dtype, backend and number of threads (floats to a few ulp). Under
    ``torch.vmap`` the seed obeys ``randomness``: "different" draws one an example, "same" one for all, "error" raises.

    Args:
        mu, logvar: of any shape, both the same, in the same dtype. Under autocast they are taken in float32.
        generator: draws the seed; default torch's own of mu's device.

    Returns:
        z, of mu's shape and memory format, and of its dtype; float32 under autocast.

    Raises:
        TypeError, ValueError: arguments of different dtypes, shapes or devices, named in one line.
        RuntimeError: under ``torch.vmap`` with ``randomness="error"``.
    """
    return ops.reparameterize(mu, logvar, generator=generator)


def reparameterize_with_kl(
    mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean", *, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample of N(mu, exp(logvar)) and its KL divergence from N(0, I), in one pass over mu and logvar, and one backward.

    Equal to ``reparameterize(mu, logvar, generator=generator), gaussian_kl_loss(mu, logvar, reduction)``, with the same
    noise for the same seed. Either may be left unused. On CUDA one kernel makes both, and one both gradients.

    It is for models with a reconstruction loss of their own (perceptual, adversarial, another likelihood), or with several
    layers of latents, each with its divergence. Where the loss is that of `elbo_loss`, sample with `reparameterize`: `elbo_loss`
    makes the divergence in the pass that reads the images, and its gradients with it.

    Args:
        mu, logvar: of any shape, both the same, in the same dtype. Under autocast they are taken in float32.
        reduction: of the divergence: "none", "mean" over all elements, "sum", or "batchmean": the sum divided by the size
            of dimension 0, which is how `elbo_loss` weighs it.
        generator: draws the seed of the noise; default torch's own of mu's device.

    Returns:
        (z, kl): z of mu's shape, dtype and memory format; kl a scalar, or for "none" a tensor like z.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
    """
    return ops.reparameterize_with_kl(mu, logvar, reduction, generator=generator)


def sync_batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
    process_group: Any = None,
) -> torch.Tensor:
    """Batch normalisation in training with the statistics of the batches of all processes, and activation.

    Equal to the process's share of ``batch_norm_act(torch.cat(inputs), running_mean, running_var, weight, bias,
    training=True, ...)`` with the inputs of all processes, as `torch.nn.SyncBatchNorm` is, on the CPU too. The batches may
    differ in size, and some may be empty. The processes talk once forward and once backward. Mean and variance are joined
    by the formula of Chan, Golub and LeVeque (1983). The gradients of ``weight`` and ``bias`` are those of this process:
    `torch.nn.parallel.DistributedDataParallel` averages them.

    With fewer than two processes it is `batch_norm_act`.

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or any (N, C, ...), of the same dtype in all processes.
        running_mean, running_var: (C,), updated in place, or None. The variance is the unbiased one of all values.
        weight, bias: (C,), the affine part. These and the running statistics have input's dtype, or are float32 with
            a half-precision input.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".
        process_group: the processes, as of `torch.distributed`; None is all of them.

    Returns:
        The shape, dtype and memory format of input.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
        RuntimeError: within a transform of `torch.func` or forward-mode AD, with several processes.
    """
    return ops.sync_batch_norm_act(
        input, running_mean, running_var, weight, bias, momentum=momentum, eps=eps, activation=activation,
        negative_slope=negative_slope, process_group=process_group,
    )  # fmt: skip
