# SPDX-License-Identifier: MIT
"""Models with an upsampling before a convolution or a mean after it, fused and plain, for the tests that compare them."""

from __future__ import annotations

import copy
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import genimg_fast
from genimg_fast.nn import steps


class Attributes(nn.Module):
    """The upsampling a layer, a function, and a function that comes first."""

    def __init__(self):
        super().__init__()
        self.up = nn.UpsamplingNearest2d(scale_factor=2)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 9, 3, padding="same", bias=False)

    def forward(self, x):
        h = F.interpolate(x, scale_factor=(2, 2))
        h = F.leaky_relu(self.norm1(self.conv1(h)), 0.2)
        return torch.sigmoid(self.conv2(self.up(h)))


def chain() -> nn.Sequential:
    """As the generators of many repositories; a layer at the same size between the two."""
    return nn.Sequential(
        nn.BatchNorm2d(8),
        *(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12, 0.8),
            nn.LeakyReLU(0.2, True),
        ),
        *(nn.Conv2d(12, 10, 3, padding=1), nn.ReLU()),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(10, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU()),
        *(nn.Conv2d(9, 3, 3, padding=1), nn.Tanh()),
    )


class UpBlock(nn.Module):
    """Whether to upsample is asked in its forward()."""

    def __init__(self, upsample=True):
        super().__init__()
        self.upsample, self.act = upsample, nn.LeakyReLU(0.2)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(8, 9, 3, 1, 1), nn.BatchNorm2d(9), nn.Conv2d(9, 8, 3, 1, 1)

    def shortcut(self, x):
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def residual(self, x):
        x = self.act(x)
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv1(x)
        x = self.act(self.norm(x))
        return self.conv2(x)

    def forward(self, x):
        return self.shortcut(x) + self.residual(x)


class BeforeSequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Sequential(nn.Conv2d(8, 9, 3, padding=1), nn.BatchNorm2d(9)), nn.ReLU())

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2)
        return self.block(x)


class Reflecting(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.pad = nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1)
        self.conv = nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return F.relu(self.conv(self.pad(self.up(x))))


class DownBlock(nn.Module):
    """As in StarGAN v2: the normalisation stands behind the mean."""

    def __init__(self, downsample=True):
        super().__init__()
        self.downsample, self.act, self.pool = downsample, nn.LeakyReLU(0.2), nn.AvgPool2d(kernel_size=2)
        self.conv1, self.norm, self.conv2 = nn.Conv2d(8, 8, 3, 1, 1), nn.InstanceNorm2d(8), nn.Conv2d(8, 9, 3, 1, 1)
        self.norm.affine_weight, self.conv1x1 = nn.Parameter(torch.ones(1)), nn.Conv2d(8, 9, 1, bias=False)

    def shortcut(self, x):
        x = self.conv1x1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        return x

    def residual(self, x):
        x = self.act(x)
        x = self.conv1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        x = self.norm(x)
        x = self.act(x)
        return self.conv2(x)

    def forward(self, x):
        return self.shortcut(x) + self.residual(x)


class MeanInMethod(nn.Module):
    """As in a residual discriminator: the mean ends the branch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 9, 3, 1, 1), nn.Conv2d(9, 5, 3, padding="same")
        self.norm, self.down = nn.BatchNorm2d(5), nn.AvgPool2d((2, 2), stride=2)

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x)))
        h = F.avg_pool2d(h, kernel_size=2, stride=(2, 2))
        return torch.tanh(self.norm(h))


def means() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(8, 12, 3, padding=1), nn.AvgPool2d(2), nn.BatchNorm2d(12, 0.8), nn.LeakyReLU(0.2, True)),
        *(nn.Conv2d(12, 10, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(10, 9, 3, padding=2, bias=False), nn.AvgPool2d(2, count_include_pad=False), nn.Sigmoid()),
    )


MODELS = {
    "down-block": DownBlock,
    "a mean in a method": MeanInMethod,
    "means": means,
    "a mean alone": lambda: nn.Sequential(nn.Conv2d(8, 5, 3, padding=1), nn.AvgPool2d(2)),
    "a mean of a padded image": lambda: nn.Sequential(
        *(nn.Conv2d(8, 9, 3, padding=(2, 3)), nn.AvgPool2d(2, 2, 0), nn.ReLU()),
        *(nn.Conv2d(9, 5, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d((2, 2)), nn.Tanh()),
    ),
    "up and down": lambda: nn.Sequential(
        *(nn.Upsample(scale_factor=2), nn.Conv2d(8, 9, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(9, 5, 3), nn.AvgPool2d(2), nn.BatchNorm2d(5)),
    ),
    "up-block": UpBlock,
    "before a Sequential": BeforeSequential,
    "reflecting": Reflecting,
    "chain": chain,
    "attributes": Attributes,
    "alone": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, padding=1)),
    "cropped": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3, padding=0, bias=False), nn.Tanh()),
    "padded": lambda: nn.Sequential(nn.Upsample(scale_factor=(2, 2)), nn.Conv2d(8, 5, 3, padding=(2, 1)), nn.ReLU()),
    "behind a padding": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 3)
    ),
    "behind a reflection": lambda: nn.Sequential(
        *(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Conv2d(5, 9, 3, padding=1), nn.Upsample(scale_factor=2), nn.ReplicationPad2d(1), nn.Conv2d(9, 4, 3)),
    ),
    "that repeats the edge": lambda: nn.Sequential(
        *(nn.Upsample(scale_factor=2), nn.Conv2d(8, 9, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(9, 4, 3, padding="same", padding_mode="replicate"), nn.Tanh()),
    ),
    "with an instance normalisation": lambda: nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest-exact"),
        nn.Conv2d(8, 5, 3, padding=1),
        nn.InstanceNorm2d(5),
        nn.ReLU(),
    ),
}


def fused_and_plain(make, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make().to(dtype)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    parameters = list(model.parameters())
    score = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    grads = torch.autograd.grad(score, [x, *parameters], allow_unused=True, materialize_grads=True)
    return [y, *grads, *model.buffers()]


def joined(model: nn.Module, x: torch.Tensor, backend: str = "native") -> bool:
    """Whether a pass of the model runs a resampling and its convolution as one."""
    made = mock.Mock(side_effect=steps.resampling_weight)
    with genimg_fast.use_backend(backend), mock.patch.object(steps, "resampling_weight", made):
        copy.deepcopy(model)(x)
    return made.called
