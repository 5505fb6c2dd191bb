"""The recipe: everything ``elastic-export build`` is asked to do, stage by stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from elastic_export.config.base import Schema
from elastic_export.config.transform import Transform

__all__ = [
    "BoardConfig",
    "Budget",
    "DataConfig",
    "DescendConfig",
    "FinetuneConfig",
    "GuardConfig",
    "MeasureConfig",
    "ModelConfig",
    "QuantizeConfig",
    "Recipe",
    "SearchConfig",
    "SearchSplit",
    "SparsifyConfig",
    "TrainConfig",
]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelConfig(Schema):
    """Where the supernet or the plain network comes from.

    ``checkpoint`` is a file (or the folder of a system that writes several); without one, ``train``
    and ``family`` must be given. ``config`` holds the family's own settings (sizes and axes); what
    a checkpoint tells by itself need not be repeated. ``config_file`` is a YAML file of such
    settings, or the configuration of the system that trained the checkpoint; what ``config`` says
    too wins.
    """

    family: str | None = None
    checkpoint: str | None = None
    format: str = "auto"
    config: dict[str, Any] = Field(default_factory=dict)
    config_file: str | None = None


class SearchSplit(Schema):
    """The images that candidates are compared on; always held out from train, never from test."""

    source: Literal["train"] = Field(default="train", alias="from")
    per_class: Positive = 20


class DataConfig(Schema):
    """The data set and how its images become network inputs."""

    dataset: Literal["digits", "imagefolder"]
    root: str | None = None
    transform: Transform | None = None
    search_split: SearchSplit = SearchSplit()

    @model_validator(mode="after")
    def _root_where_needed(self) -> DataConfig:
        if self.dataset == "imagefolder" and not self.root:
            raise ValueError("imagefolder needs root, the folder that holds train/ and val/")
        return self


class TrainConfig(Schema):
    """Supernet training: the sandwich rule with in-place distillation, for a number of steps."""

    steps: Positive
    batch_size: Positive = 64
    lr: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Share = 0.0
    random_specs: Annotated[int, Field(ge=0)] = 2
    distill: bool = True
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    augment: Literal["none", "shift", "noise", "crop-flip"] = "none"
    checkpoint_every: Positive = 100


class Budget(Schema):
    """The cost range that is divided into one band for each descendant to keep."""

    macs: tuple[float, float]

    @model_validator(mode="after")
    def _ordered(self) -> Budget:
        low, high = self.macs
        if not 0 <= low < high:
            raise ValueError(f"macs [{low}, {high}] is not a range: the first must be the smaller")
        return self


class SearchConfig(Schema):
    """Evolution over the space, the best candidate of each MAC band is kept.

    Without a budget the whole range of the space is used.
    """

    objectives: tuple[Literal["accuracy"], Literal["macs"]] = ("accuracy", "macs")
    budget: Budget | None = None
    keep: Positive = 5
    population: Positive = 32
    generations: Annotated[int, Field(ge=0)] = 4
    mutation: Share = 0.2
    crossover: Share = 0.5


class DescendConfig(Schema):
    """Which descendants to extract: named ones, given ones, and those a search finds."""

    specs: tuple[str | dict[str, Any], ...] = ()
    search: SearchConfig | None = None

    @model_validator(mode="after")
    def _something_to_extract(self) -> DescendConfig:
        if not self.specs and self.search is None:
            raise ValueError("descend needs specs, a search, or both")
        return self


class FinetuneConfig(Schema):
    """Training of one extracted descendant, dense or with its masks frozen."""

    steps: Positive
    batch_size: Positive = 64
    lr: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Share = 0.0
    distill: bool = True
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    augment: Literal["none", "shift", "noise", "crop-flip"] = "none"


class SparsifyConfig(Schema):
    """2:4 masks along the reduction axis, then fine-tuning with the masks frozen.

    ``skip`` names modules that stay dense (shell patterns on module names).
    """

    pattern: Literal["2:4"] = "2:4"
    allocation: Literal["uniform"] = "uniform"
    method: Literal["magnitude"] = "magnitude"
    skip: tuple[str, ...] = ("patch_embed*", "conv1*", "head*", "fc")
    finetune: FinetuneConfig | None = None


class GuardConfig(Schema):
    """The largest top-1 loss, in percentage points, that INT8 may cost on the search split.

    It holds for the form that is deployed on the recipe's first target. Layers that cost too much
    return to floating point, those first that win the most points per millisecond lost.
    """

    max_drop: Annotated[float, Field(ge=0)] = 1.0


class QuantizeConfig(Schema):
    """INT8 by a named calibration recipe (``calibrate/NAME.yaml`` or a path).

    ``attention`` says whether the two attention products are INT8 too. ``qat`` trains the network
    with its INT8 roundings, masks frozen, before the guard; its own floating-point form teaches it
    where ``distill`` is set. ``placement: measured`` keeps INT8, in the form for this machine, only
    where it is measured to be faster here.
    """

    precision: Literal["int8"] = "int8"
    calibration: str = "max"
    attention: Literal["float", "int8"] = "float"
    qat: FinetuneConfig | None = None
    guard: GuardConfig | None = GuardConfig()
    placement: Literal["policy", "measured"] = "policy"


class BoardConfig(Schema):
    """A board to measure on over ssh; a recipe may give ``board`` alone, as a text.

    ``board`` is what ``ssh`` takes. ``seconds`` is the measured time of each model there, divided
    into rounds. ``pin_clocks`` says whether the board's clocks may be held still meanwhile.
    ``patience_s`` is how long a lost connection is tried again.
    """

    board: Annotated[str, Field(min_length=1)]
    seconds: Annotated[float, Field(gt=0)] = 15.0
    pin_clocks: bool = True
    python: Annotated[str, Field(min_length=1)] = "python3"
    ssh_config: str | None = None
    patience_s: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return {"board": value} if isinstance(value, str) else value


class MeasureConfig(Schema):
    """How latency is measured: on this machine, and ``on`` boards, by target.

    ``sample_ms`` and ``warmup_ms`` are those of this machine; a board's script has its own.
    """

    batch_size: Positive = 1
    threads: Positive = 1
    min_samples: Positive = 10
    sample_ms: Annotated[float, Field(gt=0)] = 50.0
    warmup_ms: Annotated[float, Field(ge=0)] = 200.0
    on: dict[str, BoardConfig] = Field(default_factory=dict)


class Recipe(Schema):
    """One run of the whole flow."""

    schema_version: Literal[1] = 1
    name: str = "build"
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig
    data: DataConfig
    train: TrainConfig | None = None
    descend: DescendConfig
    finetune: FinetuneConfig | None = None
    sparsify: SparsifyConfig | None = None
    quantize: QuantizeConfig | None = None
    targets: tuple[str, ...] = ("host-cpu",)
    measure: MeasureConfig = MeasureConfig()

    @model_validator(mode="after")
    def _parameters_come_from_somewhere(self) -> Recipe:
        if self.model.checkpoint is None and self.train is None:
            raise ValueError("the recipe gives neither model.checkpoint nor train")
        if self.model.checkpoint is None and self.model.family is None:
            raise ValueError("model.family is needed where there is no model.checkpoint")
        if not self.targets:
            raise ValueError("targets is empty: name at least one, for example host-cpu")
        return self
