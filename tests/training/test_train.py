# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import functools
import json
import os
import resource
import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from genimg_fast import data, models
from genimg_fast.training import Interrupted, TrainConfig, UserError, _setup, checkpoint, load_model, loop, train
from genimg_fast.training.logging import RunLog
from tests.training._runs import GAN, VAE, assert_same, assert_same_end, config, resume_state

KINDS = pytest.mark.parametrize("kind", [VAE, GAN], ids=["vae", "gan"])


def few_images(*args, open_dataset, **kwargs):
    return torch.utils.data.Subset(open_dataset(*args, **kwargs), range(50))


def without_speed(record):
    return {name: value for name, value in record.items() if name != "images_per_second"}


def run(*args, resume=False, **kwargs):
    return train(config(*args, **kwargs), resume=resume, progress=False)


@KINDS
def test_what_a_run_leaves_behind(tmp_path, kind, capsys):
    result = train(config(tmp_path, kind, max_steps=4, sample_every=2, validate_every=2, checkpoint_every=2))
    assert "img/s" in capsys.readouterr().err
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("logs/events")} == {
        "config.json", "metrics.jsonl", "samples/step_000002.png", "samples/step_000004.png", "checkpoints/last.pt",
        "checkpoints/previous.pt", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
    }  # fmt: skip
    assert any(f.startswith("logs/events") for f in files)
    assert Image.open(tmp_path / "samples" / "step_000004.png").size == (82, 82)  # 8x8 images of 8x8 pixels and lines
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records == result.history
    assert [(r["step"], r["split"]) for r in records] == [
        (1, "train"), (2, "train"), (2, "test"), (3, "train"), (4, "train"), (4, "test"),
    ]  # fmt: skip
    assert {"lr", "epoch", "images_per_second"} < records[0].keys()
    assert result.steps == 4
    assert (result.metric, result.higher_is_better) == {"vae": ("elbo", True), "dense_gan": ("kernel_distance", False)}[
        kind["model"]
    ]
    assert result.images_per_second > 0
    assert result.epochs == pytest.approx(4 * 8 / 1437, rel=0.01)
    description = json.loads((tmp_path / "config.json").read_text())
    assert TrainConfig.from_dict(description["train"]).lr == {"vae": 1e-3, "dense_gan": 2e-4}[kind["model"]]
    assert load_model(tmp_path).config == description["model"]


def test_tensorboard_has_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tmp_path, max_steps=3)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(
        [r["loss"] for r in result.history if r["split"] == "train"]
    )
    assert events.Tags()["images"]


