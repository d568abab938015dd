# SPDX-License-Identifier: MIT
"""train(): runs the steps of an objective, and looks after everything around them.

Accelerate brings the device, mixed precision, DDP under torchrun and loss scaling.  The order of the images, what is
saved and when is decided here, since a resumed run must continue bit for bit as an uninterrupted one would.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm import tqdm

import genimg_fast
from genimg_fast import data, models
from genimg_fast.training import checkpoint
from genimg_fast.training._setup import (
    check_batch_size,
    check_kind,
    check_machine,
    create_accelerator,
    create_model,
    open_data,
    warn_of_settings,
)
from genimg_fast.training.batches import StepSampler, batches, share_step
from genimg_fast.training.config import TrainConfig
from genimg_fast.training.ema import EMA
from genimg_fast.training.errors import Interrupted, UserError
from genimg_fast.training.gan import GANObjective
from genimg_fast.training.logging import RunLog
from genimg_fast.training.rng import rng_state, set_rng_state
from genimg_fast.training.schedule import lr_factor
from genimg_fast.training.signals import collect_stop_signals
from genimg_fast.training.vae import VAEObjective

_GRID_IMAGES = 64


@dataclass
class TrainResult:
    """What a run came to.

    Attributes:
        out: the run's folder.
        steps: steps taken since the beginning, earlier sessions included.
        epochs: the same in passes over the training images.
        metric: what validations measure: "elbo" or "kernel_distance".
        higher_is_better: whether it is.
        best_metric: of all validations: a VAE's test ELBO (nats an image, higher is better), a GAN's kernel distance
            (lower is better; see `training.metrics`).
        images_per_second: of this session, over all processes, without validation, sampling and saving; 0 if it took no step.
        history: the records of metrics.jsonl (on other processes than the first: empty).
    """

    out: Path
    steps: int
    epochs: float
    metric: str
    higher_is_better: bool
    best_metric: float | None
    images_per_second: float
    history: list[dict[str, Any]] = field(repr=False)


def train(config: TrainConfig, *, resume: bool = False, progress: bool = True) -> TrainResult:
    """Trains a model; under `torchrun`, on all its processes.

    Args:
        config: what to train, on what, and where to.
        resume: continue the run in `config.out` from its last checkpoint.  On the CPU, and elsewhere as far as the device's
            operations are deterministic, the result is bit for bit that of a run that was never stopped.  On another number
            of processes the steps stay what they were, `grad_accumulation` and where need be `batch_size` change; the
            noise and the rounding are others then.
        progress: show a progress bar with images/s, losses and the time left.

    Writes, in `config.out`: config.json, checkpoints/last.pt (to resume; previous.pt is the one before),
    checkpoints/last.safetensors and best.safetensors (averaged weights, for `load_model`), samples/step_XXXXXX.png,
    metrics.jsonl, logs/ (TensorBoard), with `config.wandb` wandb/.  Seeds the global generators of torch, Python and NumPy.

    Raises:
        UserError: for what the user can put right, in one line: the folder already holds a run, the configuration differs
            from the resumed run's, a checkpoint is damaged, the disk is full, a loss is no longer finite, or no validation
            was.
        Interrupted: a UserError: the run was stopped by Ctrl-C or SIGTERM.
        genimg_fast.data.DataError: for data that cannot be read.
    """
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    run = None
    try:
        run = _Run(config, resume=resume, progress=progress)
        result = run.train()
        run.close()
        return result
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; {run.how_to_resume() if run else 'nothing was written'}", signal.SIGINT) from error
    except OSError as error:
        where = error.filename or config.out
        raise UserError(f"{where}: {error.strerror or error}" + (f"; {run.how_to_resume()}" if run else "")) from error
    finally:
        torch.use_deterministic_algorithms(deterministic_before)
        if run is not None:
            with suppress(OSError):  # a log that the full disk cuts short must not hide the error that says so
                run.close()


class _Run:
    def __init__(self, config: TrainConfig, *, resume: bool, progress: bool) -> None:
        check_machine(config)
        self.accelerator = accelerator = create_accelerator(config)
        self.main = accelerator.is_main_process
        self.log: RunLog | None = None
        self.recorded = False
        self.step = self.saved_step = 0
        self.best: float | None = None
        self.validations_since_best = 0

        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        set_seed(config.seed, deterministic=config.deterministic)
        self.train_data, self.test_data = open_data(config)
        self.model = create_model(config)
        if not resume:  # a run of an earlier version may have had settings of the other kind
            check_kind(config, self.model)
        if self.main:
            warn_of_settings(config, self.model, accelerator.device)
        objective_class = VAEObjective if isinstance(self.model, models.VAE) else GANObjective
        self.config = config = objective_class.default_settings(config)
        self.out = Path(config.out)
        self.checkpoints = self.out / "checkpoints"
        state = self._read_checkpoint() if resume else None
        self.sampler = self._divide_steps(state)
        check_batch_size(self.model, self.sampler.batch_size)
        self.total_steps = config.max_steps or config.epochs * self.sampler.steps_per_epoch
        if not resume:
            self._on_main(lambda: checkpoint.check_folder(self.out, resume=False))
        if state is not None:
            with checkpoint.restoring(self.checkpoints):
                self.model.load_state_dict(state["model"])
                self.step = self.saved_step = int(state["step"])
                self.best, self.validations_since_best = state["best"], state["validations_since_best"]
            if self.total_steps < self.step:
                given = f"max_steps is {config.max_steps}" if config.max_steps else f"epochs is {config.epochs}"
                raise UserError(f"the run in {self.out} has taken {self.step} steps already; {given}, which is less")

        # The evaluation model is copied before Accelerate wraps `forward` for mixed precision.
        self.evaluation_model = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.ema = EMA(_sampled_part(self.evaluation_model), config.ema_decay) if config.ema_decay else None
        self.objective: VAEObjective | GANObjective = objective_class(self.model, config, accelerator)  # type: ignore[arg-type]
        self.evaluation_model.to(accelerator.device)
        # Other noise for each process, and not the numbers that became the initial weights.
        set_seed((config.seed * 1_000_003 + accelerator.process_index + 1 + 7_919 * self.step) % 2**32)
        if state is not None:
            with checkpoint.restoring(self.checkpoints):
                self._load(state)
        if resume:
            self._on_main(self._open_logs)
            self.recorded = True
        if state is not None:
            self._on_main(self._complete_save)
        self.bar = tqdm(
            total=self.total_steps * self.sampler.images_per_step,
            initial=self.step * self.sampler.images_per_step,
            desc=config.model,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (progress and self.main),
        )

    # Beginning

    def _on_main(self, action: Callable[[], None]) -> None:
        """Runs `action` on the first process only; what it raises as UserError is raised on all of them."""
        message: list[str | None] = [None]
        if self.main:
            try:
                action()
            except UserError as error:
                message = [str(error)]
            except OSError as error:
                message = [f"cannot write {error.filename or self.out}: {error.strerror or error}"]
        broadcast_object_list(message)
        if message[0] is not None:
            raise UserError(message[0])

    def _record(self) -> None:
        """Makes the folder of a new run."""
        self._on_main(lambda: checkpoint.claim_folder(self.out, resume=False))
        self._on_main(self._open_logs)
        self.recorded = True

    def _open_logs(self) -> None:
        description = {
            "genimg_fast": genimg_fast.__version__,
            "torch": torch.__version__,
            "processes": self.accelerator.num_processes,
            "train": self.config.to_dict(),
            "model": self.model.config,
        }
        text = json.dumps(description, indent=2) + "\n"
        checkpoint.write_atomically(self.out / "config.json", lambda file: file.write(text.encode()))
        self.log = RunLog(self.out, step=self.step, wandb_settings=description if self.config.wandb else None)

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """The state to continue from; None if the run was killed before its first checkpoint."""
        self._on_main(lambda: checkpoint.claim_folder(self.out, resume=True))
        state = checkpoint.load_resume(self.checkpoints)
        if state is None and (self.checkpoints / "last.safetensors").exists():  # which is written after last.pt
            raise UserError(
                f"{self.checkpoints} has weights, but neither last.pt nor previous.pt, with which to go on: restore one of them, or "
                "start again in another folder"
            )
        if state is not None:
            with checkpoint.restoring(self.checkpoints):
                self._check_same_run(state)
                state["images_per_step"] = int(state["images_per_step"])
                if state["images_per_step"] < 1:
                    raise ValueError(f"images_per_step is {state['images_per_step']} and must be positive")
        return state

    def _divide_steps(self, state: dict[str, Any] | None) -> StepSampler:
        """The images of each step and process; a resumed run keeps its steps, however many processes it had."""
        config, processes = self.config, self.accelerator.num_processes
        batch_size, grad_accumulation = config.batch_size, config.grad_accumulation
        if state and state["images_per_step"] != batch_size * grad_accumulation * processes:
            batch_size, grad_accumulation = share_step(
                state["images_per_step"], batch_size=batch_size, processes=processes
            )
        return StepSampler(
            len(self.train_data),
            batch_size=batch_size,
            grad_accumulation=grad_accumulation,
            rank=self.accelerator.process_index,
            processes=processes,
            seed=config.seed,
        )

    def _check_same_run(self, state: dict[str, Any]) -> None:
        differing = self.config.differences(state["config"])
        for name, now in self._identity().items():
            if state[name] != now:
                differing.append(f"{name.replace('_', ' ')} (was {state[name]!r}, is {now!r})")
        if differing:
            raise UserError(f"{self.out} was trained with another configuration; differing: {', '.join(differing)}")

    def _identity(self) -> dict[str, Any]:
        return {"model_config": self.model.config, "training_images": len(self.train_data)}

    # Saving and loading

    def _save(self) -> None:
        """Writes last.pt and last.safetensors."""
        finite = torch.stack([p.isfinite().all() for p in self.model.parameters()]).all()
        if not finite:
            raise self._diverged("a weight is no longer finite")
        noise = gather_object([rng_state(self.accelerator.device)])
        if not self.main:
            return
        state = {
            "config": self.config.to_dict(),
            **self._identity(),
            "images_per_step": self.sampler.images_per_step,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizers": {name: opt.state_dict() for name, opt in self.objective.optimizers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "rng": noise,
            "best": self.best,
            "validations_since_best": self.validations_since_best,
        }
        try:
            checkpoint.save_resume(self.checkpoints, state)
            self.saved_step = self.step
            checkpoint.save_weights(self.checkpoints / "last.safetensors", self._averaged_model(), step=self.step)
        except UserError as error:
            raise UserError(f"{error}; {self.how_to_resume()}") from error

    def _complete_save(self) -> None:
        """Writes the last.safetensors of the checkpoint, if a kill came between last.pt and it."""
        path = self.checkpoints / "last.safetensors"
        try:
            saved = checkpoint.step_of_weights(path) or 0
        except (OSError, safetensors.SafetensorError):
            saved = 0
        if saved < self.step:
            checkpoint.save_weights(path, self._averaged_model(), step=self.step)

    def _load(self, state: dict[str, Any]) -> None:
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        for name, optimizer in self.objective.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["rng"]) == self.accelerator.num_processes:  # else each goes on with the seed that it just got
            set_rng_state(state["rng"][self.accelerator.process_index], self.accelerator.device)

    def _averaged_model(self) -> models.ImageModel:
        """The model to validate, sample and export: averaged weights where there is an average, current ones elsewhere."""
        if self.ema is None:
            self.evaluation_model.load_state_dict(self.model.state_dict())
        elif isinstance(self.model, models.GAN) and isinstance(self.evaluation_model, models.GAN):
            self.evaluation_model.discriminator.load_state_dict(self.model.discriminator.state_dict())
        return self.evaluation_model

    # The steps

    def train(self) -> TrainResult:
        self.sampler.start, self.sampler.stop = self.step, self.total_steps
        if self._patience_is_exhausted():
            self.sampler.stop = self.step
        seconds, started_at = 0.0, self.step
        with collect_stop_signals(enabled=self.accelerator.num_processes == 1) as signals:
            began = time.perf_counter()
            for step_batches in batches(
                self.train_data, self.sampler, num_workers=self.config.num_workers, device=self.accelerator.device
            ):
                losses = self._take_step(step_batches)
                if not self.recorded:  # a model that is too large, or refused otherwise, leaves nothing behind
                    self._record()
                ended = self.step >= self.total_steps
                todo = {
                    name
                    for name in ("log", "validate", "sample", "checkpoint")
                    if ended or self._due(getattr(self.config, f"{name}_every"))
                }
                if not todo and not signals:
                    continue
                values = self._read(losses)  # waits for the device
                seconds += time.perf_counter() - began
                if "log" in todo:
                    speed = (self.step - started_at) * self.sampler.images_per_step / seconds
                    self._log(values, speed)
                if "validate" in todo:
                    self._validate()
                    ended = ended or self._patience_is_exhausted()
                if "sample" in todo or ended:
                    self._sample()
                if "checkpoint" in todo or ended or signals:
                    self._save()
                if ended:
                    break
                if signals:
                    raise Interrupted(f"stopped by {signals[0].name}; {self.how_to_resume()}", signals[0])
                began = time.perf_counter()
        if self.best is None and self.validations_since_best:
            raise UserError(
                f"no validation gave a finite {self.objective.metric}: start a new run with a lower lr or with grad_clip; "
                f"what was trained is in {self.out}"
            )
        return TrainResult(
            out=self.out,
            steps=self.step,
            epochs=self.step / self.sampler.steps_per_epoch,
            metric=self.objective.metric,
            higher_is_better=self.objective.higher_is_better,
            best_metric=self.best,
            images_per_second=(self.step - started_at) * self.sampler.images_per_step / seconds if seconds else 0.0,
            history=self.log.history if self.log else [],
        )

    def _take_step(self, step_batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        factor = lr_factor(
            self.step,
            schedule=self.config.lr_schedule,
            warmup_steps=self.config.warmup_steps,
            total_steps=self.total_steps,
        )
        for optimizer in self.objective.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        self.model.train()
        losses = self.objective.step(step_batches)
        if self.ema:
            self.ema.update(_sampled_part(self.model))
        self.step += 1
        self.bar.update(self.sampler.images_per_step)
        return losses

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _read(self, losses: dict[str, torch.Tensor]) -> dict[str, float]:
        values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value}")
        return values

    def _diverged(self, what: str) -> UserError:
        return UserError(
            f"{what} at step {self.step}; that step was not saved: start a new run with a lower lr or with grad_clip; "
            f"{self.how_to_resume()}"
        )

    def _log(self, losses: dict[str, float], images_per_second: float) -> None:
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()}, refresh=False)
        if self.log:
            lr = next(iter(self.objective.optimizers.values())).param_groups[0]["lr"]
            epoch = self.step / self.sampler.steps_per_epoch
            values = {**losses, "lr": lr, "epoch": epoch, "images_per_second": images_per_second}
            self.log.add(self.step, "train", values)

    def _validate(self) -> None:
        """Validates on the first process, and lets all know how it went."""
        shared: list[Any] = [None]
        if self.log:
            model = self._averaged_model()
            values = self.objective.validate(
                model,  # type: ignore[arg-type]
                self.test_data,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
            )
            self.log.add(self.step, "test", values)
            shared[0] = values[self.objective.metric]
        broadcast_object_list(shared)
        value = shared[0]
        sign = 1 if self.objective.higher_is_better else -1
        better = math.isfinite(value) and (self.best is None or sign * value > sign * self.best)
        if not better:
            self.validations_since_best += 1
            return
        self.best, self.validations_since_best = value, 0
        if self.main:
            checkpoint.save_weights(self.checkpoints / "best.safetensors", self._averaged_model(), step=self.step)

    def _patience_is_exhausted(self) -> bool:
        patience = self.config.early_stopping_patience
        return patience is not None and self.validations_since_best >= patience

    def _sample(self) -> None:
        if self.log:
            generator = torch.Generator(self.accelerator.device).manual_seed(self.config.seed)
            images = self._averaged_model().sample(_GRID_IMAGES, generator=generator).cpu()
            data.save_grid(images, self.out / "samples" / f"step_{self.step:06d}.png")
            self.log.add_images(self.step, images)

    # The end

    def how_to_resume(self) -> str:
        if not self.recorded:
            return "nothing was written"
        if self.saved_step == 0:
            return f"no checkpoint had been written to {self.out} yet: start it again with --resume"
        return f"to continue from step {self.saved_step}, resume the run in {self.out} (--resume)"

    def close(self) -> None:
        self.bar.close()
        if self.log:
            self.log.close()
        self.accelerator.free_memory()


def _sampled_part(model: models.ImageModel) -> torch.nn.Module:
    """What images are made with, and what is worth averaging."""
    return model.generator if isinstance(model, models.GAN) else model
