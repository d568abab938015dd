# SPDX-License-Identifier: MIT
"""Half types on the CPU: fused blocks compute in float32 and round what they give; the rest is left to PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import genimg_fast
from genimg_fast import _backend
from genimg_fast.ops import _half_types
from tests import _cases
from tests.nn._resampling import results

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


class InMethods(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, x):
        return torch.tanh(self.up(F.leaky_relu(self.bn(self.conv(x)), 0.2)))


class Checkpointed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False)


MODELS = {
    "chain": lambda: nn.Sequential(
        *(nn.Conv2d(8, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2)),
        *(nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 3, 3, 1, 1), nn.Tanh()),
    ),
    "methods": InMethods,
    "resamplings": lambda: nn.Sequential(
        *(nn.Conv2d(8, 16, 3, 1, 1), nn.AvgPool2d(2), nn.ReLU()),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(16, 4, 3, 1, 1), nn.Sigmoid()),
    ),
    "between layers of PyTorch's": lambda: nn.Sequential(
        *(nn.Conv2d(8, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 4, 3, 1, 1), nn.Softmax(1)),
    ),
}


@pytest.fixture(params=MODELS)
def models(request):
    """A fused one, and a plain one."""
    torch.manual_seed(0)
    plain = MODELS[request.param]()
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    return fused, plain


def set_cpu(monkeypatch, amx=False, multiplies=()):
    """What PyTorch has instructions for, as "auto" sees it."""
    monkeypatch.setattr(_half_types, "_HAS_AMX", amx)
    monkeypatch.setattr(_half_types, "_MULTIPLIES", {dtype: amx or dtype in multiplies for dtype in DTYPES})


def under_autocast(function, dtype):
    with torch.autocast("cpu", dtype):
        return function()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("input_dtype", [torch.float32, None], ids=["float32", "half"])
@pytest.mark.parametrize("training", [True, False])
def test_nearer_to_the_exact_result_than_torch(models, dtype, training, input_dtype):
    fused, plain = (m.train(training) for m in models)
    exact = copy.deepcopy(plain).double()
    x = _cases.randn((4, 8, 12, 12)).to(input_dtype or dtype)
    before = _backend.native_calls()
    with genimg_fast.use_backend("native"):
        ours = under_autocast(lambda: results(fused, x), dtype)
    assert _backend.native_calls() > before
    theirs = under_autocast(lambda: results(plain, x), dtype)
    assert_nearer(ours, results(exact, x.double()), theirs)


def assert_nearer(ours, exact, theirs):
    for a, e, t in zip(ours, exact, theirs, strict=True):
        assert a.dtype == t.dtype
        if a.dtype == torch.int64:
            assert a == t
        elif e.abs().max() > 1e-9:  # the gradient of a bias before a batch normalisation is all noise
            _cases.assert_accurate(a, e, t, factor=2 * _cases.ERROR_FACTOR if a.dim() == 1 else _cases.ERROR_FACTOR)


def test_reference_is_torch_bit_for_bit(models, dtype):
    fused, plain = models
    x = _cases.randn((4, 8, 12, 12))
    with genimg_fast.use_backend("reference"):
        ours = under_autocast(lambda: results(fused, x), dtype)
    torch.testing.assert_close(ours, under_autocast(lambda: results(plain, x), dtype), rtol=0, atol=0)


def test_left_to_a_cpu_that_multiplies_matrices_of_half_types(models, dtype, monkeypatch):
    set_cpu(monkeypatch, amx=True)
    fused, plain = models
    x = _cases.randn((4, 8, 12, 12))
    before = _backend.native_calls()
    ours = under_autocast(lambda: results(fused, x), dtype)
    assert _backend.native_calls() == before
    torch.testing.assert_close(ours, under_autocast(lambda: results(plain, x), dtype), rtol=0, atol=0)


def test_where_half_types_are_emulated_whole_blocks_are_in_float32(models, dtype, monkeypatch):
    """Those too that PyTorch convolves, since no kernel serves them."""
    set_cpu(monkeypatch)
    x = _cases.randn((4, 8, 12, 12))
    grouped = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()).eval()
    for model in (models[1].eval(), grouped):
        fused = copy.deepcopy(model)
        genimg_fast.fuse(fused)
        with torch.no_grad():
            exact = model(x).to(dtype)
            for _ in range(3):
                ours = under_autocast(lambda m=fused: m(x), dtype)
                assert ours.dtype == dtype
                torch.testing.assert_close(ours, exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@torch.no_grad()
def test_a_half_layer_that_no_kernel_serves_stays_in_float32(dtype, monkeypatch):
    set_cpu(monkeypatch)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU()).eval().to(dtype)
    x = _cases.randn((4, 8, 12, 12), dtype)
    exact = copy.deepcopy(model).float()(x.float()).to(dtype)
    genimg_fast.fuse(model)
    for _ in range(3):
        torch.testing.assert_close(model(x), exact, rtol=0, atol=0)


@torch.no_grad()
def test_half_weights_of_a_resampling_under_autocast(dtype):
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()).to(dtype)
    x = _cases.randn((2, 8, 6, 6))
    exact = copy.deepcopy(model).float()(x).to(dtype)
    genimg_fast.fuse(model)
    with genimg_fast.use_backend("native"):
        torch.testing.assert_close(under_autocast(lambda: model(x), dtype), exact)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("training", [True, False])
def test_models_of_an_emulated_half_type(models, dtype, training, backend, monkeypatch):
    set_cpu(monkeypatch)
    fused, plain = (m.to(dtype).train(training) for m in models)
    exact = copy.deepcopy(plain).double()
    x = _cases.randn((4, 8, 12, 12), dtype)
    with genimg_fast.use_backend(backend):
        with _backend.record_decisions() as decisions:
            ours = results(fused, x)
        assert decisions
        assert all(decision.native for decision in decisions) or backend == "auto"
    assert_nearer(ours, results(exact, x.double()), results(plain, x))
    for _ in range(3):
        with torch.no_grad(), genimg_fast.use_backend(backend):
            assert fused(x).dtype == dtype
    assert {t.dtype for t in fused.state_dict().values()} <= {dtype, torch.int64}


def test_a_model_of_another_type_than_its_input_is_refused(dtype, monkeypatch):
    set_cpu(monkeypatch)
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
    genimg_fast.fuse(model)
    x = _cases.randn((2, 8, 32, 32), dtype)  # large enough for the kernels
    with pytest.raises(TypeError, match=f"weight is torch.float32 but input is {dtype}"):
        model(x)
    assert model[1].num_batches_tracked == 0


def test_models_of_a_half_type_that_the_cpu_has_are_left_to_it(models, dtype, monkeypatch):
    set_cpu(monkeypatch, multiplies=DTYPES)
    fused, plain = (m.to(dtype) for m in models)
    x = _cases.randn((4, 8, 12, 12), dtype)
    torch.testing.assert_close(results(fused, x), results(plain, x), rtol=0, atol=0)


TAKEN = {
    "a lone transposed layer": (lambda: [nn.ConvTranspose2d(64, 64, 4, 2, 1)], True, True),
    "a lone layer": (lambda: [nn.Conv2d(64, 64, 3, 1, 1)], False, False),
    "two layers": (lambda: [nn.Conv2d(64, 64, 3, 1, 1), nn.Conv2d(64, 64, 3, 1, 1)], False, True),
    "three layers": (lambda: [nn.Conv2d(64, 64, 3, 1, 1) for _ in range(3)], True, True),
    "a stride of two at kernel 3": (lambda: [nn.Conv2d(64, 64, 3, 2, 1) for _ in range(3)], False, False),
    "layers that make an image of one pixel": (
        lambda: [nn.ConvTranspose2d(64, 64, 4), nn.ConvTranspose2d(64, 64, 4, 2, 1)],
        True,
        True,
    ),
}


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("case", TAKEN)
def test_which_chains_beat_instructions_for_half_types(case, records, monkeypatch):
    set_cpu(monkeypatch, multiplies=DTYPES)
    make, *taken = TAKEN[case]
    layers = [layer for conv in make() for layer in (conv, nn.ReLU())]
    model = nn.Sequential(*layers)
    genimg_fast.fuse(model)
    size = 1 if model[0].padding == (0, 0) else 32
    x = _cases.randn((8, 64, size, size))
    before = _backend.native_calls()
    with torch.set_grad_enabled(records):
        under_autocast(lambda: model(x), torch.bfloat16)
    assert (_backend.native_calls() > before) is taken[records]


@torch.no_grad()
def test_what_is_left_to_pytorch_in_one_half_type_is_not_in_the_other(monkeypatch):
    set_cpu(monkeypatch, multiplies=[torch.bfloat16])
    model = nn.Sequential(nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
    genimg_fast.fuse(model)
    x = _cases.randn((2, 64, 16, 16))
    for _ in range(3):
        for dtype, served in ((torch.bfloat16, False), (torch.float16, True), (torch.bfloat16, False)):
            before = _backend.native_calls()
            under_autocast(lambda: model(x), dtype)
            assert (_backend.native_calls() > before) is served


@torch.no_grad()
def test_passes_in_and_out_of_autocast_take_turns(models, dtype):
    """What a pass packs, records or learns leaves the others what they are."""
    fused, plain = (m.eval() for m in models)
    x = _cases.randn((2, 8, 8, 8))
    with genimg_fast.use_backend("native"):
        for _ in range(3):
            for _ in range(2):
                half = under_autocast(lambda: fused(x), dtype)
                assert half.dtype == dtype
                torch.testing.assert_close(half, plain(x).to(dtype))
            for _ in range(2):
                torch.testing.assert_close(fused(x), plain(x), atol=1e-5, rtol=1e-4)
        for p, q in zip(fused.parameters(), plain.parameters(), strict=True):
            p.mul_(1.5), q.mul_(1.5)
        torch.testing.assert_close(under_autocast(lambda: fused(x), dtype), plain(x).to(dtype))


def test_float64_stays_float64(models, dtype):
    fused, plain = (m.double() for m in models)
    x = _cases.randn((2, 8, 8, 8), torch.float64)
    with genimg_fast.use_backend("native"):
        ours = under_autocast(lambda: results(fused, x), dtype)
    torch.testing.assert_close(ours, results(plain, x))


def test_gradient_penalty_inside_autocast():
    torch.manual_seed(0)
    plain = MODELS["chain"]()
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    x = _cases.randn((4, 8, 12, 12)).requires_grad_()

    def penalty(model, x):
        (grad,) = torch.autograd.grad(model(x).float().square().sum(), x, create_graph=True)
        (grad.float().flatten(1).norm(dim=1) - 1).square().mean().backward()
        return [p.grad for p in model.parameters()]

    exact = penalty(copy.deepcopy(plain).double(), x.double())
    with genimg_fast.use_backend("native"):
        ours = under_autocast(lambda: penalty(fused, x), torch.bfloat16)
    theirs = under_autocast(lambda: penalty(plain, x), torch.bfloat16)
    for a, e, t in zip(ours, exact, theirs, strict=True):
        if e.abs().max() > 1e-9:
            _cases.assert_accurate(a, e, t, factor=2 * _cases.ERROR_FACTOR)


def test_checkpointing_inside_autocast(models, dtype):
    fused, _ = (m.eval() for m in models)
    x = _cases.randn((4, 8, 12, 12))
    with genimg_fast.use_backend("native"):
        kept = under_autocast(lambda: results(fused, x), dtype)
        again = under_autocast(lambda: results(Checkpointed(fused), x), dtype)
    torch.testing.assert_close(again, kept, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_compiles_whole(models, dtype, backend):
    torch._dynamo.reset()
    fused, plain = (m.eval() for m in models)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = _cases.randn((2, 8, 8, 8))
    with genimg_fast.use_backend(backend):
        ours = under_autocast(lambda: results(compiled, x), dtype)
    exact = [r.to(a.dtype) for r, a in zip(results(plain, x), ours, strict=True)]
    torch.testing.assert_close(ours, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("half", ["all", "normalisation"])
@pytest.mark.parametrize("training", [True, False])
def test_normalisations_of_a_half_type_under_autocast_are_left_to_pytorch(dtype, half, training):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU())
    (plain if half == "all" else plain[2]).to(dtype)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    x = _cases.randn((4, 8, 12, 12))
    ours, theirs = (under_autocast(lambda m=m: results(m.train(training), x), dtype) for m in (fused, plain))
    for a, t in zip(ours, theirs, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a, t, atol=0.05, rtol=0.05)


def test_a_half_layer_that_is_called_twice_moves_its_statistics_twice(dtype, monkeypatch):
    set_cpu(monkeypatch)
    norm = nn.BatchNorm2d(4)
    convs = [nn.Conv2d(4, 4, 3, 1, 1) for _ in range(2)]
    plain = nn.Sequential(convs[0], norm, nn.ReLU(), convs[1], norm, nn.ReLU()).to(dtype)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    x = _cases.randn((4, 4, 8, 8), dtype)
    plain(x), fused(x)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), atol=0.01, rtol=0.02)


def test_statistics_of_half_layers_before_an_error_have_moved(dtype, monkeypatch):
    set_cpu(monkeypatch)
    plain = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU()).to(dtype)
    fused = copy.deepcopy(plain)
    genimg_fast.fuse(fused)
    for model in (plain, fused):
        with pytest.raises((RuntimeError, ValueError)):
            model(_cases.randn((2, 4, 8, 8), dtype) + 1)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), atol=0.01, rtol=0.02)


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_float64_does_not_meet_float32_under_autocast(dtype, backend):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    genimg_fast.fuse(model)
    x = _cases.randn((2, 4, 8, 8), torch.float64)
    with (
        genimg_fast.use_backend(backend),
        pytest.raises((RuntimeError, TypeError), match=r"type|must be the same"),
    ):
        under_autocast(lambda: model(x), dtype)


@pytest.mark.parametrize("emulated", [True, False])
@torch.no_grad()
def test_vmap_under_autocast_gives_the_half_type(dtype, emulated, monkeypatch):
    set_cpu(monkeypatch, multiplies=() if emulated else DTYPES)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    genimg_fast.fuse(model)
    x = _cases.randn((3, 2, 4, 8, 8))
    output = under_autocast(lambda: torch.vmap(model)(x), dtype)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), torch.stack([model(each) for each in x]), atol=0.02, rtol=0.02)
