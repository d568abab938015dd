# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import reparameterize, reparameterize_with_kl
from genimg_fast.nn.reparameterize import Reparameterize
from genimg_fast.ops.reparameterize import draw_seed, reparameterize_with_seed
from genimg_fast.reference import philox
from genimg_fast.reference import reparameterize as reference
from tests import _cases

SEED = torch.tensor(0x0123456789ABCDEF)  # both key words in use

# Counter, key and words of philox4x32-10: the known answers that come with Random123, the authors' own library.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def native_noise(shape, seed=SEED, dtype=torch.float32):
    zeros = torch.zeros(shape, dtype=dtype)
    return torch.ops.genimg_fast.reparameterize(zeros, zeros, seed)


def run(function, mu, logvar):
    """Output and both gradients, under an upstream gradient that is not 1."""
    leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
    out = function(*leaves, SEED)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.full_like(out, 0.7))]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(isa, counter, key, words):
    blocks = 19  # whole vectors of every instruction set, and a scalar rest
    counters = torch.tensor(counter)[:, None].expand(4, blocks)
    assert torch.ops.genimg_fast.philox4x32(counters, torch.tensor(key)).T.tolist() == [list(words)] * blocks
    reference_words = philox.philox4x32(tuple(torch.tensor(counter)), tuple(torch.tensor(key)))
    assert [w.item() for w in reference_words] == list(words)


def test_vectors_scalars_and_reference_draw_the_same_integers(isa):
    counters, key = torch.randint(2**32, (4, 1003)), torch.randint(2**32, (2,))
    words = torch.ops.genimg_fast.philox4x32(counters, key)
    assert torch.equal(words, torch.stack(philox.philox4x32(tuple(counters), tuple(key))))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**63 - 1])