def test_tensorboard_gets_images_of_nan_as_black_ones(tmp_path):
    log = RunLog(tmp_path, step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of NumPy's "invalid value encountered in cast"
        log.add_images(1, torch.full((2, 1, 8, 8), float("nan")))
    log.close()


def test_the_elbo_soon_beats_predicting_the_mean_image(tmp_path):
    wide = {"model": "vae", "model_args": {"hidden": 64, "latent": 8}}
    settings = {"batch_size": 64, "lr": 5e-3, "ema_decay": 0.9}
    result = run(tmp_path, wide, max_steps=250, validate_every=50, log_every=100, **settings)
    train_images, test_images = (
        torch.stack(list(data.open_dataset("digits", split=split, image_size=8, channels=1)))
        for split in ("train", "test")
    )
    mean = train_images.mean(0).clamp(1e-3, 1 - 1e-3).expand_as(test_images)
    mean_image_elbo = -F.binary_cross_entropy(mean, test_images, reduction="sum").item() / len(test_images)
    elbos = [r["elbo"] for r in result.history if r["split"] == "test"]
    assert elbos[-1] > mean_image_elbo + 1
    assert result.best_metric == max(elbos)


@KINDS
def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path, kind):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(hash(name) % 1000)  # what the process drew before must not matter
        run(tmp_path / name, kind, seed=seed)
    assert_same_end(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same(resume_state(tmp_path / "a")["model"], resume_state(tmp_path / "c")["model"])


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (VAE, {}),
        (VAE, {"ema_decay": None, "num_workers": 1}),
        (GAN, {"grad_accumulation": 2, "grad_clip": 1.0}),
        (GAN, {"gan_loss": "wasserstein", "gradient_penalty": 10.0}),
        (VAE, {"mixed_precision": "bf16"}),
    ],
    ids=["vae", "vae-no-ema-workers", "gan-accumulated", "wgan-gp", "vae-bf16"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, kind, extra):
    # Of 50 images, 24 a step: the run begins an epoch at the 3rd step and at the 5th, and breaks at the 3rd.
    few = functools.partial(few_images, open_dataset=data.open_dataset)
    monkeypatch.setattr(data, "open_dataset", few)
    settings = {"batch_size": 24 // extra.get("grad_accumulation", 1), "validate_every": 2, **extra}
    whole = run(tmp_path / "whole", kind, max_steps=5, **settings)
    run(tmp_path / "parts", kind, max_steps=3, **settings)
    torch.manual_seed(99)
    parts = run(tmp_path / "parts", kind, max_steps=5, resume=True, **settings)
    # The first part also validated at its own end.
    logged = [r for r in parts.history if (r["step"], r["split"]) != (3, "test")]
    assert [without_speed(r) for r in logged] == [without_speed(r) for r in whole.history]
    first, second = resume_state(tmp_path / "whole"), resume_state(tmp_path / "parts")
    for name in ("model", "ema", "optimizers", "rng", "step"):
        assert_same(first[name], second[name], name)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    again = run(tmp_path, resume=True)
    assert (again.steps, again.best_metric, again.history) == (first.steps, first.best_metric, first.history)
    assert (tmp_path / "checkpoints" / "last.pt").read_bytes() == before


def test_early_stopping(tmp_path, monkeypatch):
    values = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    monkeypatch.setattr(loop.VAEObjective, "validate", staticmethod(lambda *a, **k: {"elbo": next(values)}))
    result = run(tmp_path, max_steps=50, validate_every=2, early_stopping_patience=2)
    assert (result.steps, result.best_metric) == (8, 3.0)  # validated at 2, 4 (best), 6, 8
    assert resume_state(tmp_path)["step"] == 8
    again = run(tmp_path, max_steps=50, validate_every=2, early_stopping_patience=2, resume=True)
    assert again.steps == 8


def test_a_metric_that_is_not_a_number_is_not_the_best(tmp_path, monkeypatch):
    values = iter([float("nan"), 5.0, float("nan"), 4.0])
    monkeypatch.setattr(loop.GANObjective, "validate", staticmethod(lambda *a, **k: {"kernel_distance": next(values)}))
    assert run(tmp_path, GAN, max_steps=4, validate_every=1).best_metric == 4.0


def test_a_run_that_no_validation_measured_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.VAEObjective, "validate", staticmethod(lambda *a, **k: {"elbo": float("nan")}))
    message = (
        r"\Ano validation gave a finite elbo: start a new run with a lower lr or with grad_clip; what .* is in .*\Z"
    )
    for resume in (False, True):
        with pytest.raises(UserError, match=message):
            run(tmp_path, max_steps=2, validate_every=1, resume=resume)
        assert resume_state(tmp_path)["step"] == 2


