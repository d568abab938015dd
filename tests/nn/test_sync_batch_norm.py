# SPDX-License-Identifier: MIT
"""`fuse` on nn.SyncBatchNorm.  What it computes with several processes: tests/contract/test_processes.py."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import genimg_fast
from genimg_fast import functional
from genimg_fast.nn import FusedSequential, norm
from genimg_fast.nn.norm import FusedSyncBatchNorm
from tests import _cases
from tests.nn._sequential import assert_same_training


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.SyncBatchNorm(4)

    def forward(self, x):
        return F.leaky_relu(self.bn(self.conv(x)), 0.2)


class Model(nn.Sequential):
    """SyncBatchNorm in each of the ways that a layer is called, and with each of its settings."""

    def __init__(self):
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4, momentum=None), nn.ReLU()),
            Block(),
            nn.Sequential(nn.SyncBatchNorm(4, affine=False), nn.Tanh()),
            Alone(nn.SyncBatchNorm(4, track_running_stats=False)),
            nn.Flatten(),
            nn.SyncBatchNorm(144),
        )


class Alone(nn.Module):
    def __init__(self, *norms):
        super().__init__()
        self.norms = nn.ModuleList(norms)

    def forward(self, x):
        for i in range(len(self.norms)):  # which is not a loop that runs as one
            x = self.norms[i](x)
        return x


SHAPE = (4, 3, 5, 5)


def fused_and_plain() -> tuple[Model, Model]:
    torch.manual_seed(0)
    plain = Model().double()
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def kinds(report: genimg_fast.nn.FuseReport) -> list[tuple[str, str | None]]:
    return [(row.description, row.kind) for row in report.rows]


@pytest.fixture
def _two_processes(monkeypatch):
    monkeypatch.setattr(norm, "process_count", lambda group: 2)


def test_without_other_processes_it_fuses_as_batch_norm():
    assert kinds(genimg_fast.fuse(Model())) == [
        ("Conv2d + SyncBatchNorm + ReLU", "conv2d_bn_act"),
        ("SyncBatchNorm + Tanh", "batch_norm_act"),
        ("Flatten", None),
        ("SyncBatchNorm", "batch_norm_act"),
        ("ConvTranspose2d + SyncBatchNorm + leaky_relu", "conv_transpose2d_bn_act"),
        ("SyncBatchNorm", "batch_norm_act"),
    ]
    fused, plain = fused_and_plain()
    assert_same_training(fused, plain, _cases.randn(SHAPE, torch.float64))


@pytest.mark.usefixtures("_two_processes")
def test_with_other_processes_the_call_ends_before_it():
    assert kinds(genimg_fast.fuse(Model())) == [
        ("Conv2d", "conv2d_bn_act"),
        ("SyncBatchNorm + ReLU", "sync_batch_norm_act"),
        ("SyncBatchNorm + Tanh", "sync_batch_norm_act"),
        ("Flatten", None),
        ("SyncBatchNorm", "sync_batch_norm_act"),
        ("ConvTranspose2d", "conv_transpose2d_bn_act"),
        ("SyncBatchNorm + leaky_relu", "sync_batch_norm_act"),
        ("SyncBatchNorm", "sync_batch_norm_act"),
    ]


@pytest.mark.usefixtures("_two_processes")
def test_with_other_processes_inference_fuses_fully():
    fused, plain = (model.eval() for model in fused_and_plain())
    assert [step.kind for step in fused[0].plan()] == ["conv2d_bn_act"]
    x = _cases.randn(SHAPE, torch.float64)
    for _ in range(3):  # the third is a repetition
        with torch.no_grad():
            torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.usefixtures("_two_processes")
def test_each_layer_waits_for_the_other_processes_once_in_a_pass(monkeypatch):
    """Also where PyTorch's convolution is faster, and layers are called as they are from the second pass on."""
    calls = Counter()

    def counted(input, *args, process_group, activation, negative_slope, **kwargs):
        calls[tuple(input.shape)] += 1
        output = functional.batch_norm_act(input, *args, training=True, **kwargs)
        return {"relu": torch.relu, "tanh": torch.tanh, "none": lambda t: t}.get(
            activation, lambda t: F.leaky_relu(t, negative_slope)
        )(output)

    monkeypatch.setattr(norm.functional, "sync_batch_norm_act", counted)
    fused, plain = fused_and_plain()
    for _ in range(3):
        calls.clear()
        x = _cases.randn(SHAPE, torch.float64)
        torch.testing.assert_close(fused(x), plain(x))
        assert sum(calls.values()) == 5


