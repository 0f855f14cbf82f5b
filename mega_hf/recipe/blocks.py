"""The blocks of a recipe: frozen records that refuse what they do not know, every default written
out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

# Fixed by `variant: reference`, the code published beside the paper, whatever else the recipe says.
REFERENCE = {"std": 0.1, "scope": "tensor", "relative": False}
# Keys of `merge` and `data` that came later, and what held before; where that is the default no
# more, it is written.
_LATER = {
    "encoding": "direct",
    "granularity": "layer",
    "batchnorm": "blend",
    "align": "none",
    "calibration": None,
    "second_look": 0.0,
    "prefer": 0,
    "fitness": "accuracy",
    "align_to": None,
}
_CHANGED = {"batchnorm", "second_look"}
_OTHER = object()
SWEEP = 21  # points of a line sweep
# What `method: auto` chooses, and how it stands until then.
_OPEN = {
    "encoding": "direct",
    "granularity": "layer",
    "align": "none",
    "align_to": None,
    "batchnorm": "recalibrate",
}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
# NAME or NAME@EPOCH
Input = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}(@[0-9]{1,9})?$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """A frozen record that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, tree: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [key for key in tree if key not in known] if isinstance(tree, dict) else []
        if unknown:
            raise PydanticCustomError("unknown", "unknown key", {"keys": unknown, "known": known})
        return tree


def impossible(
    key: str | list[str], expected: str, got: object, hint: str = ""
) -> PydanticCustomError:
    """Make the error of values that are each right and wrong together; `key` is where, inside the
    block."""
    at = key.split(".") if isinstance(key, str) else key
    context = {"key": at, "expected": expected, "got": str(got), "hint": hint}
    return PydanticCustomError("impossible", "impossible", context)


class Train(Strict):
    """How parents are trained: on the training rows alone, each by one process.

    `from` names another parent, or a model as a parent is named: training starts at its weights,
        and `arch` and
    `data_config` are its own. `checkpoints: K` keeps K snapshots at equal distances, the last at
        the end; each is a
    parent named after its epoch, as `seed44@10`.
    """

    arch: str | None = None
    arch_args: dict[str, Any] = {}
    data_config: dict[str, Any] = {}  # timm's input_size, mean, std, interpolation, crop_pct
    source: Annotated[str | None, Field(alias="from")] = None
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
    weights: str
    arch_args: dict[str, Any] = {}
    data_config: dict[str, Any] = {}
    num_classes: Count


def _parent_form(value: Any) -> str:
    if isinstance(value, TrainedParent) or (isinstance(value, dict) and "train" in value):
        return "trained"
    return "file" if isinstance(value, dict | BaseModel) else "reference"


ParentRef = Annotated[
    Annotated[str, Tag("reference")]
    | Annotated[TrainedParent, Tag("trained")]
    | Annotated[WeightsParent, Tag("file")],
    Discriminator(_parent_form),
]


class Mutation(Strict):
    """Each weight gets N(0, std²) with probability `rate`; `scope: tensor` draws once per
    tensor."""

    rate: Share = 0.02
    std: Annotated[float, Field(ge=0, le=1e6)] = 0.05
    scope: Literal["element", "tensor"] = "element"
    relative: bool = True


class Founders(Strict):
    """The first population: mixtures of the parents and, with `include_parents`, the parents
    themselves."""

    include_parents: bool = True