def test_a_resumed_run_without_steps_or_validations_is_none(tmp_path, monkeypatch):
    break_at(2, monkeypatch, lambda run: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(tmp_path)
    assert run(tmp_path, max_steps=3, resume=True).best_metric is None


def test_nothing_is_overwritten(tmp_path):
    run(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"already holds a run \(.*\); resume it or choose another folder$"):
        run(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run to resume; start it without resume$"):
        run(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_resuming_with_another_configuration_names_the_fields(tmp_path):
    run(tmp_path)
    expected = r"another configuration; differing: lr \(was 0.001, is 0.1\), beta \(was 1.0, is 2.0\)$"
    with pytest.raises(UserError, match=expected):
        run(tmp_path, resume=True, max_steps=9, lr=0.1, beta=2.0)
    with pytest.raises(UserError, match=r"differing: model_args \(was .*\), model config \(was .*\)$"):
        run(tmp_path, {"model": "vae", "model_args": {"hidden": 17, "latent": 4}}, resume=True)
    with pytest.raises(UserError, match=r"differing: data \(was 'digits', is 'photos'\)|training images \(was"):
        run(tmp_path, resume=True, data="photos")


def test_resuming_falls_back_to_the_previous_checkpoint(tmp_path):
    run(tmp_path / "whole", checkpoint_every=2)
    run(tmp_path / "damaged", checkpoint_every=2)
    last = tmp_path / "damaged" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"last.pt is damaged"):
        run(tmp_path / "damaged", checkpoint_every=2, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "damaged")


def test_weights_that_a_kill_kept_from_being_written_are_written_by_the_next_session(tmp_path, monkeypatch):
    real = checkpoint.save_weights

    def killed(path, model, *, step):
        if path.name == "last.safetensors" and step == 4:
            raise SystemExit
        real(path, model, step=step)

    monkeypatch.setattr(checkpoint, "save_weights", killed)
    with pytest.raises(SystemExit):
        run(tmp_path / "killed", max_steps=4, checkpoint_every=2)
    monkeypatch.undo()
    last = tmp_path / "killed" / "checkpoints" / "last.safetensors"
    assert checkpoint.step_of_weights(last) == 2
    run(tmp_path / "killed", max_steps=4, checkpoint_every=2, resume=True)
    assert checkpoint.step_of_weights(last) == 4
    run(tmp_path / "whole", max_steps=4, checkpoint_every=2)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "killed")
    for file in (tmp_path / "killed" / "checkpoints").iterdir():
        file.unlink()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "spl')  # a line that the kill cut short
    run(tmp_path / "killed", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 7


def break_at(step, monkeypatch, action):
    """Lets `action` do harm in the step after `step`."""
    real = loop._Run._take_step

    def take_step(self, batches):
        if self.step == step:
            action(self)
        return real(self, batches)

    monkeypatch.setattr(loop._Run, "_take_step", take_step)


def poison(run):
    with torch.no_grad():
        next(run.model.parameters()).fill_(float("nan"))


def test_a_loss_that_is_nan_stops_the_run_with_the_checkpoint_intact(tmp_path, monkeypatch):
    break_at(5, monkeypatch, poison)
    with pytest.raises(
        UserError,
        match=r"\Aloss is nan at step 6; that step was not saved: start a new run with a lower lr or with grad_clip; "
        r"to continue from step 4, resume .*\Z",
    ):
        run(tmp_path / "nan", checkpoint_every=4)
    assert resume_state(tmp_path / "nan")["step"] == 4
    monkeypatch.undo()
    run(tmp_path / "nan", checkpoint_every=4, resume=True)
    run(tmp_path / "whole", checkpoint_every=4)
    assert_same_end(tmp_path / "nan", tmp_path / "whole")


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(tmp_path, monkeypatch):
    real = loop.VAEObjective.step

    def step(self, batches):
        losses = real(self, batches)
        with torch.no_grad():
            next(self.model.parameters())[0] = float("inf")
        return losses

    monkeypatch.setattr(loop.VAEObjective, "step", step)
    with pytest.raises(UserError, match=r"a weight is no longer finite at step 1; .*no checkpoint had been written"):
        run(tmp_path, max_steps=1)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_saves_the_step_under_way(tmp_path, monkeypatch, number, code):
    before = signal.getsignal(number)
    break_at(2, monkeypatch, lambda run: os.kill(os.getpid(), number))
    with pytest.raises(
        Interrupted, match=rf"\Astopped by {number.name}; to continue from step 3, resume .*\Z"
    ) as stopped:
        run(tmp_path / "stopped")
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    run(tmp_path / "stopped", resume=True)
    run(tmp_path / "whole")
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


@pytest.fixture
def _ctrl_c_interrupts():
    """Python's own reaction to Ctrl-C, which a shell takes away from what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_interrupts")
def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    def twice(run):
        # raise_signal and not kill: two signals on their way to a process can become one
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    break_at(2, monkeypatch, twice)
    with pytest.raises(Interrupted, match=r"stopped; to continue from step 2, resume"):
        run(tmp_path, checkpoint_every=2)
    assert resume_state(tmp_path)["step"] == 2


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    break_at(3, monkeypatch, lambda run: monkeypatch.setattr(os, "fsync", full))
    with pytest.raises(
        UserError, match=r"\Acannot write .*last.pt: No space left on device; to continue from step 2, .*\Z"
    ):
        run(tmp_path, checkpoint_every=2, validate_every=100, max_steps=200)
    assert resume_state(tmp_path)["step"] == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_file_size_limit_is_one_line(tmp_path):
    """A write that really fails, after some bytes: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"\Acannot write .*last.pt: File too large; no checkpoint had been written .*\Z"
        ):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_output_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"\Acannot write .*file.*: Not a directory\Z"):
        run(tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"\A.*file is a file; a run needs a folder\Z"):
        run(tmp_path / "file")


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    real = checkpoint.claim_folder

    def claim_folder(out, *, resume):
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may write everywhere, so it becomes nobody for a moment
        try:
            real(out, resume=resume)
        finally:
            os.seteuid(user)

    monkeypatch.setattr(checkpoint, "claim_folder", claim_folder)
    with pytest.raises(UserError, match=r"\Acannot write .*: Permission denied\Z"):
        run(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "vaee"}, r"model 'vaee': model must be one of .*, got 'vaee'"),
        ({"model_args": {"hiden": 3}}, r"model_args has 'hiden'; allowed for vae: hidden, latent, reconstruction"),
        ({"model_args": {"name": 3}}, r"model_args has 'name'; allowed for vae: hidden, latent, reconstruction"),
        ({"model_args": {"hidden": 10**23}}, r"model 'vae': empty\(\): [^\n]{,150}"),
        ({"batch_size": 5000}, r"a step needs 5000 images .*"),
        ({**GAN, "batch_size": 1}, r"batch_size is 1; allowed: at least 2 for dense_gan, .*"),
        ({"num_workers": 8 * os.cpu_count() + 1}, r"num_workers is \d+; allowed on this machine: 0 to \d+"),
        ({"gan_loss": "hinge"}, r"gan_loss is 'hinge', which means nothing to vae: it is a VAE"),
        ({"gradient_penalty": 10}, r"gradient_penalty is 10.0, which means nothing to vae: it is a VAE"),
        ({"discriminator_lr": 1}, r"discriminator_lr is 1.0, which means nothing to vae: it is a VAE"),
        ({**GAN, "beta": 4}, r"beta is 4.0, which means nothing to dense_gan: it is a GAN"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(tmp_path, overrides, message):
    with pytest.raises(UserError, match=rf"\A{message}\Z"):
        run(tmp_path / "run", **overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [VAE, GAN], ids=["vae", "gan"])
def test_what_fails_in_the_first_step_leaves_no_folder(tmp_path, monkeypatch, kind):
    """A model that takes too much memory, or that the backend refuses: the corrected command may name the same folder."""

    def fail(self, batches):
        raise RuntimeError("no memory")

    monkeypatch.setattr(loop.VAEObjective if kind is VAE else loop.GANObjective, "step", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        run(tmp_path / "run", kind)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    run(tmp_path / "run", kind, max_steps=1)


def test_a_run_of_another_version_may_have_settings_of_the_other_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "check_kind", lambda *args: None)
    run(tmp_path, gan_loss="hinge", max_steps=2)
    monkeypatch.undo()
    assert run(tmp_path, gan_loss="hinge", max_steps=3, resume=True).steps == 3


@pytest.mark.parametrize("shorter", [{"max_steps": 3}, {"max_steps": None, "epochs": 1, "batch_size": 700}])
def test_a_run_is_not_resumed_to_be_shorter(tmp_path, shorter):
    run(tmp_path, **{**shorter, "max_steps": 4})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    name = "max_steps is 3" if shorter["max_steps"] else "epochs is 1"
    with pytest.raises(UserError, match=rf"\Athe run in .* has taken 4 steps already; {name}, which is less\Z"):
        run(tmp_path, **shorter, resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_two_runs_in_one_process_may_differ_in_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(_setup, "multiplies", lambda dtype: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runs = [run(tmp_path / str(n), mixed_precision=p, max_steps=2) for n, p in enumerate(("no", "bf16", "no"))]
    plain, half, again = ([without_speed(record) for record in result.history] for result in runs)
    assert plain == again
    assert plain[0]["loss"] != half[0]["loss"]
    assert plain[0]["loss"] == pytest.approx(half[0]["loss"], rel=0.02)


def test_deterministic_is_put_back(tmp_path):
    assert not torch.are_deterministic_algorithms_enabled()
    run(tmp_path, max_steps=1, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_settings_that_are_mostly_mistakes_are_told_of(tmp_path, monkeypatch):
    dcgan = {"model": "dcgan", "model_args": {"width": 4}, "image_size": 32}
    with pytest.warns(UserWarning, match="the discriminator of dcgan normalises over the batch"):
        run(tmp_path / "run", dcgan, gan_loss="wasserstein", gradient_penalty=10.0, max_steps=1)
    model = models.create("dense_gan", image_size=32)
    with_penalty = TrainConfig("dense_gan", "digits", str(tmp_path), gan_loss="wasserstein", gradient_penalty=10.0)
    without_penalty = TrainConfig("dense_gan", "digits", str(tmp_path), gan_loss="wasserstein")
    in_bfloat16 = TrainConfig("dense_gan", "digits", str(tmp_path), mixed_precision="bf16")
    with pytest.warns(UserWarning, match="gan_loss is 'wasserstein' without gradient_penalty"):
        _setup.warn_of_settings(without_penalty, model, torch.device("cpu"))
    monkeypatch.setattr(_setup, "multiplies", lambda dtype: False)
    with pytest.warns(UserWarning, match="mixed_precision is 'bf16', for which this CPU has no instructions"):
        _setup.warn_of_settings(in_bfloat16, model, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _setup.warn_of_settings(with_penalty, model, torch.device("cpu"))
        normalises = models.create("dcgan", image_size=32, width=4)
        _setup.warn_of_settings(TrainConfig("dcgan", "digits", str(tmp_path)), normalises, torch.device("cpu"))
        _setup.warn_of_settings(in_bfloat16, model, torch.device("cuda"))


def test_epoch_and_speed_of_the_records(tmp_path):
    result = run(tmp_path, max_steps=4, batch_size=700)  # of 1400 images or a few more
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records if "epoch" in record] == [0.5, 1.0, 1.5, 2.0]
    *_, speed = (record["images_per_second"] for record in records if "images_per_second" in record)
    assert speed == pytest.approx(result.images_per_second, rel=0.5)


def test_as_many_workers_as_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    _setup.check_machine(config(tmp_path, num_workers=8))
    with pytest.raises(UserError, match="0 to 8"):
        _setup.check_machine(config(tmp_path, num_workers=9))