def test_fused_it_may_be_wrapped_on_the_cpu_and_is_itself_again_after_unfuse():
    model = Model()
    classes = [type(m) for m in model.modules()]
    report = genimg_fast.fuse(model)
    assert not [
        m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)
    ]  # which DistributedDataParallel looks for
    assert str(genimg_fast.fuse(model)) == str(report)
    genimg_fast.unfuse(model)
    assert [type(m) for m in model.modules()] == classes


def test_state_dict_and_copies():
    fused, plain = fused_and_plain()
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict(), strict=True)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert [type(m) for m in twin.modules()] == [type(m) for m in fused.modules()]
        assert [type(m) for m in genimg_fast.unfuse(twin).modules()] == [type(m) for m in plain.modules()]


def test_process_group_stays_with_the_module(monkeypatch):
    model, group, asked = nn.SyncBatchNorm(3, process_group="the group"), "the group", []
    genimg_fast.fuse(model)
    monkeypatch.setattr(norm, "process_count", lambda group: asked.append(group) or 2)
    monkeypatch.setattr(
        norm.functional, "sync_batch_norm_act", lambda *a, process_group, **k: asked.append(process_group)
    )
    model(torch.zeros(2, 3))
    assert {*asked} == {group}
    assert genimg_fast.unfuse(model).process_group == group


def test_whoever_kept_forward_gets_the_plain_one_after_unfuse(monkeypatch):
    """Which waits for the other processes, as the fused class no longer can."""
    model = nn.SyncBatchNorm(3)
    genimg_fast.fuse(model)
    kept = model.forward
    genimg_fast.unfuse(model)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, input: 5 * input)
    input = _cases.randn((2, 3))
    torch.testing.assert_close(kept(input), 5 * input)


def test_what_is_not_fused_stays_what_it_is():
    hooked = nn.Sequential(nn.Conv2d(3, 3, 3), nn.SyncBatchNorm(3))
    hooked[1].register_forward_hook(lambda module, args, output: None)
    report = genimg_fast.fuse(hooked)
    assert [(row.description, row.reason) for row in report.not_fused] == [("SyncBatchNorm", "it has hooks: <lambda>")]
    assert type(hooked[1]) is nn.SyncBatchNorm

    filtered = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.SyncBatchNorm(3)), Alone(nn.SyncBatchNorm(3)))
    genimg_fast.fuse(filtered, filter_fn=lambda name, module: False)
    assert not [m for m in filtered.modules() if type(m) is FusedSyncBatchNorm]

    class Subclass(nn.SyncBatchNorm):
        pass

    (row,) = genimg_fast.fuse(Subclass(3)).not_fused
    assert row.reason == "Subclass is a subclass of SyncBatchNorm, which may do more than it"


def test_conversion_after_fuse_wants_fuse_again():
    model = FusedSequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [step.reason for step in model.plan() if "1" in step.names] == [
        "it became a SyncBatchNorm after fuse(): call fuse() again"
    ]
    genimg_fast.fuse(model)
    assert [step.kind for step in model.plan()] == ["conv2d_bn_act"]


def test_exports_as_standard_operators():
    fused, plain = (model.eval() for model in fused_and_plain())
    x = _cases.randn(SHAPE, torch.float64)
    programs = [torch.export.export(model, (x,)) for model in (fused, plain)]
    ours, theirs = ([str(node.target) for node in p.graph.nodes if node.op == "call_function"] for p in programs)
    assert ours == theirs


class NormFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.SyncBatchNorm(3), nn.Linear(3, 3)

    def forward(self, x):
        return self.linear(self.norm(x))


def test_alone_it_is_traced_and_exported_as_that_of_pytorch():
    model, x = NormFirst().eval(), _cases.randn((4, 3))
    expected = model(x)
    genimg_fast.fuse(model)
    torch.testing.assert_close(fx.symbolic_trace(model)(x), expected)
    exported = torch.export.export(model, (x,))
    assert not any("genimg" in str(node.target) for node in exported.graph.nodes)