class Merge(Strict):
    """The genetic algorithm's settings; the defaults are the paper's, where it gives them."""

    FEWEST: ClassVar[int] = 5  # individuals of which an evolution strategy learns a direction
    method: Literal[
        "mega", "cma-es", "auto", "random", "line-sweep", "uniform_soup", "greedy_soup", "choose"
    ] = "mega"
    variant: Literal["default", "reference"] = "default"
    population_size: Annotated[int, Field(ge=2, le=100_000)] = 20
    generations: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    num_mates: Annotated[int, Field(ge=2, le=1000)] = 4
    tournament_size: Annotated[int, Field(ge=1, le=100_000)] = 3
    mutation: Mutation = Mutation()
    founders: Founders = Founders()
    encoding: Literal["direct", "mixing"] = "direct"
    granularity: Literal["model", "stage", "layer", "tensor"] = "layer"  # of mixing
    # channels put beside those of one parent
    align: Literal["none", "weights", "activations"] = "none"
    align_to: Input | None = None  # that parent; the first one listed
    # cross-entropy decides between equals, or nothing
    fitness: Literal["accuracy", "accuracy+loss"] = "accuracy"
    # inputs of `choose` that win unless others are surely better
    prefer: Annotated[int, Field(ge=0, le=100_000)] = 0
    # how a mixture gets its running statistics
    batchnorm: Literal["recalibrate", "blend"] = "recalibrate"
    seed: Seed = 46

    @model_validator(mode="after")
    def _possible(self) -> Merge:
        if self.variant == "reference" and self.encoding != "direct":
            hint = "variant: default, or encoding: direct"
            raise impossible(
                "encoding", "direct: the published code has no other", self.encoding, hint
            )
        if self.variant == "reference" and self.method != "mega":
            raise impossible(
                "method", "mega: the published code has no other", self.method, "variant: default"
            )
        if self.method == "cma-es" and self.encoding != "mixing":
            raise impossible(
                "method", "encoding: mixing, for cma-es", self.encoding, "add encoding: mixing"
            )
        if self.method == "cma-es" and self.population_size < self.FEWEST:
            expected = f"at least {self.FEWEST}, for cma-es"
            raise impossible(
                "population_size", expected, self.population_size, "a larger population_size"
            )
        closed = [key for key, open_value in _OPEN.items() if getattr(self, key) != open_value]
        if self.method == "auto" and closed:
            hint = "leave it out, or take another method"
            raise impossible(
                closed[0], "nothing, since auto chooses it", getattr(self, closed[0]), hint
            )
        if self.align_to is not None and self.align == "none":
            hint = "add align: activations, or leave this out"
            raise impossible("align_to", "align: weights or activations", self.align, hint)
        if self.prefer and self.method != "choose":
            raise impossible("prefer", "method: choose", self.method, "leave it out")
        if self.tournament_size > self.population_size:
            limit = f"at most population_size, {self.population_size}"
            raise impossible(
                "tournament_size", limit, self.tournament_size, "a smaller tournament_size"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _published_code(cls, tree: Any) -> Any:
        """Let `variant: reference` fix what the published code fixes."""
        if (
            isinstance(tree, dict)
            and tree.get("variant") == "reference"
            and isinstance(tree.get("mutation", {}), dict)
        ):
            mutation = {**(tree.get("mutation") or {}), **REFERENCE}
            founders = tree.get("founders") or {}
            founders = (
                {**founders, "include_parents": False} if isinstance(founders, dict) else founders
            )
            return {**tree, "mutation": mutation, "founders": founders}
        return tree

    @property
    def sums_losses(self) -> bool:
        """Whether losses decide between individuals with as many right answers."""
        return self.fitness == "accuracy+loss"

    @property
    def recalibrates(self) -> bool:
        """Whether BatchNorm's statistics, if there are any, are computed anew."""
        return self.batchnorm == "recalibrate"


def without_later(settings: dict[str, Any], written: bool = False) -> dict[str, Any]:
    """Leave out keys that came later, where they say what held before: older recipes keep their
    digests.

    Args:
        settings: of a merge, or of the data.
        written: whether they are to be read again, so that what is the default no more must stand
            there.
    """
    kept = _CHANGED if written else ()
    return {
        key: value
        for key, value in settings.items()
        if key in kept or _LATER.get(key, _OTHER) != value
    }


class Node(Merge):
    """One merge of the tree: what it merges, parents or other nodes, and its settings.

    In a recipe it takes from the shared `merge` block what it does not say itself.
    """

    parents: Annotated[list[Input], Field(min_length=2)]

    @property
    def evaluations(self) -> int:
        """How many individuals are measured, at most."""
        size, count = self.population_size, len(self.parents)
        breeding = size + (self.generations - 1) * (size - 1)  # the elite is known
        # Whoever is best so far has a line in each step of a greedy soup, and is not measured
        # again.
        strategy = 1 + count + max(1, (breeding - 1 - count) // (size - 1)) * (size - 1)
        other = {
            "line-sweep": SWEEP,
            "uniform_soup": 1,
            "greedy_soup": 3 * count - 2,
            "choose": count,
            "cma-es": strategy,
        }
        return other.get(self.method, breeding)

    @property
    def founders_count(self) -> int:
        """How many of them are in the first generation."""
        count, sweep = len(self.parents), min(SWEEP, self.population_size)
        other = {"line-sweep": sweep, "uniform_soup": 1, "greedy_soup": count, "choose": count}
        other |= {"cma-es": 1 + count}
        return other.get(self.method, self.population_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The genetic algorithm's settings as plain values."""
        return without_later(self.model_dump(mode="json", exclude={"parents"}))


_AnyMerge = TypeVar("_AnyMerge", bound=Merge)


def apply_auto(merge: _AnyMerge, chosen: Mapping[str, str]) -> _AnyMerge:
    """Return a merge's settings with what was chosen in the place of `method: auto`."""
    return merge.model_copy(update=dict(chosen)) if merge.method == "auto" else merge


def inputs_of(nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Return what each node merges: the tree by names alone."""
    return {name: node.parents for name, node in nodes.items()}


class Push(Strict):
    """Where a merge is pushed once it is made; it decides nothing of the merge, so no run's own
    recipe holds it."""

    repo: Annotated[str, Field(min_length=1)]
    private: bool = False
    branch: str | None = None
    license: str | None = None


class Evaluation(Strict):
    """How individuals are measured. `batch_size: null` takes 32 to 128 on a CPU, as suits the
    model, and 512 on a GPU.

    Pictures that need more than `memory_share` of the device's memory are streamed to it.
    """

    batch_size: Count | None = None
    memory_share: Annotated[float, Field(gt=0, le=0.9)] = 0.5
