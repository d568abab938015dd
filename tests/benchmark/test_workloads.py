# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast import nn as gnn
from genimg_fast.benchmark import kernels, suite
from genimg_fast.benchmark.accuracy import Errors, factor
from genimg_fast.benchmark.convolution import DIRECTIONS, Convolution
from genimg_fast.benchmark.functions import (
    BatchNormAct,
    BCELoss,
    BCEWithLogitsLoss,
    ELBOLoss,
    GaussianKLLoss,
    Reparameterize,
    ReparameterizeWithKL,
)
from genimg_fast.benchmark.memory import SavedBytes
from genimg_fast.benchmark.models import (
    BlockInference,
    GANStep,
    GeneratorInference,
    GeneratorTraining,
    VAEStep,
    plain_model,
)
from genimg_fast.benchmark.runtimes import RUNTIMES, Ours, Runtime, fold_batch_norm, isa_environment
from genimg_fast.benchmark.worker import build

INFERENCE = [GeneratorInference(2, image_size=32, width=4), BlockInference(2, 16, 8, 4)]
OTHERS = [
    GeneratorTraining(4, image_size=32, width=4),
    GANStep(4, image_size=32, width=4, latent=8),
    VAEStep(4, image_size=32, width=4, latent=16),
    BCELoss((2, 3, 4, 4)),
    BCEWithLogitsLoss((2, 3, 4, 4)),
    ELBOLoss((2, 3, 4, 4), latent=5),
    GaussianKLLoss((4, 8)),
    Reparameterize((16, 16)),
    ReparameterizeWithKL((16, 16)),
    BatchNormAct((4, 3, 5, 5)),
    *(Convolution(direction, transposed, 2, 6, 5, 4) for direction in DIRECTIONS for transposed in (True, False)),
]
# Those that compile nothing; a runtime that is not installed cannot be tested.
FOR_INFERENCE = [n for n in suite.INFERENCE if n != "inductor_freezing" and RUNTIMES[n].installed()]


@pytest.mark.parametrize("workload", INFERENCE, ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("runtime", ["ours", *FOR_INFERENCE])
def test_every_runtime_infers_what_float64_does(runtime, workload):
    assert build(workload, RUNTIMES[runtime](threads=1))[1].error <= 1


@pytest.mark.parametrize("workload", OTHERS, ids=lambda w: str(w) if isinstance(w, Convolution) else type(w).__name__)
@pytest.mark.parametrize("runtime", ["ours", "eager", "channels_last"])
def test_every_runtime_computes_what_float64_does(runtime, workload):
    assert build(workload, RUNTIMES[runtime]())[1].error <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "workload"),
    [("inductor_freezing", INFERENCE[1]), ("torch_compile", OTHERS[2]), ("torch_compile", Reparameterize((16, 16)))],
)
def test_what_is_compiled_computes_what_float64_does(runtime, workload):
    assert build(workload, RUNTIMES[runtime]())[1].error <= 1


def test_ours_is_the_fused_model_and_the_others_are_plain():
    plain = plain_model("dcgan", Runtime(), torch.float32, width=4).generator
    assert type(plain.main) is nn.Sequential
    assert all(m.inplace for m in plain.modules() if isinstance(m, nn.ReLU))
    assert isinstance(Ours().convert(plain).main, gnn.FusedSequential)


def test_folding_leaves_no_batch_norm_and_the_same_outputs():
    layers = [
        nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
    ]
    model = nn.Sequential(*layers).double()
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        model(x)
        expected = model.eval()(x)
        fold_batch_norm(model)
        torch.testing.assert_close(model(x), expected)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_isa_environment():
    assert isa_environment(None) == {}
    assert "AVX2" in isa_environment("avx2").values()
    with pytest.raises(ValueError, match="'avx2' alone"):
        isa_environment("sse2")


def test_flops_and_bytes():
    block = Convolution("forward", True, 64, 256, 128, 8)
    assert block.output_size == 16
    assert block.flops == 64 * 67_108_864
    assert block.bytes == 4 * (64 * (256 * 64 + 128 * 256) + 256 * 128 * 16)
    assert BlockInference(64, 256, 128, 8).flops == block.flops
    mirrored = Convolution("forward", False, 64, 128, 256, 16)
    assert (mirrored.output_size, mirrored.flops) == (8, block.flops)
    assert str(mirrored) == "conv2d 128-256 k4s2p1 @16, forward"
    assert ELBOLoss((2, 3, 4, 4), latent=5).bytes == 4 * (3 * 96 + 4 * 10)


def test_saved_bytes_count_each_storage_once_and_no_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 8)

        def forward(self, x):
            hidden = self.linear(x)  # saves x and the weight, which do not count
            return (hidden * hidden).tanh()  # saves hidden, twice the same, and tanh's output

    class Problem:
        def build(self, runtime, dtype):
            return Net(), torch.randn(2, 4)

    assert SavedBytes(Problem())(Runtime()) == 2 * (2 * 8 * 4)


def test_errors_are_measured_with_and_without_winograd():
    errors = Errors(Convolution("forward", True, 4, 128, 64, 8))(Ours())
    assert errors["winograd"] > 1.5 * errors["plain"] > 0  # only if the setting reached the kernels
    assert factor({"eager": 0.0, "plain": 2.0**-23}, "plain") == 2  # eager was lucky
    assert factor({"eager": 1e-6, "plain": 2e-6}, "plain") == 2


def test_limits_are_measured():
    limits = kernels.measure_limits(Runtime())
    assert limits.flops_per_second > 1e9
    assert limits.bytes_per_second > 1e8
