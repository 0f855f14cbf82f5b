"""Publish a run among the cards: `python -m tests.tools.publish RUN NAME [PARENTS]`; then
`tests.tools.results_table`.

Everything but the model: record, recipe, journal and the parents that were trained for it (PARENTS,
if they lie elsewhere than in the run), by which `mega-hf verify model_cards/NAME` makes it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mega_hf.hub.bundle import check_unchanged, parent_files, portable_record, trained_parents
from mega_hf.report.card import write_card
from mega_hf.report.result import NAME, MergeResult
from mega_hf.runtime.files import file_digest, write_whole

ROOT = Path(__file__).parents[2]


def publish(run: Path, name: str, parents: Path | None = None) -> Path:
    """Write the folder of a published run and return it."""
    result, folder = MergeResult.load(run), ROOT / "model_cards" / name
    check_unchanged(result)
    record, written = portable_record(result)
    found, lost = trained_parents(result, parents)
    assert not lost, f"where are {lost}?"
    merged = {parent.name: found[parent.name] for parent in record.parents if parent.name in found}
    trained = {
        name: path.read_bytes()
        for name, path in parent_files(merged).items()
        if isinstance(path, Path)
    }
    files = {name: file_digest(content) for name, content in trained.items()}
    record = record.model_copy(update={"files": files})
    for file, content in {**written, **trained, NAME: record.encode()}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / file, content)
    write_card(MergeResult.load(folder), overwrite=True)
    return folder


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:])))
