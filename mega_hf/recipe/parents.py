"""The recipe's `parents` and `train` blocks: a parent is a reference, a weights file or trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from mega_hf.recipe.fields import Count, Seed, Share, Strict, impossible
from mega_hf.recipe.placeholders import LocalPlaceholder, Reference


class Train(Strict):
    """How parents are trained: on the training rows alone, each by one process.

    `from` names another parent, or a model as a parent is named: training starts at its weights,
        and `arch` and
    `data_config` are its own. `checkpoints: K` keeps K snapshots at equal distances, the last at
        the end; each is a
    parent named after its epoch, as `seed44@10`.
    """

    arch: str | None = None
    arch_args: dict[str, Any] = Field(default_factory=dict)
    data_config: dict[str, Any] = Field(
        default_factory=dict
    )  # timm's input_size, mean, std, interpolation, crop_pct
    source: Annotated[Reference | None, Field(alias="from")] = None
    epochs: Count = 50
    batch_size: Count = 256
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd alone
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.01
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    warmup_epochs: Annotated[int, Field(ge=0, le=10**9)] = 0
    weight_decay: Share = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augmentation: Literal["none", "flip-and-crop"] = "none"
    checkpoints: Annotated[int, Field(ge=0, le=10**9)] = 0

    @model_validator(mode="after")
    def _possible(self) -> Train:
        if self.warmup_epochs >= self.epochs:
            raise impossible(
                "warmup_epochs", f"fewer than epochs, {self.epochs}", self.warmup_epochs, "fewer"
            )
        if self.warmup_epochs and self.schedule == "one-cycle":
            raise impossible(
                "warmup_epochs", "0: one-cycle rises by itself", self.warmup_epochs, "or cosine"
            )
        if self.checkpoints > self.epochs:
            raise impossible(
                "checkpoints", f"at most one an epoch, {self.epochs}", self.checkpoints, "fewer"
            )
        return self

    @property
    def snapshots(self) -> list[int]:
        """The epochs after which a snapshot is kept."""
        return [round(self.epochs * i / self.checkpoints) for i in range(1, self.checkpoints + 1)]


class ParentTrain(Train):
    """How one parent is trained: its seed (initial weights, order of the rows, augmentation), and
    the rest.

    In a recipe it takes from the shared `train` block what it does not say itself.
    """

    seed: Seed


class TrainedParent(Strict):
    """A parent that is trained here."""

    train: ParentTrain


class WeightsParent(Strict):
    """A parent given as a timm architecture and a safetensors file of its weights.

    `data_config` is its preprocessing (timm's input_size, mean, std, interpolation, crop_pct); the
    architecture's own where it says nothing.
    """

    arch: str
    weights: Reference
    arch_args: dict[str, Any] = Field(default_factory=dict)
    data_config: dict[str, Any] = Field(default_factory=dict)
    num_classes: Count


def _parent_form(value: Any) -> str:
    if isinstance(value, TrainedParent) or (isinstance(value, dict) and "train" in value):
        return "trained"
    if isinstance(value, LocalPlaceholder) or (isinstance(value, dict) and "local" in value):
        return "placeholder"
    return "file" if isinstance(value, dict | BaseModel) else "reference"


ParentRef = Annotated[
    Annotated[str, Tag("reference")]
    | Annotated[TrainedParent, Tag("trained")]
    | Annotated[WeightsParent, Tag("file")]
    | Annotated[LocalPlaceholder, Tag("placeholder")],
    Discriminator(_parent_form),
]
