# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu import test_bce_loss, test_bce_with_logits_loss
from tests.cuda_on_cpu.memory import GRADIENT_DTYPE, LOSS_DTYPES, assert_accurate, decode

pytestmark = pytest.mark.usefixtures("schedule")

# The numbers of csrc/common/reconstruction.h.
RECONSTRUCTIONS = {
    "bce_with_logits": (0, lambda x, t: test_bce_with_logits_loss.exact_loss_and_gradient(x, t, 1.0)),
    "bce": (1, test_bce_loss.exact_loss_and_gradient),
    "mse": (2, lambda x, t: ((x - t) ** 2, 2 * (x - t))),
}


def random(size, seed):
    return np.random.default_rng(seed).uniform(0.01, 0.99, size)


@pytest.mark.parametrize(("dtype", "of_target", "of_loss"), LOSS_DTYPES)
@pytest.mark.parametrize("reconstruction", RECONSTRUCTIONS)
@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_values_and_gradients(kernels, memory, misaligned, with_grad, reconstruction, dtype, of_target, of_loss):
    code, exact_loss_and_gradient = RECONSTRUCTIONS[reconstruction]
    recon_scale, kl_scale, beta = 0.37, 0.6, 0.3
    # More latents than elements of images too: the grid must cover the larger.
    for image, latent in [(2053, 9), (5, 2053), (33, 8), (0, 1)]:
        x = memory.input(random(image, 1), dtype, misaligned)
        t = memory.input(random(image, 2), of_target, misaligned)
        mu, logvar = (memory.input(4 * random(latent, seed) - 2, dtype, misaligned) for seed in (3, 4))
        total, reconstruction_out, kl = (memory.output(1, of_loss) for _ in range(3))
        grads = [memory.output(size, GRADIENT_DTYPE[dtype]) for size in (image, latent, latent)]
        kernels.elbo_loss(
            *(dtype, of_target, of_loss, code, x, t, mu, logvar, total, reconstruction_out, kl),
            *(grads if with_grad else [None] * 3),
            *(recon_scale, kl_scale, beta, image, latent),
            memory.output(kernels.elbo_partials(image, latent), np.float32),
        )
        m, v = decode(mu, dtype), decode(logvar, dtype)
        exact, exact_grad = exact_loss_and_gradient(decode(x, dtype), decode(t, of_target))
        exact, exact_kl = recon_scale * exact.sum(), kl_scale * 0.5 * (m**2 + np.exp(v) - 1 - v).sum()
        what = f"{image} elements of images, {latent} of latents"
        assert_accurate(reconstruction_out, np.array([exact]), of_loss, what)
        assert_accurate(kl, np.array([exact_kl]), of_loss, what)
        assert_accurate(total, np.array([exact + beta * exact_kl]), of_loss, what)
        if with_grad:
            for grad, expected in zip(
                grads, (recon_scale * exact_grad, kl_scale * m, kl_scale * 0.5 * (np.exp(v) - 1)), strict=True
            ):
                assert_accurate(grad, expected, GRADIENT_DTYPE[dtype], what)
