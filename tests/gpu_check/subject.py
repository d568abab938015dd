# SPDX-License-Identifier: MIT
"""The checks of an op, in a process of their own:

    python -m tests.gpu_check.subject gaussian_kl_loss --seed 1 --out runs/kl.json

Subjects are the ops of `cases`, "models", the convolutions "... by wgmma", and one of each tile of these kernels.  The result is
{check: {"ok", "cases", "failed": [...], ...}}, written as each case begins; checks that `--out` holds already are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from genimg_fast import _extension, use_backend
from genimg_fast._block import Geometry
from genimg_fast.backends import cuda
from genimg_fast.ops import _loss
from genimg_fast.ops._check import ACTIVATIONS, RECONSTRUCTIONS, REDUCTIONS
from tests import _cases
from tests import test_random_configurations as convolutions
from tests.gpu_check import cases, models
from tests.gpu_check.cases import Case, ConvolutionCase, Tensors

BY_WGMMA = {f"{op} by wgmma": op for op in cases.LAYERS}
"""Processes of their own: a fault of these kernels may hang the one they run in."""
CANARY = "wgmma, one of each tile"
RUNS = 20
IMAGES = 8
MOST_FAILURES = 10  # that are told


class Mode(NamedTuple):
    name: str
    dtype: torch.dtype
    tf32: bool = False

    @contextmanager
    def in_force(self) -> Iterator[None]:
        conv = torch.backends.cudnn.conv
        before = conv.fp32_precision  # type: ignore[attr-defined]
        conv.fp32_precision = "tf32" if self.tf32 else "ieee"  # type: ignore[attr-defined]
        try:
            yield
        finally:
            conv.fp32_precision = before  # type: ignore[attr-defined]


def modes(op: str) -> list[Mode]:
    """What the kernels take."""
    half = [Mode("float16", torch.float16), Mode("bfloat16", torch.bfloat16)]
    if cuda.allow_wgmma:  # which serve no other
        return half
    return [Mode("float32", torch.float32), *[Mode("tf32", torch.float32, tf32=True)] * (op in cases.LAYERS), *half]


class Findings:
    """Counts cases and collects what failed: one line each.

    Args:
        keep: takes the result so far as each case begins, in case that one never ends.
    """

    def __init__(self, keep: Callable[[dict[str, Any]], None] = lambda result: None) -> None:
        self.cases, self.failed, self.facts = 0, list[str](), dict[str, Any]()
        self._keep = keep

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        self._keep({**self.result(), "ok": False if self.failed else None, "running": name})
        self.cases += 1
        try:
            yield
        except Exception as error:  # whatever it is: the other cases are still wanted
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            self.failed.append(f"{name}: {kind}{' '.join(str(error).split())[:300]}")

    def result(self) -> dict[str, Any]:
        found = {"ok": self.cases > 0 and not self.failed, "cases": self.cases, "failures": len(self.failed)}
        return {**found, "failed": self.failed[:MOST_FAILURES], **self.facts}


# --- parity ----------------------------------------------------------------------------------------------------------


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever torch allocates uninitialised is NaN: an output that a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def parity(found: Findings, op: str, seed: int, *, quick: bool) -> None:
    """Forward and backward against float64 on the same rounded inputs, as tests/_cases.py measures."""
    with found.case("control: uninitialised memory is poisoned"), poisoned():
        assert torch.empty(1000, device="cuda").isnan().all()
    for mode in modes(op):
        with mode.in_force():
            if op in cases.LAYERS:
                _convolutions(found, op, seed, mode, quick)
            else:
                for case in cases.of(op)[:: 9 if quick else 1]:
                    with found.case(f"{mode.name} {case.name}"):
                        _compare(op, case, seed, mode.dtype)


def _compare(op: str, case: Case, seed: int, dtype: torch.dtype) -> None:
    tensors = case.tensors(seed, "cuda", dtype)
    doubles = {n: t.double() if t is not None and t.is_floating_point() else t for n, t in tensors.items()}
    with use_backend("reference"):
        exact, torch_results = case.run(doubles), case.run(tensors)
    with use_backend("native"), poisoned():
        actual = case.run(tensors)
    assert actual.keys() == exact.keys()
    for name, value in actual.items():
        terms = 0.0
        if op == "batch_norm_act" and name in ("gradient of weight", "gradient of bias"):
            terms = cases.upstream(exact["output 0"]).norm().item() / max(len(value), 1) ** 0.5
        _cases.assert_accurate(value, exact[name], torch_results[name], what=name, size_of_terms=terms)


def _convolutions(found: Findings, op: str, seed: int, mode: Mode, quick: bool) -> None:
    """Tells the largest error of DCGAN's layers as a multiple of PyTorch's own."""
    worst = found.facts.setdefault("error_over_that_of_pytorch", {})
    layers = cases.layers(op, 2 if quick else IMAGES)
    for layer in layers[-2:] if quick else layers:
        with found.case(f"{mode.name} {ConvolutionCase(layer).name}"):
            worst[mode.name] = max(worst.get(mode.name, 0.0), *_convolution(layer, seed, mode).values())
    normalised = [layer for layer in layers if layer.norm in ("training", "folded")]
    # float32 without TF32 runs on no tensor cores: there is no tile to force.
    for tile in tiles()[:: 4 if quick else 1] if mode.name != "float32" else ():
        for layer in normalised[:: 4 if quick else 1]:
            with found.case(f"{mode.name} {tile} {ConvolutionCase(layer).name}"), cuda.force_tile(tile):
                _convolution(layer, seed, mode)
    for configuration in cases.random_configurations(op, seed, 5 if quick else cases.RANDOM_CONFIGURATIONS):
        with found.case(f"{mode.name} {configuration}"):
            _convolution(configuration, configuration.seed, mode)


def _convolution(configuration: convolutions.Configuration, seed: int, mode: Mode) -> dict[str, float]:
    kink = cases.NEAR_KINK[mode.dtype] if mode.tf32 or mode.dtype != torch.float32 else convolutions.NEAR_KINK

    def native(tensors: Tensors, configuration: convolutions.Configuration) -> dict[str, torch.Tensor]:
        with poisoned():
            return cases.run_native(tensors, configuration)

    configuration = dataclasses.replace(configuration, seed=seed, dtype=mode.dtype)
    return convolutions.check(configuration, native, device="cuda", near_kink=kink, tf32=mode.tf32)


def tiles() -> list[str]:
    """Of the instructions that are allowed."""
    return [name for name, (by_wgmma, _) in cuda.TILES.items() if by_wgmma == cuda.allow_wgmma]


def canary(found: Findings, seed: int) -> None:
    """One layer by each tile: where these kernels hang, this takes no more than seconds to tell."""
    layer = cases.layer_configuration("conv_transpose2d_bn_act", (256, 128, 8, 4, 2, 1), IMAGES, "folded")
    for tile in tiles():
        with found.case(f"{tile} {ConvolutionCase(layer).name}"), cuda.force_tile(tile):
            _convolution(layer, seed, Mode("bfloat16", torch.bfloat16))


# --- what PyTorch expects of an operator -----------------------------------------------------------------------------


def opcheck(found: Findings, op: str) -> None:
    # Backward may write into the gradients that a loss made forward.  Here, unlike below the public functions, they are seen.
    kept = mock.patch.object(_loss, "_is_last_backward", return_value=False)
    for name, arguments in operators(op):
        with found.case(name), kept:
            torch.library.opcheck(getattr(torch.ops.genimg_fast, name).default, arguments)


def operators(op: str) -> Iterator[tuple[str, tuple]]:
    """The operators behind an op, with arguments.  Those of the convolution blocks are CUDA's alone."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to("cuda")

    def leaf(*shape: int) -> torch.Tensor:
        return randn(*shape).requires_grad_()

    seed = torch.tensor(7, device="cuda")
    if op in cases.LAYERS:
        transposed = op == "conv_transpose2d_bn_act"
        codes = Geometry(transposed, (2, 2), (1, 1), (0, 0), (1, 1)).codes()
        weight, affine = leaf(8, 8, 4, 4), (1e-5, codes, ACTIVATIONS["leaky_relu"], 0.2, int(cuda.allow_wgmma) + 1, -1)
        for format in (torch.contiguous_format, torch.channels_last):
            image = randn(2, 8, 6, 6).contiguous(memory_format=format).requires_grad_()
            yield "convolution_block", (image, weight, None, leaf(8), None, None, None, None, *affine)
            yield "convolution_block", (image, weight, None, leaf(8), None, None, None, None, *affine, False)
            yield "convolution_block_training", (image, weight, leaf(8), leaf(8), leaf(8), *affine)
            running = (randn(8), randn(8).abs() + 0.5, 0.1)
            yield (
                "convolution_block_training_",
                (image.detach(), weight.detach(), None, randn(8), None, *running, *affine),
            )
            yield "resampling_weight", (randn(5, 8, 3, 3).contiguous(memory_format=format), not transposed)
            yield "resampling_weight_grad", (randn(8, 5, 4, 4).contiguous(memory_format=format), not transposed)
            if transposed:  # an image layer, in both orders
                of_images = (image, leaf(8, 3, 4, 4), None, leaf(3), None, None, None, None, *affine)
                yield "convolution_block", of_images
                yield "convolution_block", (*of_images, False)
    elif op == "batch_norm_act":
        x, mean, var, w, b = leaf(4, 3, 5, 5), randn(3), randn(3).abs() + 0.5, leaf(3), leaf(3)
        yield "batch_norm_act_training", (x, w, b, 1e-5, ACTIVATIONS["relu"], 0.01)
        yield "batch_norm_act_inference", (x, mean, var, w, b, 1e-5, ACTIVATIONS["tanh"], 0.01)
        x, w, b = x.detach(), w.detach(), b.detach()
        backward = (randn(4, 3, 5, 5), x, mean, var, w, b, 1e-5, ACTIVATIONS["relu"], 0.01)
        yield "batch_norm_act_backward", (*backward, True)
        yield "batch_norm_act_statistics", (x,)
        yield "batch_norm_act_move_statistics_", (randn(3), randn(3).half(), mean, var, 0.1, 1.5)
        yield "batch_norm_act_gradient_sums", backward
        yield "batch_norm_act_gradient_input", (*backward, randn(3), randn(3))
    elif op == "reparameterize":
        yield "reparameterize", (leaf(9, 33), leaf(9, 33), seed)
        yield "reparameterize", (leaf(9, 33), leaf(9, 33), seed.cpu())
        yield "reparameterize_backward", (randn(9, 33), randn(9, 33), seed)
    else:
        for code in (REDUCTIONS["none"], REDUCTIONS["mean"]):
            if op == "reparameterize_with_kl":
                yield op, (leaf(9, 33), leaf(9, 33), seed, code)
                grad_kl = randn(9, 33) if code == REDUCTIONS["none"] else randn()
                yield f"{op}_backward", (randn(9, 33), grad_kl, randn(9, 33), randn(9, 33), seed, code)
            elif op == "gaussian_kl_loss":
                yield op, (leaf(9, 33), leaf(9, 33), code, True)
                yield "scale_gradient_", (randn(9, 33), randn())
                yield "scale_gradient_", (randn(9, 33).bfloat16(), randn())
            elif op == "bce_loss":
                yield op, (randn(9, 33).sigmoid().requires_grad_(), randn(9, 33).sigmoid(), None, code, True, False)
            elif op == "bce_with_logits_loss":
                yield op, (leaf(9, 33), randn(9, 33).sigmoid(), randn(9, 33).abs(), None, code, True, False)
            elif code == REDUCTIONS["mean"]:
                kind = RECONSTRUCTIONS["bce_with_logits"]
                yield op, (leaf(9, 33), randn(9, 33).sigmoid(), leaf(9, 4), leaf(9, 4), kind, 0.5, code, True, False)


