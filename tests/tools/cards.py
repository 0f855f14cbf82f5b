"""Write the published cards and plots again from their results: `python -m tests.tools.cards`."""

from __future__ import annotations

from pathlib import Path

from mega_hf.report.card import write_card
from mega_hf.report.result import MergeResult

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Write the card of every folder of model_cards that holds a result."""
    for path in sorted((ROOT / "model_cards").glob("*/result.json")):
        write_card(MergeResult.load(path.parent), overwrite=True)


if __name__ == "__main__":
    main()
