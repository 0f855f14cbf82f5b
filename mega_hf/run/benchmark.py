"""`bench`: compare the speed of a recipe's search with plain loops and with a naive search."""

from __future__ import annotations

import copy
import math
import resource
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import COMPILED, Examples, ResidentModel
from mega_hf.recipe.schema import Recipe
from mega_hf.run.context import ForwardPath, RunOptions, open_run
from mega_hf.run.folder import RunFolder
from mega_hf.run.node import MergeContext
from mega_hf.run.reference_loops import MOST_IMAGES, Timing, forward_all, repeat, time_loops
from mega_hf.run.search import begin_search, make_merges
from mega_hf.runtime.files import remove

_SHORT = 20.0  # seconds of a search whose ratios say little


@dataclass(frozen=True)
class Benchmark:
    """The result of a benchmark, measured on one machine in one run; `str` gives a table.

    Attributes:
        recipe: the name of the recipe.
        device: cpu, or the name of the GPU.
        processes: number of processes that searched. The reference loops run in one process while
            the others wait.
        threads: threads of each process.
        forward_path: the forward path of the search.
        evaluations: individuals that were evaluated.
        accuracy: validation accuracy of the best individual.
        search_pictures_per_second: images per second of the whole search without compilation, over
            all processes.
        eager_pictures_per_second: images per second of a loop over the uncompiled channels-last
            model, in a process of its own with the defaults of torch and the C library.
        compiled_pictures_per_second: images per second of a loop over the compiled model in the
            process of the search; 0 where the model can't be compiled.
        naive_seconds: the time of a search that evaluates every individual on every row with
            load_state_dict, a DataLoader over decoded images and the model as its library builds
            it; extrapolated from the forward passes of some rows in a process of its own.
        search_seconds: the time of the search, compilation included.
        pictures_evaluated: images that the search forwarded.
        pictures_full: images that full evaluation would have forwarded.
        peak_memory_bytes: peak resident memory of the main process, with imports and loops.
        stages: seconds by stage. `evaluating` and `other` are parts of `search`; `evaluating` is
            the sum over processes.
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
        naive = f"{self.naive_seconds / self.search_seconds:.2f} times the search"
        lines = [
            f"{self.recipe} on {self.processes} x {self.device}, {self.threads} threads each,"
            f" {self.forward_path}",
            f"search       {self.search_seconds:,.1f} s for {self.evaluations:,} individuals,"
            f" {self.pictures_evaluated:,} images: {100 * share:.1f} % of {self.pictures_full:,}",
            f"             {speed:,.0f} images/s, {speed / self.eager_pictures_per_second:.2f} of"
            " the eager loop" + (f", {speed / limit:.2f} of the compiled loop" if limit else ""),
            f"eager loop   {self.eager_pictures_per_second:,.0f} images/s",
            f"compiled     {limit:,.0f} images/s" if limit else "compiled     not available",
            f"naive search {self.naive_seconds:,.1f} s (extrapolated from some rows): {naive}",
            f"memory       {self.peak_memory_bytes / 2**20:,.0f} MiB at the main process's peak",
            "stages       "
            + ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in self.stages.items()),
        ]
        if self.search_seconds < _SHORT:
            lines.append("the search took only seconds: these ratios are mostly noise")
        return "\n".join(lines)


def bench(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    parents: str | Path | None = None,
    forward: ForwardPath = "auto",
    full_evaluation: bool = False,
    progress: bool = True,
) -> Benchmark:
    """Time the searches of a recipe, without a report, and plain loops over the same model.

    The loops run before and after the search, since the speed of a machine drifts.

    Args:
        recipe: the recipe whose merges are searched.
        out: the run folder, which is removed at the end and after an interruption;
            `runs/NAME.bench` by default.
        parents: the folder of trained parents, as for `merge`.
        forward: as for `merge`.
        full_evaluation: as for `merge`.
        progress: show progress bars on stderr.

    Raises:
        MegaError: as `merge`; RunError if `out` exists.
    """
    path = Path(out) if out is not None else Path("runs") / f"{recipe.name}.bench"
    if path.exists():  # all processes look before one of them creates it
        raise RunError(
            "a benchmark needs a new folder",
            where=str(path),
            expected="no file or folder",
            got="a file or folder",
            hint="use another --out, or remove the folder if a killed benchmark left it",
        )
    options = RunOptions(
        parents=parents, forward=forward, full_evaluation=full_evaluation, progress=progress
    )
    with ExitStack() as after, open_run(recipe, RunFolder(path), options) as run:
        run.is_kept = False
        if run.processes.is_main:
            after.callback(remove, path)
        outcome, context = begin_search(recipe, run)
        loops = _ReferenceSpeeds(context)
        loops.measure()
        merged = make_merges(outcome, context)
        loops.measure()
        order = outcome.journal.order
        ranked = len(order["correct"]) * order["n"] if order else 0  # images to rank the parents
        evaluated = ranked + sum(node.examples for node in merged)
        full = ranked + sum(node.examples_full for node in merged)
        stages = dict(run.seconds)
        stages |= {"evaluating": round(sum(node.seconds for node in merged), 3)}
        stages["other"] = round(stages["search"] - stages["evaluating"] / run.processes.count, 3)
        return Benchmark(
            recipe.name,
            run.processes.device_kind,
            run.processes.count,
            torch.get_num_threads(),
            outcome.forward_path,
            sum(node.evaluations for node in merged),
            merged[-1].percent / 100,
            evaluated / stages["search"],
            loops.speed("eager"),
            loops.speed("compiled"),
            full / loops.speed("naive"),
            stages["search"] + stages.get("compiling", 0.0),
            evaluated,
            full,
            peak_memory(),
            stages,
        )


class _ReferenceSpeeds:
    """Times the reference loops on the main process, while the other processes wait."""

    def __init__(self, context: MergeContext) -> None:
        self.processes, self.forward = context.run.processes, context.forward
        self.examples = context.validation
        self._timings: dict[str, list[Timing]] = {}
        self._compiled = _compiled(self.forward, self.examples) if self.processes.is_main else None

    def measure(self) -> None:
        """Time every loop once more."""
        if self.processes.is_main:
            timings = time_loops(self.forward, self.examples)
            if self._compiled is not None:
                timings["compiled"] = _time_compiled(self._compiled, self.examples)
            for name, timing in timings.items():
                self._timings.setdefault(name, []).append(timing)
        self.processes.wait()

    def speed(self, name: str) -> float:
        """Return images per second; 0 for a loop that can't run, NaN on other processes."""
        if not self.processes.is_main:
            return math.nan
        timings = self._timings.get(name, [])
        seconds = sum(timing.seconds for timing in timings)
        return sum(timing.images for timing in timings) / seconds if timings else 0.0


def _compiled(forward: ResidentModel, examples: Examples) -> ResidentModel | None:
    """Return the compiled model, a compiled copy of it, or None if it can't be compiled."""
    if forward.path == COMPILED:
        return forward
    forward = ResidentModel(copy.deepcopy(forward.model), forward.device)
    try:
        forward.compile(examples)
    except Exception:  # from any layer of torch
        return None
    return forward


@torch.inference_mode()
def _time_compiled(forward: ResidentModel, examples: Examples) -> Timing:
    """Time a loop over the compiled model, without a choice of rows and without counting."""
    size, device = examples.batch_size, forward.device
    rows = torch.arange(examples.count).split(size)[: max(1, MOST_IMAGES // size)]
    batches = [
        examples.select(chosen)[0].to(device).to(memory_format=torch.channels_last)
        for chosen in rows
    ]
    return repeat(len(batches) * size, partial(forward_all, forward.run, batches, device))


def peak_memory() -> int:
    """Return the peak resident memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
