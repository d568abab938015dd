# SPDX-License-Identifier: MIT
"""The ops: each chooses its backend and ties its native kernels to autograd.  `genimg_fast.functional` is the public face."""

from genimg_fast.ops import _conv_weight_grad as _conv_weight_grad
from genimg_fast.ops.batch_norm_act import batch_norm_act
from genimg_fast.ops.bce_loss import bce_loss
from genimg_fast.ops.bce_with_logits_loss import bce_with_logits_loss
from genimg_fast.ops.conv2d_bn_act import conv2d_bn_act
from genimg_fast.ops.conv_transpose2d_bn_act import conv_transpose2d_bn_act
from genimg_fast.ops.elbo_loss import elbo_loss
from genimg_fast.ops.gan_loss import gan_loss
from genimg_fast.ops.gaussian_kl_loss import gaussian_kl_loss
from genimg_fast.ops.gradient_penalty import gradient_penalty
from genimg_fast.ops.reparameterize import reparameterize
from genimg_fast.ops.reparameterize_with_kl import reparameterize_with_kl
from genimg_fast.ops.sync_batch_norm_act import sync_batch_norm_act

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
