# SPDX-License-Identifier: MIT
"""Exported models in the runtimes that they are exported for."""

from __future__ import annotations

import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

import genimg_fast
from genimg_fast import models
from genimg_fast.models.export import export
from tests import _cases

SMALL = {
    "vae": {"hidden": 16, "latent": 4},
    "conv_vae": {"width": 4, "latent": 6, "reconstruction": "mse"},
    "dcgan": {"width": 2, "latent": 6},
    "block_gan": {"width": 2, "latent": 6},
    "dense_gan": {"hidden": 8, "latent": 6},
}


def create(name):
    """A model in training mode, with running statistics that are not the initial ones."""
    model = models.create(name, **SMALL[name])
    for _ in range(3):
        model.latent_to_images(torch.randn(8, *model.latent_shape))
    return model


def evaluated(model, z):
    model.eval()
    with torch.no_grad():
        images = model.latent_to_images(z)
    model.train()
    return images


def test_every_model_is_exported():
    assert set(SMALL) == set(models.list_models())


@pytest.mark.parametrize("name", SMALL)
def test_onnx_in_onnx_runtime(name, tmp_path):
    model = create(name)
    path = tmp_path / "model.onnx"
    export(model, path, "onnx")
    assert model.training
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        z = _cases.randn((n, *model.latent_shape))
        (images,) = session.run(["images"], {"latents": z.numpy()})
        torch.testing.assert_close(torch.from_numpy(images), evaluated(model, z))


LOAD = """
import sys, torch
sys.modules["genimg_fast"] = None  # a program that runs the file need not have this package
for name in sys.argv[2:]:
    path = sys.argv[1] + "/" + name
    program = torch.export.load(path + ".pt2")
    assert {node.target.namespace for node in program.graph.nodes if node.op == "call_function"} == {"aten"}
    torch.save([program.module()(z) for z in torch.load(path + ".latents", weights_only=True)], path + ".images")
"""


def test_torch_export_without_this_package(tmp_path):
    expected = {}
    for name in SMALL:
        model = create(name)
        export(model, tmp_path / f"{name}.pt2", "torch-export")
        zs = [_cases.randn((n, *model.latent_shape)) for n in (1, 2, 5)]
        torch.save(zs, tmp_path / f"{name}.latents")
        expected[name] = [evaluated(model, z) for z in zs]
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), *SMALL], check=True)
    for name, images in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / f"{name}.images", weights_only=True), images)


def test_the_model_stays_fused(tmp_path):
    model = create("dcgan")
    before = [type(m) for m in model.modules()]
    export(model, tmp_path / "model.pt2", "torch-export")
    assert [type(m) for m in model.modules()] == before
    assert any(isinstance(m, genimg_fast.nn.FusedSequential) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "format", "message"),
    [
        (torch.float32, "tflite", r"export: format must be one of 'onnx', 'torch-export', got 'tflite'"),
        (torch.float16, "onnx", r"export: weights must be torch.float32, got torch.float16; convert .*"),
    ],
)
def test_bad_arguments_get_one_clear_line(tmp_path, dtype, format, message):
    with pytest.raises(ValueError, match=rf"\A{message}\Z"):
        export(models.create("vae").to(dtype), tmp_path / "x", format)
    assert not list(tmp_path.iterdir())


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"ONNX needs further packages: pip install 'genimg-fast\[export\]'"):
        export(models.create("vae"), tmp_path / "x.onnx", "onnx")
