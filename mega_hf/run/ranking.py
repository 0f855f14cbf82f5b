"""Rank the parents by validation accuracy, for `order: accuracy`."""

from __future__ import annotations

import hashlib
import json

from mega_hf.models.merge_inputs import is_recalibrated
from mega_hf.recipe.schema import Recipe
from mega_hf.run.node import MergeContext
from mega_hf.run.parents import ParentSet
from mega_hf.weights.batchnorm import statistics_names


def rank(parents: ParentSet, recipe: Recipe, context: MergeContext) -> list[str]:
    """Return the parents from best to worst on validation; of equals the first listed is better.

    The parents are evaluated once, recalibrated if the merges are, and the journal keeps the
    ranking. Merges do not evaluate these parents again.
    """
    forward, validation, processes = context.forward, context.validation, context.run.processes
    recalibrates = is_recalibrated(recipe.merge, forward.model)
    calibration = context.calibration if recalibrates else None
    fitness_key = [*context.fitness_key, *(calibration.key if calibration else ())]
    names = list(parents.sources)
    contents = {name: source.sha256 for name, source in parents.sources.items()}
    key = hashlib.sha256(json.dumps([contents, fitness_key]).encode()).hexdigest()

    def evaluate(i: int) -> list[int]:
        """Count the correct predictions of one parent."""
        state = parents.sources[names[i]].map()
        forward.write(state.items())
        if calibration:
            statistics = statistics_names(forward.model)
            calibration.recalibrate(forward, {name: state[name].dtype for name in statistics})
        correct = forward.count_correct(validation)
        return [-1 if correct is None else correct]

    line = context.journal.order
    if line is None or line["key"] != key:
        counts = processes.share(len(names), 1, evaluate)[:, 0].tolist()
        ranking = [names[i] for i in sorted(range(len(names)), key=lambda i: -counts[i])]
        correct = dict(zip(names, counts, strict=True))
        line = {"kind": "order", "key": key, "ranking": ranking, "correct": correct}
        line |= {"n": validation.count}
        if processes.is_main:
            context.journal.append(line)
    for name, sha256 in contents.items():
        count = line["correct"][name]
        cache_key = context.counts.cache_key(sha256, calibration is not None)
        context.counts.keep(cache_key, count if count >= 0 else None)
    return line["ranking"]
