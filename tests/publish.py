"""Publish a finished run among the model cards: `python -m tests.publish RUN NAME`; then `... -m tests.results_table`.

Everything but the model: record, recipe and journal, by which `mega-hf verify model_cards/NAME` makes it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mega_hf.files import write_whole
from mega_hf.portable import portable_record, refuse_changed
from mega_hf.report import write_card
from mega_hf.result import NAME, MergeResult, encode_record

ROOT = Path(__file__).parent.parent


def publish(run: Path, name: str) -> Path:
    """Write the folder of a published run and return it."""
    result, folder = MergeResult.load(run), ROOT / "model_cards" / name
    refuse_changed(result)
    record, written = portable_record(result)
    folder.mkdir(exist_ok=True)
    for file, content in {**written, NAME: encode_record(record)}.items():
        write_whole(folder / file, content)
    write_card(MergeResult.load(folder), overwrite=True)
    return folder


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