def test_native_and_reference_draw_the_same_noise(isa, seed):
    seed = torch.tensor(seed)
    expected = philox.normal(seed, torch.Size([5000]))
    torch.testing.assert_close(native_noise(5000, seed), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(native_noise(5000, seed, torch.float64).float(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(native_noise(4999, seed), native_noise(5000, seed)[:-1])


def test_noise_is_accurate_to_a_few_ulp(isa):
    """Against the formula in float64, on the same integers."""
    noise = native_noise(100_000).double().view(-1, 2)
    block = torch.arange(25_000)
    zero = torch.zeros_like(block)
    words = philox.philox4x32((block, zero, zero, zero), (SEED & 0xFFFFFFFF, SEED >> 32))
    words = torch.stack(words, dim=1).view(-1, 2)
    radius = (-2 * (((words[:, 0] >> 8) + 1) * 2.0**-24).double().log()).sqrt()
    angle = (words[:, 1] >> 8).double() * (2 * math.pi / 2**24)
    exact = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    assert ((noise - exact).abs() <= 5 * 2.0**-24 * exact.abs() + 1e-10).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_noise_is_standard_normal(backend):
    n = 1_000_000
    with _backend.use_backend(backend):
        z = reparameterize_with_seed(torch.zeros(n), torch.zeros(n), SEED).double()
    # Five standard errors each.
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert abs(z.var().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(3).mean().item()) < 5 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / n)
    for lag in (1, 2, 3, 4, 64):
        assert abs((z[lag:] * z[:-lag]).mean().item()) < 5 / math.sqrt(n)
        squares = z.square() - 1  # the two of a Box-Muller pair share their radius's uniform number
        assert abs((squares[lag:] * squares[:-lag]).mean().item()) < 5 * 2 / math.sqrt(n)
    cumulative = 0.5 * (1 + torch.erf(z.sort().values / math.sqrt(2)))
    kolmogorov_smirnov = (cumulative - (torch.arange(n) + 0.5) / n).abs().max().item()
    assert kolmogorov_smirnov < 2 / math.sqrt(n)  # exceeded once in 1500


def test_different_seeds_are_uncorrelated():
    a, b = native_noise(100_000, torch.tensor(7)).double(), native_noise(100_000, torch.tensor(8)).double()
    assert abs((a * b).mean().item()) < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("shape", _cases.ELEMENTWISE_SHAPES)
def test_matches_float64(isa, shape):
    mu, logvar = _cases.randn(shape, seed=1), 2 * _cases.randn(shape, seed=2)
    # The noise itself may differ in its last bits from the reference's: compare on the native one.
    noise = native_noise(shape)

    def with_same_noise(mu, logvar, seed):
        return mu + torch.exp(0.5 * logvar) * noise.to(mu.dtype)

    exact, torch_result = run(with_same_noise, mu.double(), logvar.double()), run(with_same_noise, mu, logvar)
    double = run(torch.ops.genimg_fast.reparameterize, mu.double(), logvar.double())
    torch.testing.assert_close(double, exact, rtol=1e-14, atol=1e-14)
    for name, layout in _cases.layouts(shape):
        actual = run(torch.ops.genimg_fast.reparameterize, layout(mu), layout(logvar))
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


def test_backends_agree(isa):
    mu, logvar = _cases.randn((33, 7), seed=1), _cases.randn((33, 7), seed=2)
    actual = run(reparameterize_with_seed, mu, logvar)
    torch.testing.assert_close(actual, run(reference.reparameterize, mu, logvar), rtol=2e-6, atol=2e-6)


def test_layout_changes_neither_noise_nor_is_changed():
    mu, logvar = _cases.randn((2, 3, 4, 5), seed=1), _cases.randn((2, 3, 4, 5), seed=2)
    out = reparameterize_with_seed(mu, logvar, SEED)
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in (mu, logvar)]
    other = reparameterize_with_seed(*channels_last, SEED)
    assert torch.equal(out, other)
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_noise_does_not_depend_on_the_number_of_threads(isa):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(native_noise((100, 321)))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_torch_seeds_reproduce_the_noise():
    mu, logvar = torch.zeros(100), torch.zeros(100)
    torch.manual_seed(3)
    first, second = reparameterize(mu, logvar), Reparameterize()(mu, logvar)
    torch.manual_seed(3)
    assert torch.equal(first, reparameterize(mu, logvar))
    assert not torch.equal(first, second)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    a, b = (reparameterize(mu, logvar, generator=g) for g in generators)
    assert torch.equal(a, b)
    assert not torch.equal(a, first)


class GeneratorOnCuda:
    """What a generator of CUDA's has and draws: a seed, and a place that it counts by fours."""

    device = torch.device("cuda", 0)

    def __init__(self, seed):
        self.seed, self.offset = seed, 0

    def initial_seed(self):
        return self.seed

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        assert offset % 4 == 0
        self.offset = offset


class OnCuda:
    is_cuda, device = True, torch.device("cuda", 0)

    def get_device(self):
        return 0


def test_a_seed_on_cuda_needs_no_kernel(monkeypatch):
    """It is made of the place of torch's generator, which moves on; where that would be wrong, it is drawn on the device."""
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    generators = {seed: GeneratorOnCuda(seed) for seed in (0, 1, 2**63 + 5)}
    seeds = [draw_seed(OnCuda(), g) for g in generators.values() for _ in range(1000)]
    assert all(t.device.type == "cpu" and t.dtype == torch.int64 and 0 <= int(t) < 2**63 for t in seeds)
    assert len({int(t) for t in seeds}) == len(seeds)
    bits = torch.stack(seeds)[:, None] >> torch.arange(62) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / len(seeds) ** 0.5

    generators[0].set_offset(0)  # as torch.manual_seed does, and set_rng_state to any place
    assert draw_seed(OnCuda(), generators[0]) == seeds[0]
    monkeypatch.setattr(torch.cuda, "default_generators", [generators[0]])
    assert draw_seed(OnCuda(), None) == seeds[1]

    drawn = []
    monkeypatch.setattr(torch, "randint", lambda *args, device, **kwargs: drawn.append(device))
    draw_seed(OnCuda(), torch.Generator())  # of another device: PyTorch's error
    capturing = True
    draw_seed(OnCuda(), generators[0])
    assert drawn == [OnCuda.device] * 2


def test_nan_and_inf_travel(isa):
    mu = torch.tensor([float("nan"), float("inf"), 0.0, 0.0, 0.0])
    logvar = torch.tensor([0.0, 0.0, float("nan"), float("inf"), float("-inf")])
    expected = run(reference.reparameterize, mu, logvar)
    torch.testing.assert_close(run(reparameterize_with_seed, mu, logvar), expected, equal_nan=True)


def test_keeps_no_noise_for_backward():
    saved = []
    mu, logvar = (_cases.randn((5, 3), seed=s).requires_grad_() for s in (1, 2))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reparameterize(mu, logvar)
    assert [t.data_ptr() for t in saved if t.numel() > 1] == [logvar.data_ptr()]


def test_compiles_with_its_own_seed():
    torch._dynamo.reset()
    compiled = torch.compile(reparameterize, fullgraph=True, backend="aot_eager")
    mu, logvar = torch.zeros(1000), torch.zeros(1000)
    first, second = compiled(mu, logvar), compiled(mu, logvar)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_vmap_obeys_randomness(backend):
    mu, logvar = torch.zeros(3, 50), torch.zeros(3, 50)
    with _backend.use_backend(backend):
        same = torch.vmap(reparameterize, randomness="same")(mu, logvar)
        different = torch.vmap(reparameterize, randomness="different")(mu, logvar)
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(reparameterize)(mu, logvar)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


def test_opcheck():
    mu, logvar = _cases.randn((2, 3, 4, 5), seed=1), _cases.randn((2, 3, 4, 5), seed=2)
    ops = torch.ops.genimg_fast
    for layout in (torch.contiguous_format, torch.channels_last):
        m, v = (t.clone(memory_format=layout).requires_grad_() for t in (mu, logvar))
        torch.library.opcheck(ops.reparameterize.default, (m, v, SEED))
        torch.library.opcheck(ops.reparameterize_backward.default, (m.detach(), v.detach(), SEED))


def test_a_generator_that_is_none():
    for function in (reparameterize, reparameterize_with_kl):
        with pytest.raises(TypeError, match=f"^{function.__name__}: generator must be a torch.Generator, got int"):
            function(torch.zeros(2), torch.zeros(2), generator=0)


def test_autocast_computes_in_float32():
    mu, logvar = torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert reparameterize(mu, logvar).dtype == torch.float32
    assert reparameterize(mu, logvar).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(2), torch.zeros(3)), ValueError, r"reparameterize: logvar has shape \(3,\) but mu has \(2,\)"),
        ((torch.zeros(2), torch.zeros(2).double()), TypeError, "logvar is torch.float64 but mu is torch.float32"),
        ((torch.zeros(2).long(), torch.zeros(2)), TypeError, "mu must be floating point, got torch.int64"),
        ((3.0, torch.zeros(2)), TypeError, "mu must be a Tensor, got float"),
        ((torch.zeros(2), torch.zeros(2, device="meta")), ValueError, "logvar is on meta but mu is on cpu"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        reparameterize(*args)
