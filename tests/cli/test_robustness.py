# SPDX-License-Identifier: MIT
"""What can go wrong while the command runs: each ends in one line that says what to do, and costs nothing that was saved."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from genimg_fast import _files, cli, use_backend
from genimg_fast.benchmark import charts
from genimg_fast.cli import demo
from genimg_fast.training import _setup, checkpoint
from tests.data import _samples

ROOT = Path(__file__).resolve().parents[2]
VAE = ["train", "vae", "--model-arg", "hidden=16", "--model-arg", "latent=4", "--image-size", "8", "--batch-size", "4"]
SHORT = ["--max-steps", "6", "--checkpoint-every", "2", "--log-every", "1", "--sample-every", "0", "--quiet"]


def training(out: Path, *more: str, data: str | Path = "digits") -> list[str]:
    return [*VAE, *SHORT, "--data", str(data), "--out", str(out), *more]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(training(out)) == 0
    return out


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a run of six steps, to be damaged."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def refused(capfd):
    """A function that checks that the command ends with one line that matches, and with `--debug` in a traceback."""

    def check(argv, message, code=2):
        out = Path(argv[argv.index("--out") + 1])
        new = not out.exists()
        capfd.readouterr()
        assert cli.main(argv) == code
        error = capfd.readouterr().err
        assert re.fullmatch(rf"genimg-fast {argv[0]}: [^\n]*{message}[^\n]*\n", error), error
        if new:
            shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(Exception, match=message):
            cli.main([*argv, "--debug"])

    return check


def resumed_to_the_end(out):
    assert cli.main(training(out, "--resume")) == 0
    state = checkpoint.load_resume(out / "checkpoints")
    return state["step"] == 6 and all(torch.isfinite(weight).all() for weight in state["model"].values())


def test_a_run_goes_on_with_its_own_settings(run, capsys):
    assert cli.main(["train", "--out", str(run), "--resume", "--max-steps", "8", "--quiet"]) == 0
    assert "8 steps" in capsys.readouterr().out
    assert checkpoint.load_resume(run / "checkpoints")["step"] == 8
    longer = [
        "train",
        "--out",
        str(run),
        "--config",
        str(run / "config.json"),
        "--resume",
        "--max-steps",
        "9",
        "--quiet",
    ]
    assert cli.main(longer) == 0
    assert checkpoint.load_resume(run / "checkpoints")["step"] == 9


def test_weights_without_a_checkpoint_are_not_trained_over(run, refused):
    (run / "checkpoints" / "last.pt").unlink()
    (run / "checkpoints" / "previous.pt").unlink()
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    refused(
        training(run, "--resume"), "has weights, but neither last.pt nor previous.pt, .*: restore one of them, or start"
    )
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


# ---- Where files are written


def as_nobody(function):
    """`function` without root's right to write everywhere."""

    def wrapped(*args, **kwargs):
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            return function(*args, **kwargs)
        finally:
            os.seteuid(user)

    return wrapped


def test_read_only_output(run, tmp_path, refused, monkeypatch):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    monkeypatch.setattr(checkpoint, "claim_folder", as_nobody(checkpoint.claim_folder))
    refused(training(locked / "new"), "cannot write .*: Permission denied")
    monkeypatch.setattr(_files, "open", as_nobody(open), raising=False)
    refused(["sample", str(run), "--out", str(locked / "x.png")], "Permission denied: '.*x.png")
    out = str(locked / "x.pt2")
    refused(["export", str(run), "--format", "torch-export", "--out", out], "Permission denied: '.*x.pt2")
    assert not list(locked.iterdir())


def test_an_output_that_is_a_folder(run, tmp_path, refused):
    (tmp_path / "x.png").mkdir()
    refused(["sample", str(run), "--out", str(tmp_path / "x.png")], "Is a directory: '.*x.png'")


