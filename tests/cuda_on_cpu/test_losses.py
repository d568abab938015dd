# SPDX-License-Identifier: MIT
"""bce_loss, bce_with_logits_loss and elbo_loss."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# Around the packs (4 float32 or 8 half elements), a warp, and more than one block of packs.
SIZES = (0, 1, 3, 4, 5, 7, 8, 9, 17, 33, 2053, 5000)
GRAD_SCALE, SUM_SCALE = 0.7, 0.37


def bce_with_logits(x, t, w, p):
    weight = 1 + (p - 1) * t
    softplus = np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)
    sigmoid = 1 / (1 + np.exp(-x))
    return w * ((1 - t) * x + weight * softplus), w * (p * t * (sigmoid - 1) + (1 - t) * sigmoid)


def bce(x, t, w, _):
    with np.errstate(divide="ignore"):
        loss = -(t * np.maximum(np.log(x), -100) + (1 - t) * np.maximum(np.log1p(-x), -100))
    return w * loss, w * (x - t) / np.maximum(x * (1 - x), 1e-12)


def arrays(memory, dtype, size, misaligned, logits):
    generator = np.random.default_rng(size)
    x = 3 * generator.standard_normal(size) if logits else generator.uniform(0.02, 0.98, size)
    values = (x, generator.uniform(0, 1, size), generator.uniform(0.5, 2, size), generator.uniform(0.5, 2, size))
    return [memory.input(v, dtype, misaligned) for v in values]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("logits", [False, True])
def test_bce(kernels, memory, logits, weighted, dtype):
    for size in SIZES:
        for misaligned in (0, 1):
            what = f"size {size}, misaligned by {misaligned} elements"
            x, t, w, p = arrays(memory, dtype, size, misaligned, logits)
            exact, exact_grad = (bce_with_logits if logits else bce)(
                decode(x, dtype), decode(t, dtype),
                decode(w, dtype) if weighted else 1.0, decode(p, dtype) if weighted else 1.0,
            )  # fmt: skip
            weights = [w, p][: 1 + logits] if weighted else [None, None][: 1 + logits]
            run = kernels.bce_with_logits_loss if logits else kernels.bce_loss
            count = kernels.bce_with_logits_partials(size) if logits else kernels.bce_partials(size)

            loss, grad = memory.output(size, dtype, misaligned), memory.output(size, np.float32, misaligned)
            partial = memory.output(count, np.float32)
            run(dtype, x, t, *weights, loss, grad, GRAD_SCALE, size, partial, 1.0, None, None)
            assert_accurate(loss, exact, dtype, what)
            assert_accurate(grad, GRAD_SCALE * exact_grad, "float32", what)

            total = memory.output(1, dtype)
            run(dtype, x, t, *weights, None, None, 0.0, size, partial, SUM_SCALE, total, None)
            assert_accurate(total, np.array([SUM_SCALE * exact.sum()]), dtype, what)


def test_bce_clamps_its_logarithms_as_torch_does(kernels, memory):
    x, t = (
        memory.input(np.array([0.0, 1.0, 0.0, 1.0]), "float32"),
        memory.input(np.array([1.0, 0.0, 0.0, 1.0]), "float32"),
    )
    loss, partial = memory.output(4, "float32"), memory.output(kernels.bce_partials(4), np.float32)
    kernels.bce_loss("float32", x, t, None, loss, None, 0.0, 4, partial, 1.0, None, None)
    np.testing.assert_array_equal(loss, [100, 100, 0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bce_with_logits", "bce", "mse"])
def test_elbo(kernels, memory, kind, dtype):
    beta, recon_scale, kl_scale = 0.3, 0.25, 0.5
    for image_size, latent_size, misaligned in ((1, 1, 0), (17, 5, 1), (2053, 33, 0), (5000, 260, 1)):
        x, t, *_ = arrays(memory, dtype, image_size, misaligned, logits=kind != "bce")
        generator = np.random.default_rng(latent_size)
        mu, logvar = (memory.input(generator.standard_normal(latent_size), dtype, misaligned) for _ in range(2))
        exact_x, exact_t, m, v = (decode(a, dtype) for a in (x, t, mu, logvar))
        if kind == "mse":
            loss, grad = (exact_x - exact_t) ** 2, 2 * (exact_x - exact_t)
        else:
            loss, grad = (bce if kind == "bce" else bce_with_logits)(exact_x, exact_t, 1.0, 1.0)
        kl = 0.5 * (m**2 + np.exp(v) - 1 - v)
        exact = np.array([recon_scale * loss.sum(), kl_scale * kl.sum()])

        partial = memory.output(kernels.elbo_partials(image_size, latent_size), np.float32)
        total, reconstruction, divergence = (memory.output(1, dtype) for _ in range(3))
        grads = [memory.output(size, np.float32, misaligned) for size in (image_size, latent_size, latent_size)]
        code = {"bce_with_logits": 0, "bce": 1, "mse": 2}[kind]
        kernels.elbo_loss(
            dtype, code, x, t, mu, logvar, total, reconstruction, divergence, *grads, recon_scale, kl_scale, beta,
            image_size, latent_size, partial, None,
        )  # fmt: skip
        assert_accurate(reconstruction, exact[:1], dtype, "reconstruction")
        assert_accurate(divergence, exact[1:], dtype, "kl")
        assert_accurate(total, exact[:1] + beta * exact[1:], dtype, "total")
        assert_accurate(grads[0], recon_scale * grad, "float32", "grad_recon")
        assert_accurate(grads[1], kl_scale * m, "float32", "grad_mu")
        assert_accurate(grads[2], kl_scale * 0.5 * (np.exp(v) - 1), "float32", "grad_logvar")
