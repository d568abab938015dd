# SPDX-License-Identifier: MIT
"""What PyTorch users rely on holds for a fused model."""

from __future__ import annotations

import abc
import copy
import io
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import replicate
from torch.nn.utils import parametrizations, parametrize

import genimg_fast
from genimg_fast.nn import FusedSequential
from tests import _cases

pytestmark = pytest.mark.usefixtures("backend")


class Stage(nn.Sequential):
    """A subclass of nn.Sequential with a constructor of its own."""

    def __init__(self, inputs, outputs):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class Backwards(Stage):
    def __iter__(self):
        return reversed(self._modules.values())


class ResidualStage(Stage):
    def forward(self, input):
        return input + super().forward(input)


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv, self.bn, self.activation = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x)))


class Model(nn.Module):
    """Layers called in each of the ways that `fuse` knows."""

    def __init__(self):
        super().__init__()
        relu = nn.ReLU(inplace=True)  # shared
        self.stage = Stage(3, 4)
        self.residual = ResidualStage(4, 4)
        self.block1, self.block2 = Block(relu), Block(relu)
        self.block2.conv.weight = self.block1.conv.weight  # tied
        self.loose = nn.ModuleList(
            [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3, padding=1)]
        )
        self.frozen = nn.BatchNorm2d(4).requires_grad_(False)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.fc, self.bn = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.criterion = nn.BCEWithLogitsLoss()
        self.frozen.eval()

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def images(self, x):
        x = self.residual(self.stage(x))
        x = self.block2(self.block1(x))
        for i in range(len(self.loose)):  # which is not a loop that runs as one
            x = self.loose[i](x)
        return F.leaky_relu(self.untracked(self.frozen(x)), 0.2)

    def forward(self, x):
        logits = torch.tanh(self.bn(self.fc(self.images(x).mean((2, 3)))))
        return self.criterion(logits, torch.full_like(logits, 0.9))


SHAPE = (4, 3, 6, 5)


def fused_and_plain(dtype=torch.float64) -> tuple[Model, Model]:
    torch.manual_seed(0)
    plain = Model().to(dtype)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, dtype=torch.float64) -> list[float]:
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(_cases.randn(SHAPE, dtype, seed=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(fused: nn.Module, plain: nn.Module) -> None:
    """The same state now, after training and in evaluation."""
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    torch.testing.assert_close(train(fused.train()), train(plain.train()))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    x = _cases.randn(SHAPE, torch.float64, 9)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))


def test_every_way_is_fused():
    report = genimg_fast.fuse(Model())
    assert [(row.module, row.layers, row.kind) for row in report.rows] == [
        ("", ("bn",), "batch_norm_act"),
        ("", ("stage.0", "stage.1", "stage.2"), "conv2d_bn_act"),
        ("", ("frozen",), "batch_norm_act"),
        ("", ("untracked",), "batch_norm_act"),
        ("residual", ("0", "1", "2"), "conv2d_bn_act"),
        ("block1", ("conv", "bn", "activation"), "conv_transpose2d_bn_act"),
        ("block2", ("conv", "bn", "activation"), "conv_transpose2d_bn_act"),
        ("loose.0", (), "conv2d_bn_act"),
        ("loose.1", (), "batch_norm_act"),
        ("loose.2", (), "conv_transpose2d_bn_act"),
        ("criterion", (), "bce_with_logits_loss"),
    ]


def test_trains_and_evaluates_as_before():
    assert_same(*fused_and_plain())


def test_classes_are_those_of_the_model():
    fused, plain = fused_and_plain()
    for ours, theirs in zip(fused.modules(), plain.modules(), strict=True):
        assert isinstance(ours, type(theirs))
        assert type(theirs).__name__ in type(ours).__name__
    assert type(fused.block1) is type(fused.block2)
    assert genimg_fast.unfuse(fused) is fused
    assert [type(m) for m in fused.modules()] == [type(m) for m in plain.modules()]


def test_classes_of_the_user_keep_their_names():
    model = Model()
    genimg_fast.fuse(model)
    for module, cls in [(model.stage, Stage), (model.residual, ResidualStage), (model.block1, Block)]:
        assert type(module) is not cls
        names = ("__module__", "__name__", "__qualname__")
        assert [getattr(type(module), name) for name in names] == [getattr(cls, name) for name in names]


def test_parameters_are_the_same_objects_so_optimizers_go_on():
    _, model = fused_and_plain()
    plain = copy.deepcopy(model)
    optimizer, plain_optimizer = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, plain))
    tensors = [id(t) for t in (*model.parameters(), *model.buffers())]
    torch.testing.assert_close(train(model, optimizer), train(plain, plain_optimizer))
    genimg_fast.fuse(model)
    torch.testing.assert_close(train(model, optimizer), train(plain, plain_optimizer))
    genimg_fast.unfuse(model)
    torch.testing.assert_close(train(model, optimizer), train(plain, plain_optimizer))
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == tensors
    assert model.block1.conv.weight is model.block2.conv.weight


