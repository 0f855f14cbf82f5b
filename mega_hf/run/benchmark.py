"""`bench`: how fast a recipe's search runs, against bare loops over the same model and a naive
search."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import COMPILED, Examples, ResidentModel
from mega_hf.recipe.schema import Recipe
from mega_hf.run.context import EvaluationOptions, ForwardPath, open_run
from mega_hf.run.pipeline import search
from mega_hf.run.reference_loops import LoopProcess, show
from mega_hf.runtime.files import remove
from mega_hf.runtime.processes import Processes

_TURNS = (5, 40)  # of the bare loops and the naive search: at least, and about the most
_SHORT = 20.0  # seconds of a search
_SHOWN = 1000  # pictures in a loop in a turn, at most: a second of a small network


@dataclass(frozen=True)
class Benchmark:
    """What was measured, on one machine in one run; `str` is a table.

    Attributes:
        recipe: its name.
        device: cpu, or the GPU's name.
        processes: that searched; the bare loops ran on one of them while the others waited.
        threads: of each.
        forward_path: of the search.
        evaluations: individuals.
        accuracy: of the best one, on validation.
        search_pictures_per_second: of the whole search less compiling, over all processes.
        eager_pictures_per_second: a bare loop over the uncompiled channels-last model, in a process
            of its own, with torch and the C library as they come.
        compiled_pictures_per_second: a bare loop over the compiled model in the search's process; 0
            where it can't be compiled.
        naive_seconds: what a search would take that shows every individual every row, by
            load_state_dict, a DataLoader over decoded pictures and the model as its library makes
            it; its forward passes alone, in a process of its own, timed over some of an
            individual's rows at a time, and scaled.
        search_seconds: compiling included.
        pictures_evaluated: shown in the search.
        pictures_full: that full evaluation would have shown.
        peak_memory_bytes: resident, of the main process, imports and bare loops included.
        stages: seconds by stage; evaluating and other are parts of search, evaluating as the sum
            over processes.
    """

    recipe: str
    device: str
    processes: int
    threads: int
    forward_path: str
    evaluations: int
    accuracy: float
    search_pictures_per_second: float
    eager_pictures_per_second: float
    compiled_pictures_per_second: float
    naive_seconds: float
    search_seconds: float
    pictures_evaluated: int
    pictures_full: int
    peak_memory_bytes: int
    stages: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Return the record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        speed, limit = self.search_pictures_per_second, self.compiled_pictures_per_second
        share = self.pictures_evaluated / max(1, self.pictures_full)
        lines = [
            (
                f"{self.recipe} on {self.processes} x {self.device}, {self.threads} threads each,"
                f" {self.forward_path}"
            ),
            (
                f"search       {self.search_seconds:,.1f} s for {self.evaluations:,} individuals,"
                f" {self.pictures_evaluated:,} pictures: {100 * share:.1f} % of"
                f" {self.pictures_full:,}"
            ),
            f"             {speed:,.0f} pictures/s, {speed / self.eager_pictures_per_second:.2f} of"
            " the eager loop's"
            + (f", {speed / limit:.2f} of the compiled loop's" if limit else ""),
            f"eager loop   {self.eager_pictures_per_second:,.0f} pictures/s",
            f"compiled     {limit:,.0f} pictures/s" if limit else "compiled     not here",
            (
                f"naive search {self.naive_seconds:,.1f} s (some rows timed now and then, and"
                f" scaled): {self.naive_seconds / self.search_seconds:.2f} times as long"
            ),
            (
                f"memory       {self.peak_memory_bytes / 2**20:,.0f} MiB at its peak, of the main"
                " process"
            ),
            "stages       "
            + ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in self.stages.items()),
        ]
        if self.search_seconds < _SHORT:
            lines.append(
                "a search of a few seconds says little: its ratios are chance to a good part"
            )
        return "\n".join(lines)


def bench(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    parents: str | Path | None = None,
    forward: ForwardPath = "auto",
    full_evaluation: bool = False,
    progress: bool = False,
) -> Benchmark:
    """Run a recipe's searches, without a report, and time them against bare loops in the same
    process.

    Args:
        recipe: whose merges are searched.
        out: the run folder, which is removed at the end, and when it is interrupted;
            `runs/NAME.bench` by default.
        parents: where trained parents are kept; as `merge`.
        forward: as `merge`.
        full_evaluation: as `merge`.
        progress: show bars on standard error.

    Raises:
        MegaError: as `merge`; RunError where something else lies at `out`.
    """
    folder = Path(out) if out is not None else Path("runs") / f"{recipe.name}.bench"
    if folder.exists():  # each process looks before any of them can go on
        raise RunError(
            "a search is timed from its beginning",
            where=str(folder),
            expected="nothing there",
            got="a file or folder",
            hint="another --out; or remove it, if a bench left it that was killed",
        )
    with (
        ExitStack() as after,
        open_run(
            recipe,
            folder,
            False,
            False,
            parents,
            progress,
            EvaluationOptions(forward, full_evaluation),
        ) as run,
        ExitStack() as held,
    ):
        run.is_kept = False
        if run.processes.is_main:
            after.callback(remove, folder)
        turns = _InterleavedTimer(
            run.processes, held, sum(node.evaluations for node in recipe.nodes().values())
        )
        merged, finding, _ = search(recipe, run, pause=turns.take)
        order = finding.journal.order
        # parents shown to say who is paired with whom
        ranked = len(order["correct"]) * order["n"] if order else 0
        evaluated = ranked + sum(one.examples for one in merged)
        full = ranked + sum(one.pictures_full for one in merged)
        stages = dict(run.seconds)
        stages["search"] = round(stages["search"] - turns.seconds, 3)
        stages |= {"evaluating": round(sum(one.seconds for one in merged), 3)}
        stages["other"] = round(stages["search"] - stages["evaluating"] / run.processes.count, 3)
        while turns.taken < _TURNS[0]:
            turns.repeat()
        evaluations, best = sum(one.evaluations for one in merged), merged[-1].record
        found = Benchmark(
            recipe.name,
            run.processes.device_kind,
            run.processes.count,
            torch.get_num_threads(),
            finding.forward_path,
            evaluations,
            best["correct"] / best["n"],
            evaluated / stages["search"],
            turns.speed("eager"),
            turns.speed("compiled"),
            full / turns.speed("naive"),
            stages["search"] + stages.get("compiling", 0.0),
            evaluated,
            full,
            peak_memory(),
            stages,
        )
        run.processes.wait()
    return found


class _InterleavedTimer:
    """Bare loops and a naive search, which take turns with the search: a machine's speed drifts
    within minutes.

    Args:
        processes: of which the main one runs them while the others wait.
        held: what ends their processes.
        evaluations: of the whole search.
    """

    def __init__(self, processes: Processes, held: ExitStack, evaluations: int) -> None:
        self.processes, self.seconds, self.taken = processes, 0.0, 0
        self._held, self._every, self._asked = held, math.ceil(evaluations / _TURNS[1]), 0
        # pictures shown, and the seconds it takes
        self._work: dict[str, tuple[int, Callable[[], float]]] = {}
        self._times: dict[str, list[float]] = {}

    def take(self, forward: ResidentModel, examples: Examples) -> None:
        """Show some batches in each loop, and some rows in the naive search, if it is their
        turn."""
        self._asked += 1
        if self._asked % self._every:
            return
        began = time.perf_counter()
        if self.processes.is_main and not self._work:
            for name in ("eager", "naive"):
                bare = self._held.enter_context(LoopProcess(name, forward, examples, _SHOWN))
                self._work[name] = bare.shown, bare.run
            self._work |= prepare_compiled(forward, examples)
        self.repeat()
        self.seconds += time.perf_counter() - began

    def repeat(self) -> None:
        """Take another turn."""
        for name, (_, work) in self._work.items():
            self._times.setdefault(name, []).append(work())
        self.taken += 1
        self.processes.wait()

    def speed(self, name: str) -> float:
        """Return pictures a second, over all turns; 0 where there is no such loop, NaN on the other
        processes."""
        if not self.processes.is_main:
            return math.nan
        return (
            self._work[name][0] * self.taken / sum(self._times[name]) if name in self._work else 0.0
        )


@torch.inference_mode()
def prepare_compiled(
    forward: ResidentModel, examples: Examples
) -> dict[str, tuple[int, Callable[[], float]]]:
    """Return a bare loop over the compiled model, without a choice of rows and without counting; if
    there can be."""
    device = forward.device
    if forward.path != COMPILED:
        forward = ResidentModel(copy.deepcopy(forward.model), device)
        try:
            forward.compile(examples)
        except Exception:  # of any of torch's layers
            return {}
    run = forward.run
    chosen = torch.arange(examples.count).split(examples.batch_size)[
        : max(1, _SHOWN // examples.batch_size)
    ]
    batches = [examples.select(rows)[0] for rows in chosen]
    batches = [images.to(device).to(memory_format=torch.channels_last) for images in batches]

    def loop() -> float:
        """Show all batches and return the seconds."""
        began = time.perf_counter()
        show(run, batches, device)
        return time.perf_counter() - began

    loop()  # to warm up
    return {"compiled": (len(batches) * examples.batch_size, loop)}


def peak_memory() -> int:
    """Return the most that this process has had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
