# SPDX-License-Identifier: MIT
"""What "auto" leaves to PyTorch: how fast that is, benchmarks say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast import _backend, functional, fuse
from genimg_fast.ops import _speed


@pytest.fixture(params=[False, True], ids=["AVX-512", "AVX2"])
def avx2(request, monkeypatch):
    monkeypatch.setattr(_speed, "_on_avx2", lambda: request.param)
    return request.param


@pytest.fixture
def made_for(monkeypatch):
    """What the kernels are made for alone, on AVX-512."""
    monkeypatch.setattr(_speed, "_on_avx2", lambda: False)
    monkeypatch.setattr(_speed, "_is_little_work", lambda *_: False)


def runs_natively(layer: nn.Module, *shape: int, training: bool) -> bool:
    model = nn.Sequential(layer, nn.ReLU())
    fuse(model)
    with torch.set_grad_enabled(training), _backend.record_decisions() as decisions:
        model.train(training)(torch.ones(shape))
    assert decisions
    return all(decision.native for decision in decisions)


def test_what_the_kernels_are_made_for(avx2):
    for training in (True, False):
        assert runs_natively(nn.ConvTranspose2d(64, 64, 4, 2, 1), 2, 64, 16, 16, training=training)


def test_a_kernel_of_the_size_of_the_image_makes_one_pixel_unless_padded(avx2):
    assert runs_natively(nn.Conv2d(64, 64, 7), 8, 64, 7, 7, training=True)
    assert not runs_natively(nn.Conv2d(64, 64, 7, padding=3), 8, 64, 7, 7, training=True)


def test_little_work_in_inference(avx2):
    assert runs_natively(nn.Conv2d(32, 32, 1), 1, 32, 8, 8, training=False)
    assert runs_natively(nn.Conv2d(64, 64, 5, padding=2), 1, 64, 20, 20, training=False) == avx2  # 41 million
    assert not runs_natively(nn.Conv2d(32, 32, 1), 1, 32, 8, 8, training=True)
    assert not runs_natively(nn.Conv2d(512, 512, 1), 16, 512, 8, 8, training=False)


def test_a_weight_that_is_computed_for_each_call_would_be_packed_for_each(avx2):
    layer = nn.Conv2d(32, 32, 5)
    assert runs_natively(layer, 1, 32, 12, 12, training=False)
    weight = layer.weight.detach() * 0.5  # as wrappers do that divide it by its norm
    del layer.weight
    layer.weight = weight
    assert not runs_natively(layer, 1, 32, 12, 12, training=False)


def test_kernel_3_or_2_with_stride_2_in_training(avx2):
    assert runs_natively(nn.Conv2d(32, 64, 3, 2, 1), 16, 32, 32, 32, training=True) == avx2
    for kernel, padding, images in ((3, 1, 8), (2, 0, 16)):  # of 75 and 67 million
        layer = nn.ConvTranspose2d(64, 64, kernel, 2, padding, padding)
        assert runs_natively(layer, images, 64, 16, 16, training=True) == avx2
        assert runs_natively(layer, 2 * images, 64, 16, 16, training=True)
    assert not runs_natively(nn.Conv2d(32, 64, 3, 2, 1), 1, 32, 32, 32, training=True)


def test_a_lone_layer_on_images_saves_less_than_its_change_of_order(avx2):
    for size in (32, 64):
        assert runs_natively(nn.Conv2d(3, 64, 3, 1, 1), 1, 3, size, size, training=False) != avx2
    assert not runs_natively(nn.Conv2d(3, 64, 3, 1, 1), 4, 3, 64, 64, training=False)
    assert runs_natively(nn.Conv2d(3, 64, 3, 1, 1), 1, 3, 224, 224, training=False) != avx2
    assert not runs_natively(nn.Conv2d(3, 64, 3, 1, 1), 4, 3, 64, 64, training=True)
    assert runs_natively(nn.Conv2d(3, 64, 4, 2, 1), 16, 3, 64, 64, training=True) != avx2
    assert runs_natively(nn.Conv2d(64, 3, 3, 1, 1), 4, 64, 64, 64, training=False) == avx2
    assert runs_natively(nn.Conv2d(3, 64, 3, 1, 1), 36, 3, 64, 64, training=False)  # whose output comes in fresh memory


def test_transposed_layers_that_make_images(avx2):
    for training in (True, False):
        assert runs_natively(nn.ConvTranspose2d(32, 3, 3, 1, 1), 8, 32, 64, 64, training=training)
        assert not runs_natively(nn.ConvTranspose2d(8, 3, 3, 1, 1), 32, 8, 64, 64, training=training)


def test_dilation_and_layers_of_few_sums_for_each_pixel(avx2):
    for training in (True, False):
        assert not runs_natively(nn.Conv2d(64, 64, 3, padding=2, dilation=2), 2, 64, 16, 16, training=training)
    assert not runs_natively(nn.Conv2d(32, 3, 1), 1, 32, 64, 64, training=False)
    assert not runs_natively(nn.ConvTranspose2d(3, 16, 3, 1, 1), 1, 3, 16, 16, training=False)


def test_one_small_image_in_training(avx2):
    assert runs_natively(nn.Conv2d(192, 192, 3, padding=1), 1, 192, 8, 8, training=True) != avx2
    assert runs_natively(nn.Conv2d(192, 192, 3, padding=1), 8, 192, 8, 8, training=True)
    for layer, size in ((nn.Conv2d(512, 512, 3, 2, 1), 4), (nn.ConvTranspose2d(512, 512, 3, 2, 1, 1), 2)):
        assert runs_natively(layer, 1, 512, size, size, training=True) == avx2
        assert not runs_natively(layer, 4, 512, size, size, training=True)


@pytest.mark.usefixtures("made_for")
@pytest.mark.parametrize(
    ("shape", "weight_shape", "stride", "native"),
    [((2, 8, 8, 8), (5, 8, 4, 4), 2, True), ((2, 8, 8, 8), (5, 8, 3, 3), 1, True), ((2, 8, 4, 4), (1, 8, 4, 4), 1, True),
     ((2, 3, 8, 8), (8, 3, 4, 4), 2, False), ((2, 8, 8, 8), (3, 8, 3, 3), 1, False),
     ((2, 16, 8, 8), (16, 16, 4, 4), 1, True), ((2, 8, 8, 8), (16, 8, 4, 4), 1, False), ((2, 8, 8, 8), (8, 8, 5, 5), 2, True),
     ((2, 8, 8, 8), (8, 8, 3, 3), 2, True), ((1, 8, 8, 8), (8, 8, 7, 7), 1, True), ((2, 8, 8, 8), (8, 8, 7, 7), 1, False),
     ((2, 16, 12, 12), (3, 16, 7, 7), 1, True),
     ((2, 8, 8, 8), (4, 8, 1, 1), 1, False), ((2, 3, 8, 8), (4, 3, 7, 7), 1, False), ((1, 512, 4, 4), (512, 512, 3, 3), 1, True)],
)  # fmt: skip
def test_auto_leaves_convolutions_to_pytorch_that_it_does_faster(shape, weight_shape, stride, native):
    with _backend.record_decisions() as decisions, torch.no_grad():
        functional.conv2d_bn_act(torch.zeros(shape), torch.zeros(weight_shape), stride=stride)
    assert decisions[0].native == native


@pytest.mark.usefixtures("made_for")
@pytest.mark.parametrize(
    ("batch", "kernel", "stride", "records", "native"),
    [(1, 4, 2, True, True), (4096, 4, 2, True, True), (1, 4, 2, False, True), (64, 2, 2, False, True), (64, 2, 2, True, False), (64, 5, 2, False, True), (64, 6, 2, False, False), (1, 6, 2, False, True), (64, 3, 1, False, False)],
)  # fmt: skip
def test_auto_leaves_transposed_convolutions_to_pytorch_that_it_does_faster(batch, kernel, stride, records, native):
    input = torch.zeros(batch, 8, 4, 4, requires_grad=records)
    with _backend.record_decisions() as decisions:
        functional.conv_transpose2d_bn_act(input, torch.zeros(8, 4, kernel, kernel), stride=stride)
    assert decisions[0].native == native
