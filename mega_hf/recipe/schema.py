"""The recipe: everything that decides a merge, read from YAML and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from mega_hf.errors import RecipeError
from mega_hf.recipe import messages, paths, placeholders, tree
from mega_hf.recipe.baselines import (
    BASELINES,
    NAMES,
    Baseline,
)
from mega_hf.recipe.data import Data
from mega_hf.recipe.document import Document, Origin, dump, read
from mega_hf.recipe.fields import Count, Name, Strict, invalid
from mega_hf.recipe.merge import Merge, Node, apply_auto, inputs_of
from mega_hf.recipe.parents import ParentRef, Train, TrainedParent
from mega_hf.recipe.shared_blocks import apply_shared_blocks, strip_shared_blocks

Merges = Annotated[
    Annotated[Literal["joint", "pairwise"], Tag("shape")]
    | Annotated[dict[Name, Node], Field(min_length=1, max_length=500), Tag("nodes")],
    Discriminator(lambda value: "nodes" if isinstance(value, dict) else "shape"),
]

MAX_SNAPSHOTS = 10_000
RESERVED = ("merged", *NAMES)  # names that the report gives to models of its own


class Push(Strict):
    """Push the merged model to the Hub after the run.

    No run keeps this block in its own recipe, so that a rerun by somebody else does not push.
    """

    repo: str = Field(min_length=1, description="Model repository, `ORG/NAME`; created if missing.")
    private: bool = Field(default=False, description="Create a private repository.")
    create_pr: bool = Field(default=False, description="Open a pull request instead of committing.")
    branch: str | None = Field(default=None, description="Branch to push to. `null`: `main`.")
    message: str | None = Field(
        default=None, description="First line of the commit message. `null`: the parents' names."
    )
    license: str | None = Field(
        default=None,
        description="License identifier for the card. `null`: the license that all parents have.",
    )
    with_nodes: bool = Field(default=False, description="Push a tree's intermediate models too.")
    with_parents: bool = Field(
        default=True,
        description="Push the parents that were trained for the run. Nobody can verify the merge"
        " without them.",
    )
    overwrite_card: bool = Field(
        default=False, description="Replace the card in the repository, own text included."
    )


class Evaluation(Strict):
    """How individuals are evaluated."""

    batch_size: Count | None = Field(
        default=None,
        description="Images per forward pass. `null`: 512 on a GPU, and 32 to 128 on a CPU,"
        " depending on the model.",
    )
    memory_share: float = Field(
        default=0.5,
        gt=0,
        le=0.9,
        description="Share of the device's free memory for images; if they need more, they are"
        " copied to the device batch by batch.",
    )


class Recipe(Strict):
    """Everything that decides a merge or a tree of merges.

    In a loaded recipe paths are absolute and defaults are filled in.
    """

    name: Name = Field(
        description="Name of the run: letters, digits and `. _ + -`. The run folder is"
        " `runs/NAME` by default."
    )
    data: Data = Field(description="The data set.")
    parents: dict[Name, ParentRef] = Field(
        min_length=1, max_length=500, description="The models to merge, by name."
    )
    train: Train | None = Field(
        default=None, description="Settings shared by the parents that are trained in the run."
    )
    merge: Merge = Field(default=Merge(), description="Settings shared by all merges.")
    merges: Merges = Field(
        default="joint",
        description="Tree of merges. `joint`: one merge of all parents. `pairwise`: a balanced"
        " binary tree. Or a mapping of nodes, each with `parents` and settings of its own.",
    )
    order: Literal["listed", "accuracy"] = Field(
        default="listed",
        description="Order in which `pairwise` pairs the parents: as listed, or from best to worst"
        " on the validation rows.",
    )
    baselines: list[Baseline] = Field(
        default_factory=lambda: list(BASELINES),
        description="Merges to compare with, beside the parents and their average.",
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="Batch size and memory.")
    threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="CPU threads for training and for BatchNorm statistics. Results depend on it,"
        " since it decides the order in which floats are added.",
    )
    push: Push | None = Field(default=None, description="Push the model to the Hub after the run.")
    _document: Document = PrivateAttr(default_factory=Document)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Fill in each node from `merge`, and each trained parent from `train`."""
        return apply_shared_blocks(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_consistent(self) -> Recipe:
        self._check_training()
        self._check_distinct_parents()
        if isinstance(self.merges, str) and len(self.parents) < 2:
            raise invalid("parents", "two parents or more", len(self.parents), "add a parent")
        if isinstance(self.merges, dict):
            inputs = inputs_of(self.merges)
            tree.check_tree(inputs, self._needed_parents(), self.usable, invalid)
            self._check_last_snapshots(inputs)
        self._check_names()
        if self.order == "accuracy" and self.merges != "pairwise":
            hint = "add merges: pairwise, or leave order out"
            raise invalid("order", "listed, unless merges: pairwise", "accuracy", hint)
        self._check_nodes()
        return self

    def _check_training(self) -> None:
        """Raise if parents have too many snapshots, or nothing to start training from."""
        snapshots = sum(parent.train.checkpoints for parent in self.trained.values())
        if snapshots > MAX_SNAPSHOTS:  # their names are listed
            expected = f"at most {MAX_SNAPSHOTS:,} snapshots in all"
            raise invalid("parents", expected, f"{snapshots:,}", "use fewer checkpoints")
        for name, parent in self.trained.items():
            if parent.train.arch is None and parent.train.source is None:
                key = ["parents", name] if self.train else ["train"]
                expected = "a train block with arch, or from"
                raise invalid(key, expected, "none", "add train: {arch: ...}")
        sources = {
            name: parent.train.source
            for name, parent in self.trained.items()
            if isinstance(parent.train.source, str)
        }
        paths.check_sources(sources, self.usable, invalid)

    def _check_distinct_parents(self) -> None:
        """Raise if two names stand for the same model."""
        names: dict[str, str] = {}
        for name, parent in self.parents.items():
            settings = json.dumps(_decisive(parent), sort_keys=True)
            if settings in names:
                expected = f"another model than {names[settings]}"
                raise invalid(["parents", name], expected, "the same model", "list each model once")
            names[settings] = name

    def _needed_parents(self) -> list[str]:
        """Return the parents that nodes must use: all that no other parent is trained from."""
        sources = {
            tree.parent_name(parent.train.source)
            for parent in self.trained.values()
            if isinstance(parent.train.source, str)
        }
        return [name for name in self.parents if name not in sources]

    def _check_last_snapshots(self, inputs: tree.Nodes) -> None:
        """Raise if nodes use a parent and its last snapshot, which are the same model."""
        users = {name: node for node, names in inputs.items() for name in names}
        for name, parent in self.trained.items():
            last = f"{name}@{parent.train.epochs}"
            if name in users and last in users:
                key, got = ["merges", users[last], "parents"], f"{name} and {last}, its last epoch"
                raise invalid(key, "different models", got, "remove one of them")

    def _check_names(self) -> None:
        """Raise if a parent or a node has a name that the report or the tree needs."""
        for key, names in (("parents", self.parents), ("merges", self.merges)):
            for name in RESERVED if isinstance(names, dict) else ():
                if name in names:
                    expected = "a name that no model of the report has"
                    raise invalid([key, name], expected, name, "use another name")
        for name in self.parents if self.merges == "pairwise" else ():
            if "+" in name:
                expected = "a name without +, which joins the names of merged parents"
                raise invalid(["parents", name], expected, name, "rename this parent")

    def _check_nodes(self) -> None:
        """Raise if a node's settings do not fit its parents or the other nodes."""
        nodes = self.nodes()
        mixes = any(node.encoding == "mixing" for node in nodes.values())
        for name, node in nodes.items():
            key = ["merges", name] if isinstance(self.merges, dict) else ["merge"]
            count = len(node.parents)
            if node.method == "line-sweep" and count != 2:
                key.append("method" if key == ["merge"] else "parents")
                raise invalid(key, "two parents, for line-sweep", count, "use another method")
            if node.align_to is not None and node.align_to not in node.parents:
                expected = f"one of the parents of {name}: {', '.join(node.parents)}"
                hint = "use one of these names, or leave align_to out"
                raise invalid([*key, "align_to"], expected, node.align_to, hint)
            breeds = node.method in ("mega", "random")
            if breeds and node.founders.include_parents and node.population_size < count:
                expected = f"at least {count}, one for each parent"
                hint = "use a larger population_size, or founders: {include_parents: false}"
                raise invalid([*key, "population_size"], expected, node.population_size, hint)
            if node.granularity != "layer" and not mixes:
                expected, hint = "encoding: mixing", "add encoding: mixing, or leave this out"
                raise invalid([*key, "granularity"], expected, node.granularity, hint)

    @field_validator("baselines")
    @classmethod
    def _check_distinct(cls, names: list[Baseline]) -> list[Baseline]:
        if len(set(names)) < len(names):
            raise invalid([], "each name once", ", ".join(names), "remove the duplicate")
        return names

    @property
    def document(self) -> Document:
        """The document that the recipe was read from, which knows the line of each key."""
        return self._document

    @property
    def trained(self) -> dict[str, TrainedParent]:
        """The parents that are trained in the run."""
        return {
            name: parent
            for name, parent in self.parents.items()
            if isinstance(parent, TrainedParent)
        }

    @property
    def trains_all(self) -> bool:
        """Whether every parent is trained in the run, from a seed or from another parent."""
        sources = [parent.train.source for parent in self.trained.values()]
        return len(self.trained) == len(self.parents) and all(
            s is None or s in self.usable for s in sources
        )

    @property
    def usable(self) -> list[str]:
        """The names that a node may merge, beside nodes: parents, and snapshots `NAME@EPOCH`."""
        snapshots = [
            f"{name}@{epoch}" for name, p in self.trained.items() for epoch in p.train.snapshots
        ]
        return [*self.parents, *snapshots]

    def made_by(self, name: str) -> list[str]:
        """Return the names of the models that a training saves: the parent and its snapshots."""
        return [name, *(f"{name}@{epoch}" for epoch in self.trained[name].train.snapshots)]

    def nodes(self, ranking: Sequence[str] | None = None) -> dict[str, Node]:
        """Return the merges by name, each after those that it needs, the final one last.

        Args:
            ranking: the parents from best to worst, for `order: accuracy`; None if not known.
        """
        if isinstance(self.merges, dict):
            return {name: self.merges[name] for name in tree.arrange(inputs_of(self.merges))}
        names = list(ranking or self.parents)
        inputs = (
            tree.pair_up(names) if self.merges == "pairwise" else {tree.node_name(names): names}
        )
        settings = self.merge.model_dump()
        return {name: Node(parents=parents, **settings) for name, parents in inputs.items()}

    @property
    def is_auto(self) -> bool:
        """Whether a merge has `method: auto`."""
        return any(node.method == "auto" for node in self.nodes().values())

    def with_auto(self, chosen: Mapping[str, str]) -> Recipe:
        """Return the recipe with the chosen settings in place of `method: auto`."""
        merge, merges = apply_auto(self.merge, chosen), self.merges
        if isinstance(merges, dict):
            merges = {name: apply_auto(node, chosen) for name, node in merges.items()}
        return self.model_copy(update={"merge": merge, "merges": merges})

    def with_seed(self, seed: int) -> Recipe:
        """Return the recipe with another `merge.seed`.

        A node with a seed of its own moves by the same distance.
        """
        move = seed - self.merge.seed
        merges = self.merges
        if isinstance(merges, dict):
            merges = {
                name: node.model_copy(update={"seed": node.seed + move})
                for name, node in merges.items()
            }
        merge = self.merge.model_copy(update={"seed": seed})
        return self.model_copy(update={"merge": merge, "merges": merges})

    def leaves(self, only: str | None, ranking: Sequence[str] | None = None) -> list[str]:
        """Return the parents and snapshots to open for all nodes, or for the one named `only`.

        Args:
            only: the name of a node; None for all nodes.
            ranking: as for `nodes`.

        Raises:
            RecipeError: there is no such node, or `order: accuracy` has not ranked the parents yet.
        """
        inputs = inputs_of(self.nodes(ranking))
        if only is not None and self.order == "accuracy" and ranking is None:
            raise RecipeError(
                "order: accuracy has not ranked the parents yet, so the nodes have no names",
                expected="--only after a run of the whole tree in the same folder",
                got=f"--only {only}",
                hint=(
                    "run the whole tree first, without --only; or list the parents from best to"
                    " worst and use order: listed"
                ),
            )
        nodes = list(inputs) if only is None else tree.needed_for(inputs, only)
        if self.order == "accuracy":
            return list(self.parents)  # all are ranked
        if self.is_auto:
            nodes = list(inputs)  # all parents decide which method is chosen
        return tree.leaves_of(inputs, nodes[-1])

    def substitutions(self) -> dict[str, tuple[str, Any]]:
        """Return what was given for each placeholder: key, as `parents.a` -> (path, digest).

        The digest is the placeholder's, and need not be that of the file at the path.
        """
        digests = self._document.substituted
        given = {
            ".".join(key): block[key[-1]] for key, block in placeholders.references(self.to_dict())
        }
        return {key: (path, digests[key]) for key, path in given.items() if key in digests}

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
        """Read and check a recipe.

        Args:
            path: the YAML file.
            overrides: assignments `a.b=c`, as for `--set`.

        Raises:
            RecipeError: the file can't be read or has errors; the message has the file and line
                of each.
        """
        return cls.from_document(read(Path(path)), overrides)

    @classmethod
    def from_dict(
        cls, tree: dict[str, Any], label: str = "recipe", base: Path | None = None
    ) -> Recipe:
        """Check a recipe given as a dict.

        Args:
            tree: plain values, as in YAML.
            label: what errors call the recipe.
            base: the folder at which relative paths start; the working folder by default.

        Raises:
            RecipeError: the recipe has errors.
        """
        origin = Origin(label, base or Path.cwd())
        try:
            copied = json.loads(json.dumps(tree))
        except (ValueError, TypeError, RecursionError) as error:
            raise RecipeError(
                "not a recipe",
                where=label,
                expected="plain values",
                got=error,
                hint="pass a dict of texts, numbers, lists and dicts",
            ) from None
        return cls.from_document(Document(copied, {(): origin}))

    @classmethod
    def from_document(
        cls,
        document: Document,
        overrides: tuple[str, ...] | list[str] = (),
        check_files: bool = True,
    ) -> Recipe:
        """Apply overrides, make paths absolute and check all that needs no download."""
        for assignment in overrides:
            document.override(assignment)
        paths.resolve_paths(document)
        try:
            recipe = cls.model_validate(document.tree)
        except ValidationError as error:
            raise RecipeError.join(messages.all_errors(error.errors(), document)) from None
        recipe._document = document
        if check_files:
            try:
                paths.check_files(recipe.to_dict(), document)
            except OSError as error:  # the name is too long, or a folder may not be entered
                raise RecipeError(
                    "a path can't be read",
                    expected="readable paths",
                    got=error,
                    hint="check the path and its permissions",
                ) from None
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, with all defaults and without `push`."""
        return strip_shared_blocks(self.model_dump(mode="json", by_alias=True, exclude={"push"}))

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `from_yaml` reads back."""
        return dump(self.to_dict())

    @property
    def sha256(self) -> str:
        """The digest of all settings, in hexadecimal."""
        # The parents' order decides who is paired with whom.
        tree = [self.to_dict(), list(self.parents)]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _decisive(parent: ParentRef) -> Any:
    """Return the settings that decide a parent's weights, as plain values."""
    if isinstance(parent, TrainedParent):
        return parent.train.model_dump(mode="json", exclude={"checkpoints"})
    return parent if isinstance(parent, str) else parent.model_dump(mode="json")
