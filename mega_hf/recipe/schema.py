"""WHAT to do: a YAML file becomes a frozen Recipe, or a RecipeError that names file, line and
remedy."""

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
    SECOND_LOOK,
    Baseline,
    baseline_nodes,
    second_look,
)
from mega_hf.recipe.data import Data
from mega_hf.recipe.document import Document, Origin, dump, read
from mega_hf.recipe.fields import Count, Name, Strict, impossible
from mega_hf.recipe.merge import Merge, Node, apply_auto, inputs_of
from mega_hf.recipe.parents import ParentRef, Train, TrainedParent
from mega_hf.recipe.shared_blocks import apply_shared_blocks, strip_shared_blocks

Merges = Annotated[
    Annotated[Literal["joint", "pairwise"], Tag("shape")]
    | Annotated[dict[Name, Node], Field(min_length=1, max_length=500), Tag("nodes")],
    Discriminator(lambda value: "nodes" if isinstance(value, dict) else "shape"),
]

MOST_SNAPSHOTS = 10_000
RESERVED = ("merged", *NAMES)  # what a report calls models of its own


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


class Recipe(Strict):
    """Everything that decides a merge, or a tree of merges. Paths are absolute, every default is
    filled in."""

    name: Name
    data: Data
    parents: Annotated[dict[Name, ParentRef], Field(min_length=1, max_length=500)]
    train: Train | None = None  # shared by the parents that are trained
    merge: Merge = Merge()  # shared by all nodes
    merges: Merges = "joint"
    order: Literal["listed", "accuracy"] = "listed"  # who is paired with whom
    # What the merge is held against, beside the parents and their average.
    baselines: Annotated[list[Baseline], Field(default_factory=lambda: list(BASELINES))]
    evaluation: Evaluation = Evaluation()
    threads: Annotated[int, Field(ge=1, le=1024)] = 1  # for training: sums over rows depend on it
    _document: Document = PrivateAttr(default_factory=Document)
    # left out of digests and of what a run keeps: a rerun by others must not push
    push: Push | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Give each node what it does not say from `merge`, and each trained parent from
        `train`."""
        return apply_shared_blocks(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        snapshots = sum(parent.train.checkpoints for parent in self.trained.values())
        if snapshots > MOST_SNAPSHOTS:  # each has a name, and they are listed
            raise impossible(
                "parents", f"at most {MOST_SNAPSHOTS:,} snapshots in all", f"{snapshots:,}", "fewer"
            )
        for name, parent in self.trained.items():
            if parent.train.arch is None and parent.train.source is None:
                where = ["parents", name] if self.train else ["train"]
                hint = "add train: {arch: ...}"
                raise impossible(where, "a train block with arch, or from", "none", hint)
        messages.check_distinct_references(
            {name: _decisive(parent) for name, parent in self.parents.items()}, impossible
        )
        paths.check_sources(
            {
                name: parent.train.source
                for name, parent in self.trained.items()
                if isinstance(parent.train.source, str)
            },
            self.usable,
            impossible,
        )
        if isinstance(self.merges, str) and len(self.parents) < 2:
            raise impossible("parents", "two parents or more", len(self.parents), "add one")
        if isinstance(self.merges, dict):
            inputs = inputs_of(self.merges)
            tree.check_tree(inputs, self._needed_parents(), self.usable, impossible)
            self._refuse_ends(inputs)
        for key, names in (("parents", self.parents), ("merges", self.merges)):
            for name in RESERVED if isinstance(names, dict) else ():
                if name in names:
                    raise impossible(
                        [key, name], "a name of its own", f"{name}, which reports use", "rename it"
                    )
        for name in self.parents if self.merges == "pairwise" else ():
            if "+" in name:
                hint = "rename this parent"
                raise impossible(
                    ["parents", name],
                    "names without +, which joins them in merges' names",
                    name,
                    hint,
                )
        if self.order == "accuracy" and self.merges != "pairwise":
            raise impossible(
                "order", "listed, or merges: pairwise", "accuracy", "accuracy says who is paired"
            )
        self._refuse_unfit_settings()
        messages.check_granularity(self.nodes(), isinstance(self.merges, dict), impossible)
        return self

    def _needed_parents(self) -> list[str]:
        """Return the parents that nodes must use: all but those that others are only trained
        from."""
        started = {
            tree.parent_name(parent.train.source)
            for parent in self.trained.values()
            if isinstance(parent.train.source, str)
        }
        return [name for name in self.parents if name not in started]

    def _refuse_ends(self, inputs: tree.Nodes) -> None:
        """Refuse a parent beside the snapshot after its last epoch, which is the same model."""
        used = {one: node for node, parents in inputs.items() for one in parents}
        for name, parent in self.trained.items():
            end = f"{name}@{parent.train.epochs}"
            if name in used and end in used:
                where, expected = ["merges", used[end], "parents"], "models that differ"
                raise impossible(
                    where, expected, f"{name} and {end}, its last epoch", "take one of them"
                )

    def _refuse_unfit_settings(self) -> None:
        for name, node in self.nodes().items():
            at = ["merges", name] if isinstance(self.merges, dict) else ["merge"]
            count = len(node.parents)
            if node.method == "line-sweep" and count != 2:
                at += ["method" if at == ["merge"] else "parents"]
                raise impossible(at, "two parents, for a line-sweep", count, "another method")
            if node.align_to is not None and node.align_to not in node.parents:
                one = f"one of what {name} merges: {', '.join(node.parents)}"
                raise impossible(
                    [*at, "align_to"], one, node.align_to, "name one of these, or leave it out"
                )
            breeds = node.method in ("mega", "random")
            if breeds and node.founders.include_parents and node.population_size < count:
                expected, at = f"at least {count}, one for each parent", [*at, "population_size"]
                raise impossible(at, expected, node.population_size, "or include_parents: false")

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, names: list[Baseline]) -> list[Baseline]:
        if len(set(names)) < len(names):
            raise impossible([], "each name once", ", ".join(names), "list it once")
        return names

    @property
    def document(self) -> Document:
        """What this was read from, which knows where each entry stands."""
        return self._document

    @property
    def trained(self) -> dict[str, TrainedParent]:
        """The parents that are trained here."""
        return {
            name: parent
            for name, parent in self.parents.items()
            if isinstance(parent, TrainedParent)
        }

    @property
    def trains_all(self) -> bool:
        """Whether every parent is trained here, from a seed or from another one that is."""
        sources = [parent.train.source for parent in self.trained.values()]
        return len(self.trained) == len(self.parents) and all(
            s is None or s in self.usable for s in sources
        )

    @property
    def usable(self) -> list[str]:
        """What a node may name beside other nodes: parents, and their snapshots as `NAME@EPOCH`."""
        snapshots = [
            f"{name}@{epoch}" for name, p in self.trained.items() for epoch in p.train.snapshots
        ]
        return [*self.parents, *snapshots]

    def made_by(self, name: str) -> list[str]:
        """Return what the training of a parent leaves: the parent and its snapshots."""
        return [name, *(f"{name}@{epoch}" for epoch in self.trained[name].train.snapshots)]

    def nodes(self, ranking: Sequence[str] | None = None) -> dict[str, Node]:
        """Return the merges by name, each after those that it needs, the root last.

        Args:
            ranking: the parents from best to worst, which `order: accuracy` pairs in that order.
        """
        if isinstance(self.merges, dict):
            return {name: self.merges[name] for name in tree.arrange(inputs_of(self.merges))}
        names = list(ranking or self.parents)
        inputs = (
            tree.pair_up(names) if self.merges == "pairwise" else {tree.node_name(names): names}
        )
        settings = self.merge.model_dump()
        return {name: Node(parents=parents, **settings) for name, parents in inputs.items()}

    def all_nodes(self, ranking: Sequence[str] | None = None) -> dict[str, Node]:
        """Return `nodes`, what the final one is held against, and the second look between them, if
        there is one."""
        nodes, has_second_look = self.nodes(ranking), self.data.second_look > 0
        baselines = baseline_nodes(nodes, self.baselines, has_second_look)
        last = {SECOND_LOOK: second_look(nodes, baselines)} if has_second_look else {}
        return nodes | baselines | last

    @property
    def is_auto(self) -> bool:
        """Whether a merge leaves it open how it is made: `method: auto`."""
        return any(node.method == "auto" for node in self.nodes().values())

    def with_auto(self, chosen: Mapping[str, str]) -> Recipe:
        """Return the recipe with settings in the place of `method: auto`."""
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
        """Read a recipe; `overrides` are `a.b=c` texts, as of `--set`.

        Raises:
            RecipeError: with file and line of each finding.
        """
        return cls.from_document(read(Path(path)), overrides)

    @classmethod
    def from_dict(
        cls, tree: dict[str, Any], label: str = "recipe", base: Path | None = None
    ) -> Recipe:
        """Check a recipe given as a dict; relative paths are relative to `base` (the working
        folder)."""
        origin = Origin(label, base or Path.cwd())
        try:
            copied = json.loads(json.dumps(tree))
        except (ValueError, TypeError, RecursionError) as error:
            hint = "a dict of texts, numbers, lists and dicts"
            raise RecipeError(
                "not a recipe", where=label, expected="plain values", got=error, hint=hint
            ) from None
        return cls.from_document(Document(copied, {(): origin}))

    @classmethod
    def from_document(
        cls,
        document: Document,
        overrides: tuple[str, ...] | list[str] = (),
        check_files: bool = True,
    ) -> Recipe:
        """Apply overrides, make paths absolute, check everything that needs no download."""
        for assignment in overrides:
            document.override(assignment)
        paths.resolve_paths(document)
        try:
            recipe = cls.model_validate(document.tree)
        except ValidationError as error:
            raise RecipeError.join(messages.all_findings(error.errors(), document)) from None
        recipe._document = document
        if check_files:
            try:
                paths.check_files(recipe.to_dict(), document)
            except OSError as error:  # a name longer than any, a folder that may not be entered
                what, hint = "a path can't be used", "check the paths"
                raise RecipeError(what, expected="readable paths", got=error, hint=hint) from None
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, every default included, but without `push`."""
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
    """Return what decides a parent's weights, as plain values."""
    if isinstance(parent, TrainedParent):
        return parent.train.model_dump(mode="json", exclude={"checkpoints"})
    return parent if isinstance(parent, str) else parent.model_dump(mode="json")
