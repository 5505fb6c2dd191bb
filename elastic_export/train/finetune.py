"""Training of one plain network: an extracted descendant, dense or with frozen masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from elastic_export.config.recipe import FinetuneConfig
from elastic_export.data import Split
from elastic_export.errors import CheckFailed, UserError, did_you_mean
from elastic_export.progress import Progress, no_progress
from elastic_export.train.losses import distillation_loss, label_loss
from elastic_export.train.optimizer import Updater
from elastic_export.train.schedule import learning_rate
from elastic_export.train.stream import training_batches
from elastic_export.train.watch import LossWatch

__all__ = ["FinetuneReport", "finetune"]


@dataclass
class FinetuneReport:
    """What a fine-tuning did: its steps, mean loss and rate about every ten steps, wall time."""

    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def finetune(
    module: nn.Module,
    split: Split,
    config: FinetuneConfig,
    *,
    seed: int,
    teacher: Callable[[Tensor], Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> FinetuneReport:
    """Train a plain network in place; it keeps its train or eval mode and its device.

    Args:
        module: The network.
        split: Training images.
        config: Steps, rates and the rest. With ``distill`` and a teacher the loss is half cross
            entropy, half KL divergence from the teacher; otherwise cross entropy.
        seed: All randomness is a function of it and of the step.
        teacher: From images on ``device`` (B, C, H, W) to logits (B, classes).
        masks: Parameter name to a bool tensor of its shape. Weights under False are set to zero
            at the start, get no gradient, and are zero after every step.
        device: Where to train. On CUDA forward passes run in float16.
        progress: Told of the steps.

    Raises:
        UserError: A mask names no parameter of the module or has another shape.
        CheckFailed: The loss diverged.
    """
    _check_masks(module, masks or {})
    place, home = torch.device(device), next(module.parameters()).device
    was_training = module.training
    module.to(place).train()
    updater = Updater(
        module.named_parameters(),
        weight_decay=config.weight_decay,
        clip_grad_norm=config.clip_grad_norm,
        device=place,
        masks=masks,
    )
    report = FinetuneReport(config.steps)
    watch = LossWatch(progress, report.history)
    began = time.perf_counter()
    progress.start("fine-tune", config.steps)
    try:
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            for step, x, y in training_batches(
                split,
                batch_size=config.batch_size,
                start=0,
                steps=config.steps,
                seed=seed,
                augmentation=config.augment,
                device=place,
            ):
                lr = learning_rate(
                    step, steps=config.steps, warmup=config.warmup_steps, peak=config.lr
                )
                loss = _loss(module, x, y, config, updater, teacher if config.distill else None)
                updater.backward(loss)
                updater.step(lr)
                watch.add(step, loss, lr)
            watch.read()
    finally:
        progress.finish()
        module.train(was_training).to(home)
    report.seconds = time.perf_counter() - began
    _check_finite(module)
    return report


def _loss(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    config: FinetuneConfig,
    updater: Updater,
    teacher: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    with updater.autocast():
        logits = module(x)
        if teacher is None:
            return label_loss(logits, y, config.label_smoothing)
        with torch.no_grad():
            taught = teacher(x)
    return distillation_loss(logits, y, taught, config.label_smoothing)


def _check_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise UserError(
                f'The masks name a parameter "{name}" that the network does not have.',
                did_you_mean(name, list(parameters)),
            )
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise UserError(
                f"The mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}, where bool of "
                f"shape {tuple(parameters[name].shape)} is needed.",
                "Make the masks from this network's own weights.",
            )


def _check_finite(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise CheckFailed(
                f"{name} holds values that are not finite after the last fine-tuning step.",
                "Fine-tune with a lower lr, a longer warm-up, or clip_grad_norm set to 1.0.",
            )