@pytest.fixture
def full_disk():
    """No file may grow beyond a few kilobytes: writes fail half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(run, tmp_path, refused, full_disk):
    before = {file: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    longer = training(run, "--resume", "--max-steps", "9")
    refused(
        longer, r"cannot write .*last.pt: File too large; to continue from step 6, resume the run in .* \(--resume\)"
    )
    assert {file: file.read_bytes() for file in (run / "checkpoints").iterdir()} == before


@pytest.mark.parametrize("before", [None, b"an older file"])
@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--n", "300", "--out", "x.png"],
        ["interpolate", "--rows", "30", "--out", "x.png"],
        ["reconstruct", "--data", "digits", "--n", "300", "--out", "x.png"],
        ["export", "--format", "onnx", "--out", "x.onnx"],
        ["export", "--format", "torch-export", "--out", "x.pt2"],
    ],
    ids=lambda argv: f"{argv[0]} {argv[-1]}",
)
def test_output_on_a_full_disk(run, tmp_path, refused, full_disk, argv, before):
    command, *options, name = argv
    out = tmp_path / "out" / name
    out.parent.mkdir()
    if before is not None:
        out.write_bytes(before)
    refused([command, str(run), *options, str(out)], f"File too large: '{re.escape(str(out))}'")
    left = [(file.name, file.read_bytes()) for file in out.parent.iterdir()]
    assert left == ([] if before is None else [(name, before)])


def test_charts_on_a_full_disk(tmp_path, full_disk):
    milliseconds = {"low": 1.0, "median": 2.0, "high": 3.0}
    row = {"name": "a row", "best": None, "runtimes": {"ours": {"milliseconds": milliseconds, "held_to_isa": True}}}
    facts = {"cpu": "a CPU", "cores": 1, "threads": 1, "isa": "avx2", "gpu": None, "date": "today", "commit": None}
    report = {"rows": [row], "machine": {**facts, "versions": {"torch": "2"}}}
    history = [{"split": "train", "step": step, "generator_loss": 1.0} for step in range(9)]
    for name, draw in (
        ("rows.png", lambda: charts.draw(report, tmp_path)),
        ("losses.png", lambda: demo._draw_losses({"a": history, "b": history}, tmp_path / "losses.png")),
    ):
        (tmp_path / name).write_bytes(b"an older file")
        with pytest.raises(OSError, match=f"File too large: '.*{name}'"):
            draw()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == dict.fromkeys(
        ("rows.png", "losses.png"), b"an older file"
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the command line leaves it out
def test_a_log_on_a_full_disk_stops_the_run_in_one_line(tmp_path, refused, full_disk):
    argv = training(tmp_path / "run", "--max-steps", "5000", "--checkpoint-every", "0")
    refused(argv, r"File too large; no checkpoint had been written to .* yet: start it again with --resume")


# ---- Checkpoints that are damaged, or made by somebody else


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda f: f.write_bytes(b""), id="empty"),
        pytest.param(lambda f: os.truncate(f, f.stat().st_size // 2), id="truncated"),
        pytest.param(lambda f: f.write_bytes(f.read_bytes()[:4000] + b"\0" * 500 + f.read_bytes()[4500:]), id="zeros"),
        pytest.param(lambda f: f.write_bytes(os.urandom(5000)), id="noise"),
    ],
)
def test_corrupted_checkpoint(run, refused, harm):
    last, previous = run / "checkpoints" / "last.pt", run / "checkpoints" / "previous.pt"
    harm(last)
    assert resumed_to_the_end(run)  # the one before takes its place
    harm(last)
    previous.unlink()
    refused(training(run, "--resume"), r"last.pt is damaged or is not a resume file \(.*\); restore it from a copy")


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_truncated_weights(run, tmp_path, refused, size):
    os.truncate(run / "checkpoints" / "best.safetensors", size)
    refused(
        ["sample", str(run), "--out", str(tmp_path / "x.png")], "best.safetensors is damaged or is not a safetensors"
    )


def rewritten(path, change):
    """Passes the state of a resume file through `change`; the file is whole afterwards."""
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("images_per_step"), "no 'images_per_step' in it"),
        (lambda s: s.update(images_per_step="some"), "invalid literal for int"),
        (lambda s: s.update(images_per_step=0), "images_per_step is 0 and must be positive"),
        (lambda s: s.update(model=3), "last.pt is damaged or is not a resume file"),
        (lambda s: s.update(model={}), "last.pt is damaged or is not a resume file"),
        (lambda s: s.update(config=[]), "last.pt is damaged or is not a resume file"),
        (lambda s: s.update(rng=[{}]), "no 'torch' in it"),
        (lambda s: s.update(optimizers={}), "no 'model' in it"),
    ],
)
def test_a_whole_file_that_holds_something_else(run, refused, change, message):
    rewritten(run / "checkpoints" / "last.pt", change)
    refused(training(run, "--resume"), message)


def test_malicious_pickle(run, refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    last = run / "checkpoints" / "last.pt"
    rewritten(last, lambda state: None)
    (run / "checkpoints" / "previous.pt").unlink()
    state = torch.load(last, weights_only=True)
    torch.save({**state, "best": Explosive()}, last)
    refused(training(run, "--resume"), "last.pt is refused: it holds more than tensors and plain values, .* delete it")
    last.write_bytes(pickle.dumps(Explosive()))
    refused(training(run, "--resume"), "last.pt is damaged or is not a resume file")
    refused(["sample", str(last), "--out", str(tmp_path / "x.png")], "last.pt is damaged or is not a safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_path_tricks_in_an_archive(run, refused, tmp_path):
    """Members that point outside: whatever becomes of the file, nothing is unpacked."""
    last = run / "checkpoints" / "last.pt"
    (run / "checkpoints" / "previous.pt").unlink()
    with zipfile.ZipFile(last) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    before = sorted(tmp_path.rglob("*"))
    for prefix in ("../../../", "/tmp/", ""):
        with zipfile.ZipFile(last, "w") as archive:
            for name, content in members.items():
                archive.writestr(prefix + name, content)
            archive.writestr("../escaped", b"x")
        assert cli.main(training(run, "--resume")) in (0, 2)
        assert sorted(tmp_path.rglob("*")) == before
        assert not (Path("/tmp") / next(iter(members))).exists()


def test_decompression_bomb_in_a_checkpoint(run, refused):
    last = run / "checkpoints" / "last.pt"
    (run / "checkpoints" / "previous.pt").unlink()
    with zipfile.ZipFile(last, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("last/data.pkl", bytes(10_000_000))
    refused(training(run, "--resume"), r"last.pt is damaged or is not a resume file \(it is compressed")


def test_names_in_a_weights_file_are_not_paths_or_code(tmp_path, refused):
    file = tmp_path / "x.safetensors"
    for name in ("../../etc/passwd", "os.system", "genimg_fast.models.vae"):
        safetensors.torch.save_file({"../../w": torch.zeros(1)}, file, metadata={"model": name, "config": "{}"})
        refused(["sample", str(file), "--out", str(tmp_path / "x.png")], "model must be one of 'vae'")
    metadata = {"model": "vae", "config": '{"hidden": 1000000000}'}
    safetensors.torch.save_file({"../../w": torch.zeros(1)}, file, metadata=metadata)
    refused(["sample", str(file), "--out", str(tmp_path / "x.png")], "does not fit the model it names")
    assert os.listdir(tmp_path) == ["x.safetensors"]


# ---- Images


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    _samples.write_folder(folder, 25)
    return folder


def truncate_images(folder, count):
    for file in sorted(folder.iterdir())[-count:]:
        os.truncate(file, file.stat().st_size // 2)


def test_truncated_images(photos, tmp_path, capfd, refused):
    truncate_images(photos, 1)
    hostile = (photos / "24.png").rename(photos / "0\x1b[2J\n0.png")
    capfd.readouterr()
    assert cli.main(training(tmp_path / "run", "--max-steps", "15", data=photos)) == 0
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"genimg-fast train: warning: {str(hostile)!r}: ")
    assert warning.endswith("(skipped, bad file 1 of at most 10)")

    truncate_images(photos, 20)
    assert cli.main(training(tmp_path / "again", "--max-steps", "15", data=photos)) == 2
    *warnings, error = capfd.readouterr().err.splitlines()
    assert all(line.startswith("genimg-fast train: warning: ") for line in warnings)
    assert re.match(r"genimg-fast train: '.*png': .* \(bad file number 11, max_bad_files is 10\)", error)

    more = ("--max-steps", "15", "--max-bad-files", "20")
    assert cli.main(training(tmp_path / "more", *more, data=photos)) == 0
    assert "(skipped, bad file 12 of at most 20)" in capfd.readouterr().err


def test_bomb_images(tmp_path, capfd):
    for number in range(25):
        side = (9_000, 60_000)[number % 2]
        _samples.write(tmp_path / "bombs" / f"{number}.png", _samples.png_header(side, side))
    capfd.readouterr()
    assert cli.main(training(tmp_path / "run", data=tmp_path / "bombs")) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 11
    refusal = r"/bombs/\d+.png': (9000x9000 pixels; at most 67108864 are allowed|broken image \(DecompressionBombError)"
    assert {re.search(refusal, line)[1][:4] for line in lines} == {"9000", "brok"}


def test_empty_folder(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    refused(training(tmp_path / "run", data=tmp_path / "empty"), "no images: looked for")
    assert not (tmp_path / "run").exists()


def test_one_image_folder(tmp_path, refused):
    _samples.write_folder(tmp_path / "one", 1)
    refused(training(tmp_path / "run", data=tmp_path / "one"), "1 test images; at least 2 .*, so 20 images are needed")
    assert not (tmp_path / "run").exists()


def test_wrong_image_sizes(tmp_path, refused):
    for model, size, message in (
        ("dcgan", "48", "image_size must be 32 or 64, got 48"),
        ("vae", "0", "image_size is 0; allowed: 1 to 8192"),
        ("vae", "9000", "image_size is 9000; allowed: 1 to 8192"),
    ):
        argv = ["train", model, "--data", "digits", "--image-size", size, "--out", str(tmp_path / "run")]
        refused(argv, message)
    assert not (tmp_path / "run").exists()


def test_images_of_many_sizes_are_made_to_fit(tmp_path):
    sizes = [(1, 1), (1, 300), (300, 1), (7, 9), (64, 64), (200, 31)]
    for number, size in enumerate(4 * sizes):
        file = tmp_path / "many" / f"{number}.png"
        _samples.write(file, _samples.encoded(_samples.random_image(*size, seed=number)))
    assert cli.main(training(tmp_path / "run", data=tmp_path / "many")) == 0


# ---- While it runs


def test_nan_loss(tmp_path, refused):
    out = tmp_path / "run"
    assert cli.main(training(out, "--lr", "1e-3", "--max-steps", "2")) == 0
    before = (out / "checkpoints" / "last.pt").read_bytes()
    refused(
        training(tmp_path / "nan", "--lr", "1e30", "--checkpoint-every", "0"),
        r"(loss|kl|reconstruction) is (nan|inf) at step 2; that step was not saved: start a new run with a lower lr or with "
        "grad_clip; no checkpoint had been written",
    )
    assert not (tmp_path / "nan" / "checkpoints" / "last.pt").exists()
    assert (out / "checkpoints" / "last.pt").read_bytes() == before


def test_a_model_that_takes_too_much_memory(tmp_path, capfd):
    capfd.readouterr()
    assert cli.main(training(tmp_path / "run", "--model-arg", f"hidden={10**15}")) == 2  # more than a CPU can address
    assert re.fullmatch(r"genimg-fast train: out of memory: tried to allocate \d+ bytes\n", capfd.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_refusal_of_the_backend(tmp_path, capfd, monkeypatch):
    """Of the batch normalisation after a layer of PyTorch's."""
    monkeypatch.setattr(_setup, "multiplies", lambda dtype: True)
    argv = ["train", "dense_gan", "--data", "digits", "--max-steps", "1", "--quiet", "--out", str(tmp_path / "run")]
    argv += ["--batch-size", "4", "--mixed-precision", "bf16"]
    capfd.readouterr()
    with use_backend("native"):
        assert cli.main(argv) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(
        r"genimg-fast train: \S+: backend 'native' was asked for but cannot serve this call: .*\n", error
    )
    assert not (tmp_path / "run").exists()


def test_ctrl_c(tmp_path):
    argv = training(tmp_path / "run", "--max-steps", "1000000")
    code = "import sys; from genimg_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    told = r"genimg-fast train: stopped by SIGINT; to continue from step (\d+), resume the run in .* \(--resume\)\n"
    assert process.returncode == 130
    assert (stopped := re.fullmatch(told, error)), error
    assert checkpoint.load_resume(tmp_path / "run" / "checkpoints")["step"] == int(stopped[1])
