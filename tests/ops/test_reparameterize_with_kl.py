# SPDX-License-Identifier: MIT
from __future__ import annotations

import itertools

import pytest
import torch

from genimg_fast import _backend, functional
from genimg_fast.functional import reparameterize_with_kl
from genimg_fast.nn import ReparameterizeWithKL
from genimg_fast.ops._check import REDUCTIONS
from genimg_fast.ops.reparameterize import reparameterize_with_seed
from genimg_fast.ops.reparameterize_with_kl import reparameterize_with_kl_and_seed
from genimg_fast.reference import gaussian_kl_loss as kl_reference
from genimg_fast.reference import reparameterize_with_kl as reference
from tests import _cases
from tests.ops import _threads

SEED = torch.tensor(0x0123456789ABCDEF)  # both key words in use
USES = {"both": (True, True), "z": (True, False), "kl": (False, True)}


def run(function, mu, logvar, reduction, uses=(True, True)):
    """Outputs and both gradients, under upstream gradients that are not 1 and differ; of the outputs in `uses` alone."""
    leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
    outputs = function(*leaves, SEED, reduction)
    upstreams = [
        weight * (1 + torch.arange(out.numel()) % 3).to(out).view(out.shape)
        for out, weight in zip(outputs, (0.7, -0.3), strict=True)
    ]
    used, upstreams = (list(itertools.compress(tensors, uses)) for tensors in (outputs, upstreams))
    gradients = torch.autograd.grad(used, leaves, upstreams)
    return [*(out.detach() for out in outputs), *gradients]


