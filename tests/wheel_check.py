# SPDX-License-Identifier: MIT
"""`make wheel-check`: builds the source archive, from it one wheel, and proves that wheel under several Pythons and torches.

    python -m tests.wheel_check PYTHON ...

Each PYTHON is an interpreter that has some torch.  The wheel is installed for it in a folder of its own, so that nothing it
has changes, by its own pip, which refuses a wheel whose tag does not allow it.  There every op is compared with the
reference, and a model with its plain twin.  The CUDA library of the working copy, if it was built, is put beside it: it must
load wherever torch has CUDA.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.test_native_libraries import output_of, unexpected_imports

ROOT = Path(__file__).resolve().parents[1]
CUDA_LIBRARY = ROOT / "genimg_fast" / "_cuda.so"
TAG = "cp310-abi3"  # CPython 3.10 and every later one
LARGEST_WHEEL = 5_000_000
IN_THE_SOURCE_ARCHIVE = (
    "setup.py",
    "csrc/ops/gaussian_kl_loss.cpp",
    "csrc/cpu/vec.h",
    "csrc/cuda/ptx.cuh",
    "tests/_cases.py",
)

SMOKE = """
import sys, platform, copy, pathlib, torch, genimg_fast
from genimg_fast import _extension, _parity, models
assert genimg_fast.__file__.startswith(sys.argv[1]), genimg_fast.__file__
library = _extension.status("cpu")
assert library.loaded, library.detail
cuda, has_cuda = _extension.status("cuda"), pathlib.Path(sys.argv[1], "genimg_fast", "_cuda.so").exists()
assert cuda.loaded == (has_cuda and torch.version.cuda is not None), cuda.detail
for op in _parity.CASES:
    assert all(d.native for d in _parity.decisions(op, torch.device("cpu"))), op
    assert _parity.check(op, torch.device("cpu")).ok, op
torch.manual_seed(0)
with genimg_fast.use_backend("native"):
    for name in models.list_models():
        model = models.create(name).double()  # float32 would now and then put a ReLU on the other side of its kink
        twin = genimg_fast.unfuse(copy.deepcopy(model))
        z = torch.randn(4, *model.latent_shape).double()
        outputs = [m.latent_to_images(z) for m in (model, twin)]
        torch.testing.assert_close(*outputs)
        for images in outputs:
            images.square().sum().backward()
        torch.testing.assert_close(*([p.grad for p in m.parameters() if p.grad is not None] for m in (model, twin)))
print(f"Python {platform.python_version()}, torch {torch.__version__}: {len(_parity.CASES)} ops and"
      f" {len(models.list_models())} models, forward and backward, {_extension.cpu_isa()}{', CUDA library' * cuda.loaded}")
"""


def build(folder: Path) -> tuple[Path, Path]:
    """(source archive, wheel without CUDA); the wheel is made of the archive alone, so that what the archive lacks shows."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env={**os.environ, "GENIMG_FAST_CUDA": "0"}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return archive, wheel


def faults_of_archive(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    missing = [name for name in IN_THE_SOURCE_ARCHIVE if name not in names]
    missing += [
        f"{path.relative_to(ROOT)}" for path in (ROOT / "csrc").rglob("*.*") if str(path.relative_to(ROOT)) not in names
    ]
    binaries = [name for name in names if name.endswith((".so", ".pyc"))]
    return [f"missing: {name}" for name in dict.fromkeys(missing)] + [
        f"should not be there: {name}" for name in binaries
    ]


def faults_of_wheel(wheel: Path, folder: Path) -> list[str]:
    """What is wrong with the file itself; unpacks it into `folder`."""
    faults = []
    _, _, tag = wheel.stem.split("-", 2)
    if not tag.startswith(f"{TAG}-"):
        faults.append(f"the tag is {tag}, not {TAG}-<platform>")
    if wheel.stat().st_size >= LARGEST_WHEEL:
        faults.append(f"{wheel.stat().st_size} bytes; a wheel without CUDA has fewer than {LARGEST_WHEEL}")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    metadata = next(folder.glob("*.dist-info/METADATA")).read_text()
    faults += [
        f"no {line!r} in METADATA"
        for line in ("Requires-Python: >=3.10", "Requires-Dist: torch>=2.11")
        if line not in metadata
    ]
    libraries = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.so"))
    if libraries != ["genimg_fast/_cpu.so"]:
        faults.append(f"the libraries are {libraries}, not _cpu.so alone")
    for library in libraries:
        faults += [f"{library} imports {symbol}" for symbol in unexpected_imports(folder / library)]
        if "libpython" in output_of("readelf", "-d", folder / library):
            faults.append(f"{library} is linked to one Python")
    return faults


def smoke(python: str, wheel: Path, folder: Path) -> str:
    """Installs the wheel for `python` in `folder` and runs SMOKE there; returns what it printed.

    Raises:
        RuntimeError: if pip refuses the wheel, or the program fails.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GENIMG_FAST"))}

    def run(*arguments: str, **more: str) -> str:
        command = [os.path.abspath(python), *arguments]  # which `cwd` is not to change
        done = subprocess.run(command, env=environment | more, cwd=folder.parent, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{python} {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    if CUDA_LIBRARY.exists():
        shutil.copy(CUDA_LIBRARY, folder / "genimg_fast")
    return run("-c", SMOKE, str(folder), PYTHONPATH=str(folder))


def main(pythons: list[str]) -> int:
    healthy = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive, wheel = build(folder)
        faults = faults_of_archive(archive) + faults_of_wheel(wheel, folder / "unpacked")
        print(
            f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; {archive.name}: {archive.stat().st_size / 1e6:.1f} MB"
        )
        for fault in faults:
            print(f"FAIL  {fault}")
        for number, python in enumerate(pythons or [sys.executable]):
            try:
                print(f"ok    {smoke(python, wheel, folder / str(number))}", flush=True)
            except (RuntimeError, OSError) as error:
                print(f"FAIL  {error}", flush=True)
                healthy = False
    return 0 if healthy and not faults else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
