"""What a finished search is held against: baselines made as its merge was, and the second look, which names one."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mega_hf.evaluation.memory import Memory
from mega_hf.finalists import SECOND_LOOK
from mega_hf.hf.rows import Split
from mega_hf.inputs import Source
from mega_hf.nodes import Merged, Workshop, merge_node
from mega_hf.report import Finding
from mega_hf.settings import Node

logger = logging.getLogger(__name__)


def hold_against(merged: list[Merged], finding: Finding, workshop: Workshop) -> list[Merged]:
    """Make a run's baselines, and choose between them, the parents and the final merge; or take all from its folder.

    Args:
        merged: the merges, the final one last.
        finding: what the run found.
        workshop: what all merges share.

    Returns:
        the baselines and, if there is a second look, what it chose, last.

    Raises:
        MegaError: as `merge_node`.
    """
    nodes, splits = finding.recipe.all_nodes(finding.ranking), finding.splits
    known = {one.name: one for one in merged}
    sources = finding.parents.sources | {name: one.source for name, one in known.items()}
    for name in (name for name in nodes if name not in known):
        shop, target = workshop, workshop.folder.node(name)
        if name == SECOND_LOOK:
            assert splits.second_look is not None, "where a recipe asks for a second look there are rows for it"
            shop, target = _on_other_rows(workshop, finding, splits.second_look), workshop.folder.merged
        known[name] = _make(name, nodes[name], sources, target, shop)
        sources[name] = known[name].source
    return list(known.values())[len(merged) :]


def _make(name: str, node: Node, sources: dict[str, Source], target: Path, workshop: Workshop) -> Merged:
    done = merge_node(name, node, 1, {parent: sources[parent] for parent in node.parents}, target, workshop)
    if workshop.processes.is_main:
        percent = 100 * done.record["correct"] / done.record["n"]
        if name == SECOND_LOOK:
            chosen = node.parents[done.record["index"]]
            logger.info("second look: %s is named, %.2f %% of %d other rows", chosen, percent, done.record["n"])
        else:
            logger.info("baseline %s: %.2f %% on validation, %d evaluations", name, percent, done.evaluations)
    return done


def _on_other_rows(workshop: Workshop, finding: Finding, rows: Split) -> Workshop:
    """Return a workshop that measures on the rows of the second look, and knows of no fitness on the others."""
    _, *context = workshop.context
    context = [finding.splits.digests["second_look"], *context]
    return replace(workshop, validation=finding.load(rows), context=context, memory=Memory(len(rows)))