def latents(shape, dtype=torch.float32):
    return _cases.randn(shape, dtype, 1), 2 * _cases.randn(shape, dtype, 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", _cases.ELEMENTWISE_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(isa, shape, dtype, reduction):
    mu, logvar = latents(shape, dtype)
    # The noise itself may differ in its last bits from the reference's: compare on the native one.
    zeros = torch.zeros(shape, dtype=dtype)
    noise = torch.ops.genimg_fast.reparameterize(zeros, zeros, SEED)

    def with_same_noise(mu, logvar, seed, reduction):
        z = mu + torch.exp(0.5 * logvar) * noise.to(mu.dtype)
        return z, kl_reference.gaussian_kl_loss(mu, logvar, reduction)

    exact = run(with_same_noise, mu.double(), logvar.double(), reduction)
    torch_result = run(with_same_noise, mu, logvar, reduction)
    for name, layout in _cases.layouts(shape):
        with _backend.use_backend("native"):
            actual = run(reparameterize_with_kl_and_seed, layout(mu), layout(logvar), reduction)
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_two_functions_in_one(isa, dtype, reduction, uses):
    def separately(mu, logvar, seed, reduction):
        return reparameterize_with_seed(mu, logvar, seed), functional.gaussian_kl_loss(mu, logvar, reduction)

    with _backend.use_backend("native"):
        actual = run(reparameterize_with_kl_and_seed, *latents((31, 33), dtype), reduction, uses)
        expected = run(separately, *latents((31, 33), dtype), reduction, uses)
    assert torch.equal(actual[0], expected[0])  # the same noise, to the bit
    torch.testing.assert_close(actual[1:], expected[1:])


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_backends_agree(isa, reduction, uses):
    actual = run(reparameterize_with_kl_and_seed, *latents((33, 7)), reduction, uses)
    expected = run(reference.reparameterize_with_kl, *latents((33, 7)), reduction, uses)
    torch.testing.assert_close(actual, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_generator_and_default_reduction_are_those_of_the_two_functions(backend):
    mu, logvar = latents((5, 4))
    with _backend.use_backend(backend):
        torch.manual_seed(3)
        z, kl = reparameterize_with_kl(mu, logvar)
        torch.manual_seed(3)
        assert torch.equal(z, functional.reparameterize(mu, logvar))
        torch.testing.assert_close(kl, functional.gaussian_kl_loss(mu, logvar))
        generators = [torch.Generator().manual_seed(4) for _ in range(2)]
        z, _ = reparameterize_with_kl(mu, logvar, "sum", generator=generators[0])
        assert torch.equal(z, functional.reparameterize(mu, logvar, generator=generators[1]))


@pytest.mark.parametrize("of", [(True, False), (False, True)], ids=["mu", "logvar"])
@pytest.mark.parametrize("uses", USES.values(), ids=USES)
def test_either_input_may_be_constant(of, uses):
    mu, logvar = latents((5, 3))
    both = run(reparameterize_with_kl_and_seed, mu, logvar, "sum", uses)[2:]
    leaves = [t.clone().requires_grad_(grad) for t, grad in zip((mu, logvar), of, strict=True)]
    z, kl = reparameterize_with_kl_and_seed(*leaves, SEED, "sum")
    weights = (1 + torch.arange(z.numel()) % 3).view(z.shape)
    ((0.7 * (weights * z).sum() if uses[0] else 0) - (0.3 * kl if uses[1] else 0)).backward()
    for leaf, expected in zip(leaves, both, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, expected)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_derivatives(isa, reduction, uses):
    leaves = [t.requires_grad_() for t in latents((3, 4), torch.float64)]

    def used(mu, logvar):
        return tuple(itertools.compress(reparameterize_with_kl_and_seed(mu, logvar, SEED, reduction), uses))

    with _backend.use_backend("native"):
        assert torch.autograd.gradcheck(used, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(used, leaves, fast_mode=True)


def test_layout_changes_neither_noise_nor_is_changed():
    mu, logvar = latents((2, 3, 4, 5))
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in (mu, logvar)]
    expected = run(reparameterize_with_kl_and_seed, mu, logvar, "none")
    actual = run(reparameterize_with_kl_and_seed, *channels_last, "none")
    assert all(map(torch.equal, actual, expected))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual)
    mixed = run(reparameterize_with_kl_and_seed, mu, channels_last[1], "none")
    assert all(map(torch.equal, mixed, expected))


def test_results_do_not_depend_on_the_number_of_threads(isa):
    mu, logvar = latents((300, 321))
    for reduction in ("none", "sum"):
        _threads.check_threads(
            lambda reduction=reduction: torch.cat(
                [t.flatten() for t in run(reparameterize_with_kl_and_seed, mu, logvar, reduction)]
            )
        )


@pytest.mark.parametrize("uses", USES.values(), ids=USES)
def test_nan_and_inf_travel(isa, uses):
    mu = torch.tensor([float("nan"), float("inf"), 0.0, 0.0, 0.0])
    logvar = torch.tensor([0.0, 0.0, float("nan"), float("inf"), float("-inf")])
    for reduction in ("none", "sum"):
        actual = run(reparameterize_with_kl_and_seed, mu, logvar, reduction, uses)
        expected = run(reference.reparameterize_with_kl, mu, logvar, reduction, uses)
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_keeps_its_inputs_alone_for_backward():
    saved = []
    mu, logvar = (t.requires_grad_() for t in latents((5, 3)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reparameterize_with_kl(mu, logvar)
    assert [t.data_ptr() for t in saved if t.numel() > 1] == [mu.data_ptr(), logvar.data_ptr()]


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap_obeys_randomness(backend):
    mu, logvar = torch.zeros(3, 50), torch.zeros(3, 50)
    with _backend.use_backend(backend):
        same, kl = torch.vmap(reparameterize_with_kl, randomness="same")(mu, logvar)
        different, _ = torch.vmap(reparameterize_with_kl, randomness="different")(mu, logvar)
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(reparameterize_with_kl)(mu, logvar)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    assert kl.shape == (3,)


def test_batched_upstream_gradients():
    mu, logvar = (t.requires_grad_() for t in latents((4, 3)))
    outputs = reparameterize_with_kl_and_seed(mu, logvar, SEED, "sum")
    upstreams = [_cases.randn((2, *out.shape), seed=5) for out in outputs]
    batched = torch.autograd.grad(outputs, (mu, logvar), upstreams, retain_graph=True, is_grads_batched=True)
    for i in range(2):
        one = torch.autograd.grad(outputs, (mu, logvar), [u[i] for u in upstreams], retain_graph=True)
        torch.testing.assert_close([g[i] for g in batched], list(one))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reduction", ["none", "batchmean"])
def test_opcheck(layout, reduction):
    ops, code = torch.ops.genimg_fast, REDUCTIONS[reduction]
    mu, logvar = (t.clone(memory_format=layout) for t in latents((2, 3, 4, 5)))
    leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
    torch.library.opcheck(ops.reparameterize_with_kl.default, (*leaves, SEED, code))
    grad_kl = logvar if reduction == "none" else torch.tensor(0.7)
    for grad_z in (mu, None):
        torch.library.opcheck(ops.reparameterize_with_kl_backward.default, (grad_z, grad_kl, mu, logvar, SEED, code))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grad_z": torch.zeros(3)}, "differ in shape"),
        ({"grad_z": torch.zeros(2).double()}, "differ in dtype"),
        ({"grad_kl": torch.zeros(2)}, "grad_kl has not the shape of the divergence"),
        ({"grad_kl": torch.zeros(()), "reduction": 0}, "grad_kl has not the shape of the divergence"),
        ({"grad_kl": torch.zeros(()).double()}, "grad_kl and mu differ in dtype"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "seed must be one int64"),
    ],
)
def test_a_direct_call_of_the_backward_touches_no_memory_it_must_not(arguments, message):
    given = {"grad_z": torch.zeros(2), "grad_kl": torch.zeros(()), "mu": torch.zeros(2), "logvar": torch.zeros(2)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.genimg_fast.reparameterize_with_kl_backward(**{**given, "seed": SEED, "reduction": 1, **arguments})


def test_autocast_computes_in_float32():
    mu, logvar = torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert [t.dtype for t in reparameterize_with_kl(mu, logvar)] == [torch.float32] * 2
    assert [t.dtype for t in reparameterize_with_kl(mu, logvar)] == [torch.bfloat16] * 2


def test_module():
    module, (mu, logvar) = ReparameterizeWithKL("batchmean"), latents((5, 3))
    assert repr(module) == "ReparameterizeWithKL(reduction='batchmean')"
    actual = module(mu, logvar, generator=torch.Generator().manual_seed(4))
    expected = reparameterize_with_kl(mu, logvar, "batchmean", generator=torch.Generator().manual_seed(4))
    assert all(map(torch.equal, actual, expected))
    with pytest.raises(ValueError, match="ReparameterizeWithKL: reduction must be one of 'none', 'mean'"):
        ReparameterizeWithKL("avg")


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (torch.zeros(2), torch.zeros(3)),
            ValueError,
            r"reparameterize_with_kl: logvar has shape \(3,\) but mu has \(2,\)",
        ),
        ((torch.zeros(2), torch.zeros(2).double()), TypeError, "logvar is torch.float64 but mu is torch.float32"),
        ((torch.zeros(2).long(), torch.zeros(2)), TypeError, "mu must be floating point, got torch.int64"),
        ((3.0, torch.zeros(2)), TypeError, "mu must be a Tensor, got float"),
        (
            (torch.zeros(2), torch.zeros(2), "avg"),
            ValueError,
            "reduction must be one of 'none', 'mean', 'sum', 'batchmean'",
        ),
        ((torch.zeros(2), torch.zeros(2, device="meta")), ValueError, "logvar is on meta but mu is on cpu"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        reparameterize_with_kl(*args)
