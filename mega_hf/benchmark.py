"""`bench`: how fast a recipe's search runs, against bare loops over the same model and a naive search."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import COMPILED, EAGER, Forward, Pictures, logits
from mega_hf.evaluation.processes import Processes, is_gpu
from mega_hf.files import remove
from mega_hf.pipeline import search
from mega_hf.recipe import Recipe
from mega_hf.run import ForwardPath, How, start

_TURNS = 5  # at least, of the bare loops and the naive search
_SHOWN = 2000  # pictures in a bare loop in a turn: a second or two of a small network
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
        compiled_pictures_per_second: a bare loop over the compiled model; 0 where it can't be compiled.
        naive_seconds: what a search would take that shows every individual every row, by load_state_dict, a
            DataLoader over decoded pictures and the model as its library makes it; its forward passes alone,
            timed over one individual before each generation, and scaled.
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
            f"{self.recipe} on {self.processes} x {self.device}, {self.threads} threads each, {self.forward_path}",
            f"search       {self.search_seconds:,.1f} s for {self.evaluations:,} individuals, "
            f"{self.pictures_evaluated:,} pictures: {100 * share:.1f} % of {self.pictures_full:,}",
            f"             {speed:,.0f} pictures/s, {speed / self.eager_pictures_per_second:.2f} of the eager loop's"
            + (f", {speed / limit:.2f} of the compiled loop's" if limit else ""),
            f"eager loop   {self.eager_pictures_per_second:,.0f} pictures/s",
            f"compiled     {limit:,.0f} pictures/s" if limit else "compiled     not here",
            f"naive search {self.naive_seconds:,.1f} s (an individual a generation timed, and scaled): "
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
        turns = _Turns(run.processes)
        merged, finding = search(recipe, run, pause=turns.take)
        order = finding.journal.order
        ranked = len(order["correct"]) * order["n"] if order else 0  # parents shown to say who is paired with whom
        evaluated = ranked + sum(one.pictures for one in merged)
        full = ranked + sum(one.pictures_full for one in merged)
        stages = dict(run.seconds)
        stages["search"] = round(stages["search"] - turns.seconds, 3)
        stages |= {"evaluating": round(sum(one.seconds for one in merged), 3)}
        stages["other"] = round(stages["search"] - stages["evaluating"] / run.processes.count, 3)
        while turns.taken < _TURNS:
            turns.repeat()
        evaluations, best = sum(one.evaluations for one in merged), merged[-1].record
        found = Benchmark(
            recipe.name, run.processes.device_kind, run.processes.count, torch.get_num_threads(), finding.forward_path,
            evaluations, best["correct"] / best["n"], evaluated / stages["search"], turns.speed("eager"),
            turns.speed("compiled"), full / turns.speed("naive"), stages["search"] + stages.get("compiling", 0.0),
            evaluated, full, peak_memory(), stages,
        )  # fmt: skip
        run.processes.wait()
    if run.processes.is_main:
        remove(folder)
    return found


class _Turns:
    """Bare loops and a naive search, which take turns with the search: a machine's speed drifts within minutes.

    Args:
        processes: of which the main one runs them while the others wait.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes, self.seconds, self.taken = processes, 0.0, 0
        self._work: dict[str, tuple[int, Callable[[], None]]] = {}  # pictures shown, and showing them
        self._times: dict[str, list[float]] = {}

    def take(self, forward: Forward, pictures: Pictures) -> None:
        """Show some batches in each loop, and one individual's rows in the naive search."""
        began = time.perf_counter()
        if self.processes.is_main and not self._work:
            self._work = prepare_loops(forward, pictures) | {"naive": prepare_naive(forward, pictures)}
        self.repeat()
        self.seconds += time.perf_counter() - began

    def repeat(self) -> None:
        """Take another turn."""
        for name, (_, work) in self._work.items():
            self._times.setdefault(name, []).append(_time(work))
        self.taken += 1
        self.processes.wait()

    def speed(self, name: str) -> float:
        """Return pictures a second, over all turns; 0 where there is no such loop, NaN on the other processes."""
        if not self.processes.is_main:
            return math.nan
        return self._work[name][0] * self.taken / sum(self._times[name]) if name in self._work else 0.0


@torch.inference_mode()
def prepare_loops(forward: Forward, pictures: Pictures) -> dict[str, tuple[int, Callable[[], None]]]:
    """Return bare loops, without a choice of rows and without counting: eager, and compiled where that can be done."""
    device = forward.device
    eager = Forward(copy.deepcopy(forward.model), device, EAGER)
    runs = {"eager": eager.run}
    if forward.path == COMPILED:
        runs["compiled"] = forward.run
    else:
        fast = Forward(copy.deepcopy(forward.model), device, COMPILED)
        with suppress(Exception):  # of any of torch's layers: then there is no such loop
            fast.compile(pictures)
            runs["compiled"] = fast.run
    chosen = torch.arange(pictures.count).split(pictures.batch_size)[: max(1, _SHOWN // pictures.batch_size)]
    batches = [pictures.select(rows)[0] for rows in chosen]
    batches = [images.to(device).to(memory_format=torch.channels_last) for images in batches]
    shown = len(batches) * pictures.batch_size
    return {name: (shown, _loop(run, batches, device)) for name, run in runs.items()}


def prepare_naive(forward: Forward, pictures: Pictures) -> tuple[int, Callable[[], None]]:
    """Return how a search that is written without much thought measures one individual."""
    device = forward.device
    model = copy.deepcopy(forward.model).to(memory_format=torch.contiguous_format).eval()
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    loader = DataLoader(TensorDataset(pictures.images, pictures.labels), batch_size=_NAIVE_BATCH)

    def measure() -> None:
        """Show the individual every row."""
        model.load_state_dict(state)
        right = 0
        with torch.no_grad():
            for images, labels in loader:
                right += (logits(model, images.to(device)).argmax(dim=1) == labels.to(device)).sum().item()

    return pictures.count, measure


def peak_memory() -> int:
    """Return the most that this process has had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _loop(
    run: Callable[[torch.Tensor], torch.Tensor], batches: list[torch.Tensor], device: torch.device
) -> Callable[[], None]:
    @torch.inference_mode()
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
