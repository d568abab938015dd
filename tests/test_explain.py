# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import genimg_fast
from genimg_fast import models


def test_names_each_call_and_what_it_ran_on():
    model = models.create("dcgan", width=2, latent=6)
    z = torch.randn(2, 6, 1, 1)
    with genimg_fast.use_backend("reference"):
        report = genimg_fast.explain(model.generator, z)
    assert [call.op for call in report.calls if call.op.startswith("conv")] == ["conv_transpose2d_bn_act"] * 5
    assert {call.native for call in report.calls} == {False}
    assert {call.reason for call in report.calls} == {"the backend is set to 'reference'"}
    lines = str(report).splitlines()
    assert lines[0].split() == ["op", "runs", "on", "why", "not", "native"]
    assert lines[2].split()[:2] == ["conv_transpose2d_bn_act", "reference"]


def test_names_native_calls():
    with genimg_fast.use_backend("native"):
        report = genimg_fast.explain(models.create("dcgan", width=2, latent=6).generator, torch.randn(2, 6, 1, 1))
    assert [(call.native, call.reason) for call in report.calls] == [(True, "")] * 5
    assert "native" in str(report).splitlines()[2]


def test_tells_of_a_model_in_training_what_a_training_step_runs():
    model = nn.Sequential(nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.BatchNorm2d(32), nn.ReLU())
    genimg_fast.fuse(model)
    x = torch.randn(4, 64, 16, 16)
    with genimg_fast._backend.record_decisions() as decisions:
        model(x).sum().backward()
    model.zero_grad()
    step = [(call.op, call.native, call.reason) for call in decisions]
    assert [(call.op, call.native, call.reason) for call in genimg_fast.explain(model, x).calls] == step
    with torch.no_grad():
        in_inference = genimg_fast.explain(model, x).calls
    assert [(call.op, call.native, call.reason) for call in in_inference] != step


def test_names_layers_that_do_not_fuse():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.GELU())
    )
    genimg_fast.fuse(model)
    model[0].register_forward_hook(lambda *_: None)
    report = genimg_fast.explain(model, torch.randn(2, 3, 4, 4))
    assert report.plain_layers == (
        ("0", "Conv2d", "it has hooks: <lambda>"),
        ("1.0", "ReLU", "no convolution or normalisation that fuses stands before it"),
        ("1.2", "GELU", "GELU is not a layer that fuses"),
    )
    assert "it has hooks" in str(report)


def test_does_not_list_what_holds_layers():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.decoder = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
            self.tail = nn.Sequential(nn.GELU())

        def forward(self, x):
            return self.tail(self.decoder(self.conv(x)))

    model = Outer()
    genimg_fast.fuse(model)
    assert genimg_fast.explain(model, torch.randn(2, 3, 4, 4)).plain_layers == ()


def test_points_to_fuse_where_nothing_was_called():
    report = genimg_fast.explain(nn.Linear(2, 2), torch.zeros(1, 2))
    assert not report.calls
    assert str(report) == "No genimg_fast op was called; genimg_fast.fuse(model) makes a model call them."


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_leaves_no_trace(mode):
    model = models.create("dense_gan", hidden=4, latent=3).train(mode == "train")
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    buffers = {name: id(b) for name, b in model.named_buffers()}
    genimg_fast.explain(model.generator, torch.ones(2, 3))
    genimg_fast.explain(model.discriminator, torch.ones(2, 1, 28, 28))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: id(b) for name, b in model.named_buffers()} == buffers
    assert all(p.grad is None for p in model.parameters())


def test_several_arguments():
    report = genimg_fast.explain(nn.Bilinear(2, 3, 1), (torch.zeros(1, 2), torch.zeros(1, 3)))
    assert not report.calls
    report = genimg_fast.explain(nn.Bilinear(2, 3, 1), torch.zeros(1, 2), input2=torch.zeros(1, 3))
    assert not report.calls


def test_bad_input_gets_one_clear_line():
    with pytest.raises(TypeError, match=r"^explain: model must be a torch\.nn\.Module, got function"):
        genimg_fast.explain(lambda x: x, torch.zeros(1))
