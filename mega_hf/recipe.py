"""WHAT to do: a YAML file becomes a frozen Recipe, or a RecipeError that names file, line and remedy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mega_hf import recipe_checks, strict_yaml
from mega_hf.errors import RecipeError

# Fixed by `variant: reference`, the code published beside the paper, whatever else the recipe says.
REFERENCE = {"std": 0.1, "scope": "tensor", "relative": False}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Strict(BaseModel):
    """A frozen record that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, tree: Any) -> Any:
        unknown = [key for key in tree if key not in cls.model_fields] if isinstance(tree, dict) else []
        if unknown:
            raise PydanticCustomError("unknown", "unknown key", {"keys": unknown, "known": list(cls.model_fields)})
        return tree


def _impossible(key: str, expected: str, got: object, remedy: str = "") -> PydanticCustomError:
    context = {"key": key, "expected": expected, "got": str(got), "remedy": remedy}
    return PydanticCustomError("impossible", "impossible", context)


class Sample(_Strict):
    """`size` rows of a split, drawn by `seed`; with `stratify` each class has its share."""

    split: str = "train"
    size: Count
    seed: Seed = 46
    stratify: bool = True


class Data(_Strict):
    """A data set with a picture column and a label column; splits are `datasets` slices or samples."""

    path: Annotated[str, Field(min_length=1)]
    name: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    train: str = "train"
    validation: (
        Annotated[
            Annotated[str, Tag("slice")] | Annotated[Sample, Tag("sample")],
            Discriminator(lambda v: "sample" if isinstance(v, dict | Sample) else "slice"),
        ]
        | None
    ) = None
    test: str | None = None


class TrainSeed(_Strict):
    """The seed of one parent: it decides the initial weights and the order of the rows."""

    seed: Seed


class TrainedParent(_Strict):
    """A parent that is trained here, by the recipe's `train` block."""

    train: TrainSeed


class WeightsParent(_Strict):
    """A parent given as a timm architecture and a safetensors file of its weights.

    `data_config` is its preprocessing (timm's input_size, mean, std, interpolation, crop_pct); the architecture's own
    where it says nothing.
    """

    arch: str
    weights: str
    arch_args: dict[str, Any] = {}
    data_config: dict[str, Any] = {}
    num_classes: Count


def _parent_form(value: Any) -> str:
    if isinstance(value, dict | BaseModel):
        return (
            "trained" if isinstance(value, TrainedParent) or (isinstance(value, dict) and "train" in value) else "file"
        )
    return "reference"


ParentRef = Annotated[
    Annotated[str, Tag("reference")]
    | Annotated[TrainedParent, Tag("trained")]
    | Annotated[WeightsParent, Tag("file")],
    Discriminator(_parent_form),
]


class Train(_Strict):
    """How parents are trained from their seeds: on the training rows alone, by one process."""

    arch: str
    arch_args: dict[str, Any] = {}
    data_config: dict[str, Any] = {}  # timm's input_size, mean, std, interpolation, crop_pct
    epochs: Count = 50
    batch_size: Count = 256
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.01
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0


class Mutation(_Strict):
    """Each weight gets N(0, std²) with probability `rate`; `scope: tensor` draws once per tensor."""

    rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    std: Annotated[float, Field(ge=0, le=1e6)] = 0.05
    scope: Literal["element", "tensor"] = "element"
    relative: bool = True


class Founders(_Strict):
    """The first population: mixtures of the parents and, with `include_parents`, the parents themselves."""

    include_parents: bool = True


class Merge(_Strict):
    """The genetic algorithm's settings; the defaults are the paper's, where it gives them."""

    method: Literal["mega"] = "mega"
    variant: Literal["default", "reference"] = "default"
    population_size: Annotated[int, Field(ge=2, le=100_000)] = 20
    generations: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    num_mates: Annotated[int, Field(ge=2, le=1000)] = 4
    tournament_size: Annotated[int, Field(ge=1, le=100_000)] = 3
    mutation: Mutation = Mutation()
    founders: Founders = Founders()
    seed: Seed = 46

    @model_validator(mode="after")
    def _possible(self) -> Merge:
        if self.tournament_size > self.population_size:
            limit = f"at most population_size, {self.population_size}"
            raise _impossible("tournament_size", limit, self.tournament_size, "a smaller tournament_size")
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
            founders = {**founders, "include_parents": False} if isinstance(founders, dict) else founders
            return {**tree, "mutation": mutation, "founders": founders}
        return tree

    @property
    def evaluations(self) -> int:
        """How many individuals are measured: N + (G − 1)(N − 1), since the elite keeps its fitness."""
        return self.population_size + (self.generations - 1) * (self.population_size - 1)


class Evaluation(_Strict):
    """How individuals are measured. `batch_size: null` takes 128 on a CPU and 512 on a GPU.

    Pictures that need more than `memory_share` of the device's memory are streamed to it.
    """

    batch_size: Count | None = None
    memory_share: Annotated[float, Field(gt=0, le=0.9)] = 0.5


class Recipe(_Strict):
    """Everything that decides a merge. Paths are absolute, every default is filled in."""

    name: Name
    data: Data
    parents: Annotated[dict[Name, ParentRef], Field(min_length=2)]
    train: Train | None = None
    merge: Merge = Merge()
    evaluation: Evaluation = Evaluation()
    threads: Annotated[int, Field(ge=1, le=1024)] = 1  # for training: sums over rows depend on it

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.merge.founders.include_parents and self.merge.population_size < len(self.parents):
            expected = f"at least {len(self.parents)}, one for each parent"
            raise _impossible(
                "merge.population_size", expected, self.merge.population_size, "or include_parents: false"
            )
        if self.train is None and any(isinstance(p, TrainedParent) for p in self.parents.values()):
            raise _impossible(
                "train", "a train block, since parents are trained from seeds", "none", "add train: {arch: ...}"
            )
        recipe_checks.refuse_twins({name: _plain(parent) for name, parent in self.parents.items()}, _impossible)
        return self

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Read a recipe; `overrides` are `a.b=c` texts, as of `--set`.

        Raises:
            RecipeError: with file and line of each finding.
        """
        return cls.from_document(strict_yaml.read(Path(path)), overrides)

    @classmethod
    def from_dict(cls, tree: dict[str, Any], label: str = "recipe", base: Path | None = None) -> Recipe:
        """Check a recipe given as a dict; relative paths are relative to `base` (the working folder)."""
        origin = strict_yaml.Origin(label, base or Path.cwd())
        return cls.from_document(strict_yaml.Document(json.loads(json.dumps(tree)), {(): origin}))

    @classmethod
    def from_document(cls, document: strict_yaml.Document, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Apply overrides, make paths absolute, check everything that needs no download."""
        for assignment in overrides:
            document.override(assignment)
        recipe_checks.resolve_paths(document)
        try:
            recipe = cls.model_validate(document.tree)
        except ValidationError as error:
            findings = [f for e in error.errors() for f in recipe_checks.findings(dict(e), document)]
            raise RecipeError.join(findings) from None
        recipe_checks.check_files(recipe.to_dict(), document)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, every default included."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `from_yaml` reads back."""
        return strict_yaml.dump(self.to_dict())

    @property
    def sha256(self) -> str:
        """The digest of all settings, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _plain(parent: Any) -> Any:
    return parent.model_dump(mode="json") if isinstance(parent, BaseModel) else parent