# --- the same bits, from a graph and from run to run -----------------------------------------------------------------


def graph(found: Findings, op: str, seed: int, *, quick: bool) -> None:
    """Captures forward and backward, replays them on other values, and compares the bits with a plain run."""
    for mode, case in representatives(op, quick):
        with found.case(f"{mode.name} {case.name}"), mode.in_force(), use_backend("native"):
            static, fresh = (case.tensors(s, "cuda", mode.dtype) for s in (seed, seed + 1))
            replay = models.captured(lambda case=case, static=static: case.run(static))
            for name, t in static.items():
                if t is not None:
                    t.copy_(fresh[name])
            _assert_same_bits(replay(), case.run(fresh))


def determinism(found: Findings, op: str, seed: int, *, quick: bool) -> None:
    found.facts["runs"] = 3 if quick else RUNS
    for mode, case in representatives(op, quick):
        with found.case(f"{mode.name} {case.name}"), mode.in_force(), use_backend("native"):
            tensors = case.tensors(seed, "cuda", mode.dtype)
            first = case.run(tensors)
            for _ in range(found.facts["runs"] - 1):
                _assert_same_bits(case.run(tensors), first)


def representatives(op: str, quick: bool) -> Iterator[tuple[Mode, Case | ConvolutionCase]]:
    for mode in modes(op):
        if mode.name == "float32" and op == "conv2d_bn_act":
            continue  # without TF32 cuDNN serves it
        for case in cases.representatives(op, 2 if quick else IMAGES, 4 if quick else 1):
            yield mode, case