def test_state_dict_loads_both_ways():
    fused, plain = fused_and_plain()
    train(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict(), strict=True)
    train(plain)
    fused.load_state_dict(plain.state_dict(), strict=True)
    assert_same(fused, plain)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"stage.0.weight\""):
        fused.load_state_dict({k: v for k, v in plain.state_dict().items() if k != "stage.0.weight"}, strict=True)


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": torch_saved}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_fused_whole_and_apart(how):
    fused, plain = fused_and_plain()
    twin = COPIES[how](fused)
    assert [type(m) for m in twin.modules()] == [type(m) for m in fused.modules()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in fused.parameters()}
    assert twin.block1.conv.weight is twin.block2.conv.weight
    assert_same(twin, plain)
    assert [type(m) for m in genimg_fast.unfuse(twin).modules()] == [type(m) for m in plain.modules()]


class Pickled(Block):
    """It has its own way to be pickled and copied."""

    def __reduce__(self):
        return Pickled, (self.activation,), {"state": self.state_dict()}

    def __setstate__(self, state):
        self.load_state_dict(state["state"])


def test_own_way_to_be_pickled_counts():
    model = Pickled(nn.Tanh())
    genimg_fast.fuse(model)
    twin = pickle.loads(pickle.dumps(model))
    x = _cases.randn((2, 4, 3, 3))
    torch.testing.assert_close(twin.eval()(x), model.eval()(x))


class Recreated(Block):
    """It is pickled as a call of its class, whatever that is."""

    def __reduce__(self):
        return type(self), (self.activation,), {"state": self.state_dict()}

    __setstate__ = Pickled.__setstate__


class Abstract(Block, abc.ABC):
    pass


@pytest.mark.parametrize("cls", [Block, Recreated, Abstract, Stage])
def test_classes_are_pickled(cls):
    model = cls(*((3, 4) if cls is Stage else (nn.Tanh(),)))
    genimg_fast.fuse(model)
    assert type(model) is not cls
    assert pickle.loads(pickle.dumps(type(model))) is type(model)
    copied = pickle.loads(pickle.dumps(model.eval())).eval()
    assert type(copied) is type(model)
    x = _cases.randn((2, 3 if cls is Stage else 4, 4, 4))
    torch.testing.assert_close(copied(x), model(x))


@pytest.mark.parametrize("backend", ["auto"], indirect=True)  # the kernels of the CPU serve no such numbers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_half_precision(dtype, mode):
    fused, plain = (m.train(mode == "train") for m in fused_and_plain())
    x = _cases.randn(SHAPE, dtype)
    exact = copy.deepcopy(plain).images(x.double())
    ours, theirs = (m.to(dtype).images(x) for m in (fused, plain))
    _cases.assert_accurate(ours, exact, theirs)


