"""`bench`: how fast a recipe's search runs, against bare loops over the same model and a naive search."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import COMPILED, EAGER, Forward, Pictures, logits
from mega_hf.evaluation.processes import is_gpu
from mega_hf.files import remove
from mega_hf.pipeline import search
from mega_hf.progress import Progress
from mega_hf.recipe import Recipe
from mega_hf.run import ForwardPath, How, start

_PASSES = 5  # of each bare loop, one after the other in turn; their median counts
_BATCHES = 16  # in a pass: a second or two of a small network
_NAIVE_BATCH = 128


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
        eager_pictures_per_second: a bare loop over the uncompiled channels-last model.
        compiled_pictures_per_second: a bare loop over the compiled model; None where it can't be compiled.
        naive_seconds: what a search would take that shows every individual every row, by load_state_dict, a
            DataLoader over decoded pictures and the model as its library makes it; its forward passes alone,
            timed over one generation's and scaled.
        search_seconds: compiling included.
        pictures_evaluated: shown in the search.
        pictures_full: that full evaluation would have shown.
        peak_memory_bytes: resident, of the main process, imports and bare loops included.
        stages: seconds by stage; evaluating and other are parts of search, evaluating as the sum over processes.
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
    compiled_pictures_per_second: float | None
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
            f"{self.recipe} on {self.processes} x {self.device}, {self.threads} threads each, {self.forward_path}",
            f"search       {self.search_seconds:,.1f} s for {self.evaluations:,} individuals, "
            f"{self.pictures_evaluated:,} pictures: {100 * share:.1f} % of {self.pictures_full:,}",
            f"             {speed:,.0f} pictures/s, {speed / self.eager_pictures_per_second:.2f} of the eager loop's"
            + (f", {speed / limit:.2f} of the compiled loop's" if limit else ""),
            f"eager loop   {self.eager_pictures_per_second:,.0f} pictures/s",
            f"compiled     {limit:,.0f} pictures/s" if limit else "compiled     not here",
            f"naive search {self.naive_seconds:,.1f} s (one generation timed and scaled): "
            f"{self.naive_seconds / self.search_seconds:.2f} times as long",
            f"memory       {self.peak_memory_bytes / 2**20:,.0f} MiB at its peak, of the main process",
            "stages       " + ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in self.stages.items()),
        ]
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
    """Run a recipe's searches, without a report, and time them against bare loops in the same process.

    Args:
        recipe: whose merges are searched.
        out: the run folder, which is removed at the end; `runs/NAME.bench` by default.
        parents: where trained parents are kept; as `merge`.
        forward: as `merge`.
        full_evaluation: as `merge`.
        progress: show bars on standard error.

    Raises:
        MegaError: as `merge`; RunError where something else lies at `out`.
    """
    folder = Path(out) if out is not None else Path("runs") / f"{recipe.name}.bench"
    with start(recipe, folder, False, False, parents, progress, How(forward, full_evaluation)) as run:
        if run.processes.share(1, 1, lambda _: [int(folder.exists())])[0, 0]:
            raise RunError(
                "a search is timed from its beginning", where=str(folder), expected="nothing there",
                got="a file or folder", remedy="another --out; or remove it, if a bench left it that was interrupted",
            )  # fmt: skip
        merged, finding = search(recipe, run)
        order = finding.journal.order
        ranked = len(order["correct"]) * order["n"] if order else 0  # parents shown to say who is paired with whom
        evaluated = ranked + sum(one.pictures for one in merged)
        full = ranked + sum(one.pictures_full for one in merged)
        stages = dict(run.seconds)
        stages |= {"evaluating": round(sum(one.seconds for one in merged), 3)}
        stages["other"] = round(stages["search"] - stages["evaluating"] / run.processes.count, 3)
        run.processes.wait()
        evaluations, best = sum(one.evaluations for one in merged), merged[-1].record
        model, device = finding.parents.model.model, run.processes.device
        eager, compiled = measure_loops(model, finding.validation, device, Progress(progress))
        naive = measure_naive(model, finding.validation, merged[-1].node.population_size, device) * full
        seconds = stages["search"] + stages.get("compiling", 0.0)
        found = Benchmark(
            recipe.name, run.processes.device_kind, run.processes.count, torch.get_num_threads(), finding.forward_path,
            evaluations, best["correct"] / best["n"], evaluated / stages["search"], eager, compiled, naive, seconds,
            evaluated, full, peak_memory(), stages,
        )  # fmt: skip
        run.processes.wait()
    if run.processes.is_main:
        remove(folder)
    return found


@torch.inference_mode()
def measure_loops(
    model: nn.Module, pictures: Pictures, device: torch.device, progress: Progress
) -> tuple[float, float | None]:
    """Return pictures a second of bare loops, without a choice of rows and without counting: eager and compiled."""
    eager, fast = Forward(copy.deepcopy(model), device, EAGER), Forward(copy.deepcopy(model), device, COMPILED)
    try:
        fast.compile(pictures)
    except Exception:  # the search has said why
        fast = eager
    batches = [pictures.select(rows)[0] for rows in torch.arange(pictures.count).split(pictures.batch_size)[:_BATCHES]]
    batches = [images.to(device).to(memory_format=torch.channels_last) for images in batches]
    loops = [_loop(one.run, batches, device) for one in (eager, fast)]
    seconds: list[list[float]] = [[], []]
    with progress.bar("bare loops", 2 * _PASSES, "passes") as advance:
        for _ in range(_PASSES):
            for loop, times in zip(loops, seconds, strict=True):
                times.append(_time(loop))
                advance(1, "")
    shown = len(batches) * pictures.batch_size
    speeds = [shown / statistics.median(times) for times in seconds]
    return speeds[0], None if fast is eager else speeds[1]


def measure_naive(model: nn.Module, pictures: Pictures, individuals: int, device: torch.device) -> float:
    """Return seconds a picture of a search that is written without much thought; see `Benchmark.naive_seconds`."""
    model = copy.deepcopy(model).to(device).to(memory_format=torch.contiguous_format).eval()
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    loader = DataLoader(TensorDataset(pictures.images, pictures.labels), batch_size=_NAIVE_BATCH)

    def measure_generation() -> None:
        """Show every individual every row."""
        for _ in range(individuals):
            model.load_state_dict(state)
            right = 0
            with torch.no_grad():
                for images, labels in loader:
                    right += (logits(model, images.to(device)).argmax(dim=1) == labels.to(device)).sum().item()

    return _time(measure_generation) / (individuals * pictures.count)


def peak_memory() -> int:
    """Return the most that this process has had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _loop(
    run: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor], device: torch.device
) -> Callable[[], None]:
    def loop() -> None:
        for images in batches:
            run(images)
        if is_gpu(device):
            torch.cuda.synchronize(device)

    loop()  # to warm up
    return loop


def _time(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
