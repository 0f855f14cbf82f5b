"""The recipe's `parents` and `train` blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from mega_hf.recipe.fields import Count, Seed, Share, Strict, invalid
from mega_hf.recipe.placeholders import LocalPlaceholder, Reference

_ARCH_ARGS = "Arguments of the architecture, as for `timm.create_model`."
_DATA_CONFIG = (
    "Preprocessing: timm's `input_size`, `mean`, `std`, `interpolation`, `crop_pct`. Missing keys"
    " are the architecture's."
)


class Train(Strict):
    """How parents are trained. Each parent is trained by one process, on the training rows."""

    arch: str | None = Field(
        default=None,
        description="timm architecture, or one of ours (`cifar_resnet20`). `null`: that of the"
        " model in `from`; one of the two is required.",
    )
    arch_args: dict[str, Any] = Field(default_factory=dict, description=_ARCH_ARGS)
    data_config: dict[str, Any] = Field(default_factory=dict, description=_DATA_CONFIG)
    source: Reference | None = Field(
        default=None,
        alias="from",
        description="Model at whose weights training starts: another parent, its snapshot, or a"
        " model as in `parents`. `null`: random weights.",
    )
    epochs: Count = Field(default=50, description="Passes over the training rows.")
    batch_size: Count = Field(default=256, description="Images per update.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        default="adam", description="timm's optimizer; `sgd` has Nesterov momentum."
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Momentum of `sgd`; others ignore it."
    )
    learning_rate: float = Field(default=0.01, gt=0, le=100, description="Highest learning rate.")
    schedule: Literal["constant", "cosine", "one-cycle"] = Field(
        default="constant", description="Course of the learning rate, updated after every batch."
    )
    warmup_epochs: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="Epochs in which the learning rate rises from 0; fewer than `epochs`, and 0"
        " for `one-cycle`.",
    )
    weight_decay: Share = Field(default=0.0, description="Weight decay of the optimizer.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy."
    )
    augmentation: Literal["none", "flip-and-crop"] = Field(
        default="none",
        description="`flip-and-crop`: mirror half of the images, and crop each after padding it.",
    )
    checkpoints: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="Number of snapshots to keep, at equal distances, the last one after the last"
        " epoch. Each is a parent named after its epoch, such as `seed44@10`.",
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> Train:
        if self.warmup_epochs >= self.epochs:
            expected = f"fewer than epochs, which is {self.epochs}"
            raise invalid("warmup_epochs", expected, self.warmup_epochs, "use fewer warmup_epochs")
        if self.warmup_epochs and self.schedule == "one-cycle":
            expected, hint = "0, since one-cycle has its own warm-up", "use 0, or schedule: cosine"
            raise invalid("warmup_epochs", expected, self.warmup_epochs, hint)
        if self.checkpoints > self.epochs:
            expected = f"at most one per epoch, {self.epochs}"
            raise invalid("checkpoints", expected, self.checkpoints, "use fewer checkpoints")
        return self

    @property
    def snapshots(self) -> list[int]:
        """The epochs after which a snapshot is kept."""
        return [round(self.epochs * i / self.checkpoints) for i in range(1, self.checkpoints + 1)]


class ParentTrain(Train):
    """How one parent is trained. Keys that are missing are taken from the shared `train` block."""

    seed: Seed = Field(
        description="Seed of the initial weights, the order of the rows and the augmentation."
    )


class TrainedParent(Strict):
    """A parent that is trained in the run, from a seed or from another model."""

    train: ParentTrain = Field(description="How the parent is trained; at least its `seed`.")


class WeightsParent(Strict):
    """A parent given as a timm architecture and a safetensors file."""

    arch: str = Field(description="timm architecture, or one of ours (`cifar_resnet20`).")
    weights: Reference = Field(description="The .safetensors file.")
    arch_args: dict[str, Any] = Field(default_factory=dict, description=_ARCH_ARGS)
    data_config: dict[str, Any] = Field(default_factory=dict, description=_DATA_CONFIG)
    num_classes: Count = Field(description="Number of outputs.")


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
