# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv_transpose2d(input))): chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast.ops._autocast import low_precision_under_autocast
from genimg_fast.ops._convolution import check_arguments, pair
from genimg_fast.reference import conv_transpose2d_bn_act as reference


@low_precision_under_autocast
def conv_transpose2d_bn_act(
    input,
    weight,
    bias=None,
    running_mean=None,
    running_var=None,
    bn_weight=None,
    bn_bias=None,
    *,
    training=False,
    momentum=0.1,
    eps=1e-5,
    stride=1,
    padding=0,
    output_padding=0,
    groups=1,
    dilation=1,
    activation="none",
    negative_slope=0.01,
):
    op = "conv_transpose2d_bn_act"
    check_arguments(
        op,
        input,
        weight,
        bias,
        running_mean,
        running_var,
        bn_weight,
        bn_bias,
        training=training,
        in_channels=weight.shape[0],
        out_channels=weight.shape[1] * groups,
        activation=activation,
    )
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    return reference.conv_transpose2d_bn_act(
        input,
        weight,
        bias,
        running_mean,
        running_var,
        bn_weight,
        bn_bias,
        training=training,
        momentum=momentum,
        eps=eps,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        activation=activation,
        negative_slope=negative_slope,
    )
