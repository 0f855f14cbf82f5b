"""Time plain PyTorch loops in a fresh process, for comparison with a search."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, TensorDataset

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.runtime.processes import is_gpu
from mega_hf.tasks.image_classification import logits

MOST_IMAGES = 1000  # in one pass of a loop: about a second of a small network
REPEATS = 5
_MOST_BYTES = 2**28  # of images that are sent to the process
_NAIVE_BATCH = 128


class Timing(NamedTuple):
    """The images that a loop forwarded, and its seconds."""

    images: int
    seconds: float


def time_loops(forward: ResidentModel, examples: Examples) -> dict[str, Timing]:
    """Time the eager loop and the naive evaluation in a fresh process, one after the other.

    The process has the environment of the user, with the defaults of torch and the C library.

    Args:
        forward: the model and its device.
        examples: the first of these are forwarded.

    Raises:
        RunError: the process fails, e.g. for lack of memory.
    """
    with tempfile.TemporaryDirectory(prefix="mega_hf-loops-") as folder:
        path = Path(folder) / "work.pt"
        _write_work(path, forward, examples, MOST_IMAGES)
        finished = subprocess.run(
            [sys.executable, "-m", "mega_hf.run.reference_loops", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # signals of the terminal are for this process, which ends it
            check=False,
        )
    if finished.returncode:
        raise RunError(
            "the process of the reference loops failed",
            expected="exit code 0",
            got=f"exit code {finished.returncode}",
            hint="check that there is memory for a second process with the model and its images",
        )
    return {name: Timing(*timing) for name, timing in json.loads(finished.stdout).items()}


def _write_work(path: Path, forward: ResidentModel, examples: Examples, most: int) -> None:
    rows = max(1, min(most, examples.count, _MOST_BYTES // (4 * examples.images[0].numel())))
    work = {  # images are cloned: a slice would be saved together with all images
        "model": copy.deepcopy(forward.model).cpu(),
        "images": examples.images[:rows].cpu().clone(),
        "labels": examples.labels[:rows].cpu().clone(),
        "batch_size": min(rows, examples.batch_size),
        "device": str(forward.device),
        "threads": torch.get_num_threads(),
    }
    torch.save(work, path)


@torch.inference_mode()
def forward_all(
    run: Callable[[torch.Tensor], object], batches: list[torch.Tensor], device: torch.device
) -> None:
    """Forward batches that are on the device, and wait until the device is done."""
    for images in batches:
        run(images)
    if is_gpu(device):
        torch.cuda.synchronize(device)


def repeat(images: int, loop: Callable[[], None]) -> Timing:
    """Run a loop once to warm up, then time it `REPEATS` times."""
    loop()
    began = time.perf_counter()
    for _ in range(REPEATS):
        loop()
    return Timing(REPEATS * images, time.perf_counter() - began)


def _time_eager(work: dict[str, Any]) -> Timing:
    """Time a loop over whole batches with the channels-last model, without counting."""
    device, size = work["device"], work["batch_size"]
    model = work["model"].to(device).to(memory_format=torch.channels_last).eval()
    whole = work["images"].split(size)[: len(work["images"]) // size]
    batches = [images.to(device).contiguous(memory_format=torch.channels_last) for images in whole]
    return repeat(
        sum(map(len, batches)), partial(forward_all, partial(logits, model), batches, device)
    )


def _time_naive(work: dict[str, Any]) -> Timing:
    """Time the evaluation of one individual as it is usually written: load, iterate, count."""
    device = work["device"]
    model = work["model"].to(device).to(memory_format=torch.contiguous_format).eval()
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    images = work["images"].contiguous()
    loader = DataLoader(TensorDataset(images, work["labels"]), batch_size=_NAIVE_BATCH)

    @torch.no_grad()
    def loop() -> None:
        model.load_state_dict(state)
        correct = 0
        for batch, labels in loader:
            predicted = logits(model, batch.to(device)).argmax(dim=1)
            correct += (predicted == labels.to(device)).sum().item()

    return repeat(len(images), loop)


def main() -> None:
    """Time the loops of a work file, and print the timings as JSON."""
    with redirect_stdout(sys.stderr):
        work = torch.load(sys.argv[1], weights_only=False)  # written by `time_loops`
        work["device"] = torch.device(work["device"])
        torch.set_num_threads(work["threads"])
        timings = {"eager": _time_eager(work), "naive": _time_naive(work)}
    print(json.dumps(timings))


if __name__ == "__main__":
    main()
