"""Supernet training: the sandwich rule with in-place distillation."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from elastic_export.config.recipe import TrainConfig
from elastic_export.data import Split
from elastic_export.elastic.supernet import Supernet
from elastic_export.errors import CheckFailed
from elastic_export.progress import Progress, no_progress
from elastic_export.space import Spec
from elastic_export.train.ema import Ema
from elastic_export.train.losses import label_loss, soft_cross_entropy
from elastic_export.train.optimizer import Updater
from elastic_export.train.schedule import learning_rate
from elastic_export.train.state import load_state, save_state
from elastic_export.train.stream import step_rng, training_batches
from elastic_export.train.watch import LossWatch

__all__ = ["TrainReport", "train_supernet"]


@dataclass
class TrainReport:
    """What a training did.

    Attributes:
        steps: Steps of the whole training.
        history: Mean loss and learning rate, about every ten steps.
        seconds: Wall time of all steps, those before a resume included.
        resumed_from: Steps found done in the saved state.
        restarted: Why a saved state was of no use, else empty.
    """

    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_from: int = 0
    restarted: str = ""


def train_supernet(
    supernet: Supernet,
    split: Split,
    config: TrainConfig,
    *,
    seed: int,
    work: Path,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> TrainReport:
    """Train the shared parameters in place (BigNAS, Yu et al. 2020, arXiv 2003.11142).

    Each step runs the largest descendant on the labels, then the smallest and
    ``config.random_specs`` random ones on the largest one's logits (on the labels without
    ``distill``), adds up all gradients and makes one AdamW step. With ``ema_decay`` the result is
    the moving average of the weights. The supernet ends in eval mode on the device it came from.

    Args:
        supernet: What to train.
        split: Training images.
        config: Steps, rates and the rest.
        seed: All randomness is a function of it and of the step.
        work: A folder of this training's own; ``state.pt`` in it is written every
            ``checkpoint_every`` steps and resumed from. A damaged one, or one of another
            training, is not used; the report says so.
        device: Where to train. On CUDA forward passes run in float16.
        progress: Told of the steps.

    Raises:
        CheckFailed: The loss diverged.
        UserError: The state cannot be written.
    """
    place, home = torch.device(device), next(supernet.parameters()).device
    supernet.to(place)
    run = _Run(supernet, config, place, _key(supernet, split, config, seed), work / "state.pt")
    report = run.resume()
    progress.start("train supernet", config.steps)
    progress.advance(report.resumed_from)
    devices = [place] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            run.train(split, seed, report, progress)
    finally:
        progress.finish()
        supernet.eval().to(home)
    return report


class _Run:
    """One training's live objects, which are saved and resumed together."""

    def __init__(
        self, supernet: Supernet, config: TrainConfig, device: torch.device, key: str, path: Path
    ) -> None:
        self.supernet = supernet
        self.config = config
        self.device = device
        self.key = key
        self.path = path
        self.updater = Updater(
            supernet.named_parameters(),
            weight_decay=config.weight_decay,
            clip_grad_norm=config.clip_grad_norm,
            device=device,
        )
        decay = config.ema_decay
        self.ema = Ema(supernet.named_parameters(), decay) if decay > 0 else None

    def resume(self) -> TrainReport:
        """Load the saved state where there is one for this training."""
        saved, why_not = load_state(self.path, self.key)
        if saved is None:
            return TrainReport(self.config.steps, restarted=why_not)
        self.supernet.load_state_dict(saved["store"])
        self.updater.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        return TrainReport(
            self.config.steps,
            history=saved["history"],
            seconds=saved["seconds"],
            resumed_from=saved["step"],
        )

    def save(self, step: int, report: TrainReport, seconds: float) -> None:
        """Save the state with ``step`` steps done."""
        state = {
            "step": step,
            "seconds": seconds,
            "history": report.history,
            "store": self.supernet.state_dict(),
            "optimizer": self.updater.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else {},
        }
        save_state(self.path, self.key, state)

    def train(self, split: Split, seed: int, report: TrainReport, progress: Progress) -> None:
        """Make the steps that are left."""
        config = self.config
        began = time.perf_counter() - report.seconds
        watch = LossWatch(progress, report.history)
        self.supernet.train()
        for step, x, y in training_batches(
            split,
            batch_size=config.batch_size,
            start=report.resumed_from,
            steps=config.steps,
            seed=seed,
            augmentation=config.augment,
            device=self.device,
        ):
            lr = learning_rate(step, steps=config.steps, warmup=config.warmup_steps, peak=config.lr)
            loss = self._accumulate(self._specs(seed, step), x, y)
            self.updater.step(lr)
            if self.ema is not None:
                self.ema.update(step)
            watch.add(step, loss, lr)
            done = step + 1
            if done == config.steps or done % config.checkpoint_every == 0:
                watch.read()
                self.save(done, report, time.perf_counter() - began)
        report.seconds = time.perf_counter() - began
        if self.ema is not None:
            self.ema.copy_to_parameters()
        self._check_finite()

    def _specs(self, seed: int, step: int) -> list[Spec]:
        space = self.supernet.space
        largest, smallest = space.max(), space.min()
        if largest == smallest:
            return [largest]
        rng = step_rng(seed, step, "specs")
        return [largest, smallest, *(space.sample(rng) for _ in range(self.config.random_specs))]

    def _accumulate(self, specs: list[Spec], x: Tensor, y: Tensor) -> Tensor:
        """Add up the gradients of all specs; returns their mean loss."""
        smoothing = self.config.label_smoothing
        teacher: Tensor | None = None
        losses = []
        for spec in specs:
            with self.updater.autocast():
                logits = self.supernet.forward(spec, x)
            if teacher is None or not self.config.distill:
                loss = label_loss(logits, y, smoothing)
                teacher = logits.detach()
            else:
                loss = soft_cross_entropy(logits, teacher)
            self.updater.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _check_finite(self) -> None:
        for name, parameter in self.supernet.named_parameters():
            if not parameter.isfinite().all():
                raise CheckFailed(
                    f"{name} holds values that are not finite after the last training step.",
                    "Train with a lower lr, a longer warm-up, or clip_grad_norm set to 1.0.",
                )


def _key(supernet: Supernet, split: Split, config: TrainConfig, seed: int) -> str:
    """What makes two trainings the same: all but how often the state is saved."""
    identity = {
        "format": 1,
        "family": supernet.family.name,
        "config": supernet.config.model_dump(mode="json"),
        "space": supernet.space.fingerprint,
        "train": config.model_dump(mode="json", exclude={"checkpoint_every"}),
        "data": split.digest,
        "seed": seed,
    }
    return json.dumps(identity, sort_keys=True)
