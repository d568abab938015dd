# SPDX-License-Identifier: MIT
"""A GPU that the CUDA kernels hold no code for, with the CPU in its place."""

from __future__ import annotations

import pytest
import torch

import genimg_fast
from genimg_fast import _backend, _extension, _parity, cli, functional, models, use_backend
from genimg_fast.cli import demo

REASON = "Tesla T4 has compute capability 7.5; the CUDA kernels need 8.0 or newer"


@pytest.fixture
def capability(monkeypatch):
    """Sets what the GPU can do."""

    def give(*capability):
        _extension._why_not_on_gpu.cache_clear()
        monkeypatch.setattr(_extension, "_GPU_TYPES", ("cpu",))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")

    yield give
    _extension._why_not_on_gpu.cache_clear()


@pytest.fixture
def no_kernel(monkeypatch):
    """Kernels that must not be launched."""
    every = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("genimg_fast::")]
    for name in every:
        if "cpu_" not in name:  # settings
            monkeypatch.setattr(torch.ops.genimg_fast, name, lambda *_: pytest.fail("a kernel was launched"))


@pytest.mark.skipif(not _extension.status("cpu").loaded, reason="without the library there is another reason")
class TestOldGPU:
    def test_the_reference_runs_and_says_why(self, capability, no_kernel):
        capability(7, 5)
        generator = models.create("dcgan", width=2, latent=6).generator.eval()
        report = genimg_fast.explain(generator, torch.randn(2, 6, 1, 1))
        assert report.calls
        assert {(call.native, call.reason) for call in report.calls} == {(False, REASON)}
        assert REASON in str(report)
        generator.train()(torch.randn(2, 6, 1, 1)).sum().backward()
        assert functional.gaussian_kl_loss(torch.ones(3, 4), torch.zeros(3, 4)) == pytest.approx(0.5)

    def test_who_insists_gets_an_error(self, capability, no_kernel):
        capability(7, 5)
        with use_backend("native"), pytest.raises(RuntimeError, match=REASON):
            functional.gaussian_kl_loss(torch.ones(3, 4), torch.zeros(3, 4))

    def test_doctor_says_so_and_launches_nothing(self, capability, no_kernel, capsys):
        capability(7, 5)
        assert cli.main(["doctor"]) == 0
        table = capsys.readouterr().out.partition("ops on cpu\n")[2].strip().splitlines()[2:]
        assert [line.split()[0] for line in table] == list(_parity.CASES)
        assert all(" reference " in row and row.endswith(REASON) for row in table)

    def test_other_commands_too(self, capability, no_kernel, capsys):
        capability(7, 5)
        assert demo._parity_line(torch.device("cpu")) == (True, f"not checked, no kernels: {REASON}")
        assert cli.main(["bench", "--device", "cpu"]) == 2
        assert f"nothing to compare: no cpu kernels ({REASON})" in capsys.readouterr().err

    def test_asked_while_tracing(self, monkeypatch):
        asked = []
        monkeypatch.setattr(_extension, "_GPU_TYPES", ("cpu",))
        monkeypatch.setattr(_extension, "_why_not_on_gpu", lambda index: asked.append(index) or REASON)
        x = torch.ones(2)

        def native(x):
            return x + (1 if _backend.why_not_native(x) is None else 2)

        compiled = torch.compile(native, backend="eager", fullgraph=True)
        assert compiled(x)[0] == compiled(x)[0] == 3
        assert asked == [None]

    @pytest.mark.parametrize("newer", [(8, 0), (9, 0), (12, 0)])
    def test_newer_ones_are_served(self, capability, newer):
        capability(*newer)
        assert _backend.why_not_native(torch.ones(2)) is None