def _assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in actual.items():
        difference = (value.double() - expected[name].double()).abs().max().item()
        assert torch.equal(value, expected[name]), f"{name} differs by up to {difference:.2e}"


# --- the process -----------------------------------------------------------------------------------------------------


def check(subject: str, seed: int, out: Path, *, quick: bool = False) -> None:
    """All checks of a subject, but those that `out` holds from their begin to their end."""
    checks: dict[str, Callable[[Findings], None]]
    cuda.allow_wgmma = subject == CANARY or subject in BY_WGMMA
    op = BY_WGMMA.get(subject, subject)
    if subject == CANARY:
        checks = {"canary": lambda found: canary(found, seed)}
    elif subject == "models":
        checks = {name: lambda found, f=f: models.run(f, found) for name, f in models.CHECKS.items()}
    else:
        checks = {
            "parity": lambda found: parity(found, op, seed, quick=quick),
            "opcheck": lambda found: opcheck(found, op),
            "graph": lambda found: graph(found, op, seed, quick=quick),
            "determinism": lambda found: determinism(found, op, seed, quick=quick),
        }
    results = json.loads(out.read_text()) if out.exists() else {}

    def keep(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        beside = out.with_suffix(".new")
        beside.write_text(json.dumps(results))
        beside.replace(out)  # so that what is read is whole, whenever this process ends

    for name, function in checks.items():
        if "running" in results.get(name, {"running": ""}):
            found = Findings(lambda result, name=name: keep(name, result))
            function(found)
            keep(name, found.result())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("subject", choices=(*cases.OPS, "models", CANARY, *BY_WGMMA))
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a few cases of each")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of operators that are not deterministic: see `poisoned`
    torch.backends.cudnn.deterministic = True  # the gradients of weights are cuDNN's
    library = _extension.status("cuda")
    if not library.loaded:
        raise SystemExit(f"no cuda kernels: {library.detail}")
    check(args.subject, args.seed, args.out, quick=args.quick)


if __name__ == "__main__":
    main()