@pytest.mark.parametrize("backend", ["auto"], indirect=True)  # the kernels of the CPU serve no such numbers
def test_autocast_keeps_dtypes():
    fused, plain = fused_and_plain(torch.float32)
    x = _cases.randn(SHAPE)
    exact = copy.deepcopy(plain).double().images(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fused.images(x), plain.images(x)
    assert ours.dtype == theirs.dtype
    _cases.assert_accurate(ours, exact, theirs)


@pytest.mark.parametrize("backend", ["auto"], indirect=True)  # the kernels of the CPU serve no such numbers
def test_meta_device_and_back():
    fused, plain = fused_and_plain()
    assert fused.to("meta").images(torch.empty(SHAPE, dtype=torch.float64, device="meta")).shape == plain.images(
        _cases.randn(SHAPE, torch.float64)
    ).shape  # fmt: skip


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_replicas_of_data_parallel(monkeypatch, mode):
    """As nn.DataParallel makes them, two on the same device; their gradients come to the model."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, optional: device)
    monkeypatch.setattr(
        module, "_broadcast_coalesced_reshape", lambda tensors, devices, detach=False: [[t.clone() for t in tensors] for _ in devices]
    )  # fmt: skip
    results = []
    for model in fused_and_plain():
        replicas = replicate(model.train(mode == "train"), [0, 1])
        assert [type(m) for m in replicas[1].modules()] == [type(m) for m in model.modules()]
        losses = [replica(x) for replica, x in zip(replicas, _cases.randn(SHAPE, torch.float64).chunk(2), strict=True)]
        sum(losses).backward()
        results.append([*losses, *(p.grad for p in model.parameters()), *(b for r in replicas for b in r.buffers())])
    torch.testing.assert_close(*results)


def test_hooks_fire_as_before():
    fused, plain = fused_and_plain()
    seen = {"fused": [], "plain": []}
    for name, model in (("fused", fused), ("plain", plain)):
        for path in ("stage", "block1", "block1.bn", "residual.2", "loose.0"):
            model.get_submodule(path).register_forward_hook(
                lambda m, a, o, p=path, s=seen[name]: s.append((p, o.shape))
            )
            model.get_submodule(path).register_forward_pre_hook(lambda m, a, p=path, s=seen[name]: s.append(p))
        model.block2.register_full_backward_hook(lambda m, gi, go, s=seen[name]: s.append(go[0].shape))
    assert_same(fused, plain)
    assert seen["fused"] == seen["plain"]
    assert len(seen["fused"]) == 4 * 10 + 3


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_in_one_graph(mode):
    torch._dynamo.reset()
    fused, plain = (m.train(mode == "train") for m in fused_and_plain())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = _cases.randn(SHAPE, torch.float64)
    for _ in range(2):
        losses = compiled(x), plain(x)
        torch.testing.assert_close(*losses)
        grads = [
            torch.autograd.grad(loss, [p for p in m.parameters() if p.requires_grad])
            for loss, m in zip(losses, (fused, plain), strict=True)
        ]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("strict", [True, False])
def test_exports_as_standard_operators(mode, strict):
    fused, plain = (m.train(mode == "train") for m in fused_and_plain())
    x = _cases.randn(SHAPE, torch.float64)
    programs = [torch.export.export(m, (x,), strict=strict) for m in (fused, plain)]
    ours, theirs = ([str(node.target) for node in p.graph.nodes if node.op == "call_function"] for p in programs)
    assert ours == theirs


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_as_standard_operators():
    fused, _ = fused_and_plain()
    x = _cases.randn(SHAPE, torch.float64)
    traced = torch.jit.trace(fused.eval(), x)
    assert "genimg_fast::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), fused(x))


def test_torch_fx_traces_it_as_the_plain_model():
    fused, plain = (model.eval() for model in fused_and_plain())
    for path in ("stage", "block1", "loose.0"):
        graphs = [torch.fx.symbolic_trace(model.get_submodule(path)).graph for model in (fused, plain)]
        ours, theirs = ([(node.op, node.target) for node in graph.nodes] for graph in graphs)
        assert ours == theirs
    layers = nn.Sequential(*fused.loose, fused.frozen)  # each fused by itself
    x = _cases.randn((2, 4, 5, 5), torch.float64)
    traced = torch.fx.symbolic_trace(layers)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", *["call_module"] * 4, "output"]
    torch.testing.assert_close(traced(x), layers(x))


def test_torch_jit_script_is_told_what_to_do():
    fused, plain = fused_and_plain()
    for part in (fused.stage, fused.block1, *fused.loose, fused.criterion):
        with pytest.raises(RuntimeError, match=r"does not compile fused modules: call genimg_fast\.unfuse"):
            torch.jit.script(part)
    x = _cases.randn((2, 4, 3, 3), torch.float64)
    scripted = torch.jit.script(genimg_fast.unfuse(copy.deepcopy(fused.block1.eval())))
    torch.testing.assert_close(scripted(x), plain.block1.eval()(x))


@pytest.mark.parametrize("of", [torch.fx.symbolic_trace, torch.jit.script], ids=["torch.fx", "torch.jit"])
def test_parts_that_torch_generated(of):
    """They have no class of their own, or no source."""
    model = nn.Sequential(of(Block(nn.ReLU()).eval()), nn.BatchNorm2d(4), nn.ReLU()).eval()
    x = _cases.randn((2, 4, 3, 3))
    expected = model(x)
    report = genimg_fast.fuse(model)
    assert ("", ("1", "2"), "batch_norm_act") in [(row.module, row.layers, row.kind) for row in report.fused]
    torch.testing.assert_close(model(x), expected)
    if of is torch.fx.symbolic_trace:
        assert [row.module for row in report.fused] == ["", "0.conv", "0.bn"]
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        model[0].recompile()
        torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(genimg_fast.unfuse(model)(x), expected)


def test_layers_that_stay_are_named_with_the_reason():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.sn = parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))
            self.hooked = nn.Conv2d(3, 3, 1)
            self.even = nn.Conv2d(3, 3, 2, padding="same")
            self.norm = nn.GroupNorm(1, 3)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.hooked.register_forward_hook(lambda module, args, output: None)

        def forward(self, x):
            x = F.relu(self.sn(x))
            x = F.relu(self.norm(self.hooked(x)))
            return F.relu(self.even(F.relu(self.conv(x))))

    model = Mixed().eval()
    plain = copy.deepcopy(model)
    report = genimg_fast.fuse(model)
    assert {row.module or ", ".join(row.layers): row.reason for row in report.not_fused} == {
        "sn": "weight is parametrized",
        "hooked": "it has hooks: <lambda>",
        "norm": "GroupNorm is not a layer that fuses",
        "even": "padding is 'same', and not alike on both sides",
        "": "no convolution or normalisation that fuses stands before it",  # the relu around self.even
    }
    x = _cases.randn((2, 3, 4, 4))
    torch.testing.assert_close(model(x), plain(x))
    explained = genimg_fast.explain(model, x)
    assert [call.op for call in explained.calls] == ["conv2d_bn_act"]
    assert ("hooked", "Conv2d", "it has hooks: <lambda>") in explained.plain_layers


def test_a_layer_parametrized_since_becomes_plain_too():
    fused, plain = fused_and_plain()
    for model in (fused, plain):
        torch.manual_seed(1)
        parametrizations.spectral_norm(model.loose[0])
        parametrizations.spectral_norm(model.block1.conv)
    assert_same(fused, plain)
    classes = [type(m) for m in plain.modules()]
    genimg_fast.unfuse(fused)
    assert [type(m) for m in genimg_fast.unfuse(plain).modules()] == classes
    assert_same(fused, plain)
    for ours, theirs in zip(fused.modules(), plain.modules(), strict=True):
        assert type(ours).__name__ == type(theirs).__name__
    parametrize.remove_parametrizations(fused.loose[0], "weight")
    assert type(fused.loose[0]) is nn.Conv2d


def test_a_class_is_not_told_of_its_twin():
    registry = {}

    class Registered(Block):
        def __init_subclass__(cls):
            assert cls.__name__ not in registry
            registry[cls.__name__] = cls

    class Net(Registered):
        pass

    model = Net(nn.ReLU())
    genimg_fast.fuse(model)
    assert type(model) is not Net
    assert registry == {"Net": Net}
    twin = type(model)
    assert type(genimg_fast.unfuse(model)) is Net

    class Derived(twin):
        pass

    assert registry == {"Net": Net, "Derived": Derived}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_running_statistics_that_require_grad_are_refused_as_in_torch(mode):
    model = nn.Sequential(nn.Conv2d(64, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.ReLU())
    model[1].running_mean.requires_grad_()
    genimg_fast.fuse(model)
    with pytest.raises(RuntimeError, match="running_mean"):
        model.train(mode == "train")(torch.ones(2, 64, 16, 16))


@pytest.mark.parametrize("error", [TypeError, ValueError, AssertionError])  # of registries, that a name is taken
def test_class_that_refuses_a_subclass_is_left_alone(error):
    class Refuses(type):
        def __new__(mcs, name, bases, namespace):
            if bases != (Block,):
                raise error("Final is final")
            return super().__new__(mcs, name, bases, namespace)

    class Final(Block, metaclass=Refuses):
        pass

    model = Final(nn.ReLU())
    report = genimg_fast.fuse(model)
    assert type(model) is Final
    assert report.not_fused[0].reason == "its class cannot be subclassed: Final is final"
    assert [row.module for row in report.fused] == ["conv", "bn"]


def test_filter_leaves_the_layers_of_a_module_alone():
    model = Model()
    report = genimg_fast.fuse(model, filter_fn=lambda name, module: not name.startswith(("block1", "loose.1", "stage")))
    assert type(model.block1) is Block
    assert type(model.stage) is Stage
    assert [type(layer) for layer in model.block1.children()] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]
    assert type(model.loose[1]) is nn.BatchNorm2d
    assert {row.module for row in report.not_fused} == {"block1", "loose.1", "stage"}
    assert {row.reason for row in report.not_fused} == {"filter_fn left it out"}
    assert isinstance(model.residual, FusedSequential)


def test_fusing_a_part_first_changes_nothing():
    fused, plain = fused_and_plain()
    genimg_fast.fuse(plain.block1.conv)
    genimg_fast.fuse(plain.block2)
    assert str(genimg_fast.fuse(plain)) == str(genimg_fast.fuse(fused))
    assert [type(m) for m in plain.modules()] == [type(m) for m in fused.modules()]


def test_an_order_of_the_layers_of_its_own_counts():
    model, x = Backwards(3, 3).eval(), _cases.randn((2, 3, 4, 4))
    expected = model(x)
    genimg_fast.fuse(model)
    torch.testing.assert_close(model(x), expected)


def test_a_compiled_model_beside_another_is_compiled_once():
    torch._dynamo.reset()
    graphs = []
    made = FusedSequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    compiled = torch.compile(made, backend=lambda graph, inputs: graphs.append(graph) or graph)
    other, x = FusedSequential(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.ReLU()), _cases.randn((2, 3, 32, 32))
    for _ in range(3):
        compiled(x)
        other(x)
    assert len(graphs) == 1
