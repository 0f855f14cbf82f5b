"""A finished run: its folder and its record, result.json."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mega_hf.errors import RunError
from mega_hf.recipe.baselines import names_merged
from mega_hf.report.record import VERSION, Generation, ModelRow, RunRecord
from mega_hf.report.table import Report
from mega_hf.runtime.untrusted import RESULT_BYTES, parse_json, printable, read_bytes

NAME = "result.json"


@dataclass(frozen=True, repr=False)
class MergeResult:
    """A finished merge: its run folder and its record.

    `print(result.report)` shows the table of all models, `result.save(folder)` copies the merged
    model.

    Attributes:
        record: the content of result.json.
        folder: the run folder.
    """

    record: RunRecord
    folder: Path

    @property
    def report(self) -> Report:
        """The accuracies of all models, with intervals and paired tests; `str` is a table."""
        return Report(self.record)

    @property
    def history(self) -> list[Generation]:
        """The generations of the final search: best and mean correct predictions."""
        return self.record.history

    @property
    def has_tree(self) -> bool:
        """Whether there are merges below the final one."""
        return self.report.has_tree

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each merge of the run, by name."""
        names = [node.name for node in self.record.merges]
        last = names_merged(names)
        return {
            name: self.merged if name == last else self.folder / "nodes" / name for name in names
        }

    @property
    def merged(self) -> Path:
        """The folder of the merged model, which timm or transformers loads."""
        return self.folder / "merged"

    @cached_property
    def weights(self) -> dict[str, Any]:
        """The tensors of the merged model by their names on disk."""
        from safetensors.torch import load_file

        return {
            name: tensor
            for file in sorted(self.merged.glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    def save(self, folder: str | Path) -> Path:
        """Copy the merged model and its card to a new folder, and return it.

        Raises:
            RunError: the folder exists and is not empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(
                "the folder is not empty",
                expected="a new folder",
                got=target,
                hint="choose a folder that does not exist",
            )
        shutil.copytree(self.merged, target, dirs_exist_ok=True)
        shutil.copyfile(self.folder / "README.md", target / "README.md")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> MergeResult:
        """Load the result of a run folder.

        Raises:
            RunError: the run is not finished, or its result.json is invalid.
        """
        path = Path(folder) / NAME
        try:
            tree = parse_json(read_bytes(path, RESULT_BYTES))
            version = tree["version"]
            record = RunRecord.from_dict(tree) if version == VERSION else None
        except FileNotFoundError:
            hint = "run the same mega-hf merge command to resume it"
            raise RunError(
                "no finished run", where=str(folder), expected=NAME, got="none", hint=hint
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "delete it, then run the same mega-hf merge command to write it again"
            raise RunError(
                "invalid result",
                where=str(path),
                expected="a result as mega-hf merge writes it",
                got=printable(repr(error))[:500],
                hint=hint,
            ) from None
        if record is None:
            raise RunError(
                "unknown version",
                where=str(path),
                expected=f"version {VERSION}",
                got=printable(version)[:100],
                hint="use the release of mega_hf that wrote it, or merge again",
            )
        return cls(record, Path(folder))

    def __repr__(self) -> str:
        return f"<MergeResult {self.folder}: {self.report.verdict}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def tree_rows(record: RunRecord) -> dict[str, ModelRow]:
    """Return the rows of the parents and merges of a tree by name, the final merge last."""
    root = record.final.name
    rows = {m.name: m for m in record.models if m.level is not None and m.role != "merged"}
    # With a held-out selection, the final merge has a row beside the merged model's.
    return rows if root in rows else rows | {root: record.merged}
