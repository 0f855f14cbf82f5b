"""`verify --evaluate K`: with the data, what a run claims to have measured is measured again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mega_hf.errors import RecipeError, VerificationError
from mega_hf.evaluation.forward import Forward, Pictures, place_pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.hf.data import Splits, load_splits
from mega_hf.hf.models import OpenModel, open_model
from mega_hf.hf.rows import Split, fill_pictures
from mega_hf.recipe_checks import absolute
from mega_hf.sources import refuse_unlike
from mega_hf.testimony import Testimony
from mega_hf.weights.space import StateDict

TOLERANCE = 1 / 1000  # of the rows: how far another machine's rounding may move a count; one row always


@dataclass(frozen=True)
class Chosen:
    """An individual whose line in the journal is measured again."""

    node: str
    generation: int
    index: int
    correct: int | None
    rows: int
    state: StateDict


@dataclass(frozen=True)
class Count:
    """Right answers, as claimed and as found here."""

    what: str
    claimed: int | None
    found: int | None
    rows: int

    @property
    def difference(self) -> int:
        """In rows; all of them where one of the two was not finite and the other was."""
        if self.claimed is None or self.found is None:
            return 0 if self.claimed == self.found else self.rows
        return abs(self.claimed - self.found)


@dataclass(frozen=True)
class Remeasured:
    """What was measured again, all of it within rounding of what was claimed; `str` is some lines."""

    model: list[Count]  # the merged model's, on validation and test
    lines: list[Count]
    device_kind: str
    claimed_on: str

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        said = [
            f"{one.what:<23} {_percent(one)} measured again, {_percent(one, claimed=True)} claimed"
            for one in self.model
        ]
        largest = max((line.difference for line in self.lines), default=0)
        same = sum(line.difference == 0 for line in self.lines)
        said.append(
            f"lines of the journal    {same} of {len(self.lines)} measured again alike, largest difference {largest} "
            f"of {self.lines[0].rows if self.lines else 0:,} rows"
        )
        if self.device_kind != self.claimed_on:
            said.append(
                f"the run was made on {self.claimed_on}; this is {self.device_kind}, which may round otherwise"
            )
        return "\n".join(said)


def remeasure(told: Testimony, first: OpenModel, model: Path, chosen: list[Chosen], data: str | None) -> Remeasured:
    """Measure the merged model and some individuals again.

    Args:
        told: what the run says.
        first: the first parent's model, into which weights are written.
        model: the merged model's folder.
        chosen: the individuals.
        data: where the data set lies, if it was local where the run was made.

    Raises:
        VerificationError: the rows are others, or a count is further off than rounding may move it.
        MegaError: the data set can't be read.
    """
    splits = _load(told, data)
    mapping, _ = refuse_unlike({"the first parent": first}, splits)
    processes, header = Processes(), told.journal.header or {}

    def place(split: Split) -> Pictures:
        """Decode and transform a split as the run did."""
        share = told.recipe.evaluation.memory_share
        pictures = place_pictures(len(split), first.picture_shape, header["batch_size"], processes.device, share)
        fill_pictures(split, mapping, first.transform, pictures.images, pictures.labels)
        return pictures

    validation, forward = place(splits.validation), Forward(first.model, processes.device)
    lines = []
    for one in chosen:
        forward.write(one.state)
        what = f"individual {one.index} of generation {one.generation} of {one.node}"
        lines.append(Count(what, one.correct, forward.count(validation), one.rows))
        _refuse(lines[-1], "journal.jsonl")
    plain, claimed = (
        Forward(open_model(model, "merged").model, processes.device, plain=True),
        told.result.report.merged,
    )
    counted = []
    for split, pictures in (("test", place(splits.test)), ("validation", validation)):
        right = int(plain.answers(pictures)[0].sum())
        counted.append(Count(f"accuracy on {split}", claimed[split]["correct"], right, claimed[split]["n"]))
        _refuse(counted[-1], "result.json")
    return Remeasured(counted, lines, processes.device_kind, str(header.get("device_kind")))


def place_of(given: str) -> str:
    """Return the absolute path of what is there, or a reference as it is given."""
    path = Path(given).expanduser()
    return str(path.resolve()) if path.exists() else absolute(given)


def _load(told: Testimony, data: str | None) -> Splits:
    wanted = told.recipe.data
    if data is not None:
        wanted = wanted.model_copy(update={"path": place_of(data)})
    if wanted.path.startswith("absent:"):
        raise RecipeError(
            "the data set was local where the run was made", expected="a place for it", got="none",
            remedy="add --data PATH",
        )  # fmt: skip
    splits = load_splits(wanted, told.recipe.trains_all)
    for split in ("validation", "test"):
        claimed = told.result.record["data"][split]["sha256"]
        if splits.digests[split] != claimed:
            raise VerificationError(
                f"these are not the {split} rows of the run", where="data", expected=claimed,
                got=splits.digests[split], remedy="the data set as it was: --data PATH, or its pinned revision",
            )  # fmt: skip
    return splits


def _refuse(count: Count, where: str) -> None:
    if count.difference > max(1, TOLERANCE * count.rows):
        raise VerificationError(
            f"{count.what} is not what was claimed", where=where, expected=f"{count.claimed} right of {count.rows}",
            got=count.found, remedy="it was changed, or this device rounds otherwise than the one that made the run",
        )  # fmt: skip


def _percent(count: Count, claimed: bool = False) -> str:
    correct = (count.claimed if claimed else count.found) or 0
    return f"{100 * correct / count.rows:.2f} % ({correct:,} of {count.rows:,})"
