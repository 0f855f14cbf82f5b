"""Loops as a user's own code has them, each in its own process, with torch and the C library as
they come."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, TensorDataset

from mega_hf.errors import RunError
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.runtime.environment import theirs
from mega_hf.runtime.processes import is_gpu
from mega_hf.tasks.image_classification import logits

_SENT = 2**28  # bytes of pictures, at most, that the process is given
_NAIVE_BATCH = 128


class LoopProcess:
    """A process that shows pictures to a model in a loop when it is asked to, and sleeps meanwhile.

    What one loop frees changes what the C library does for the next; hence one process for each.

    Args:
        name: of the loop, eager or naive.
        forward: whose model and device it takes.
        examples: of which it gets the first ones.
        most: pictures in the loop.
    """

    def __init__(self, name: str, forward: ResidentModel, examples: Examples, most: int) -> None:
        with tempfile.TemporaryDirectory(prefix="mega_hf-bare-") as folder:
            path = Path(folder) / "work.pt"
            _write(path, forward, examples, most)
            command = [sys.executable, "-m", "mega_hf.run.reference_loops", name, str(path)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                text=True,
                env=theirs(),
                start_new_session=True,  # the terminal's signals are for us; it ends with us
            )
            try:
                self.shown = int(self._answer())  # pictures
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()

    def run(self) -> float:
        """Run the loop and return its seconds, as it timed them."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            print(file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RunError(
                "the process of a bare loop ended",
                expected="an answer",
                got=f"exit code {self._process.wait()}",
                hint="see that there is memory for a second process with a model and its pictures",
            )
        return float(line)


def _write(path: Path, forward: ResidentModel, examples: Examples, most: int) -> None:
    rows = max(1, min(most, examples.count, _SENT // (4 * examples.images[0].numel())))
    work = {  # pictures as copies: a slice would be saved with the whole that it is a view of
        "model": copy.deepcopy(forward.model).cpu(),
        "images": examples.images[:rows].cpu().clone(),
        "labels": examples.labels[:rows].cpu().clone(),
        "batch_size": min(rows, examples.batch_size),
        "device": str(forward.device),
        "threads": torch.get_num_threads(),
    }
    torch.save(work, path)


@torch.inference_mode()
def show(
    run: Callable[[torch.Tensor], object], batches: list[torch.Tensor], device: torch.device
) -> None:
    """Show batches on the device to a model, one after the other, and wait until it is done;
    nothing is counted."""
    for images in batches:
        run(images)
    if is_gpu(device):
        torch.cuda.synchronize(device)


def _prepare_eager(work: dict[str, Any]) -> tuple[int, Callable[[], None]]:
    """Return how many pictures a loop over the channels-last model shows, and the loop."""
    device, size = work["device"], work["batch_size"]
    model = work["model"].to(device).to(memory_format=torch.channels_last).eval()
    whole = work["images"].split(size)[: len(work["images"]) // size]
    batches = [images.to(device).contiguous(memory_format=torch.channels_last) for images in whole]
    return sum(len(images) for images in batches), partial(
        show, partial(logits, model), batches, device
    )


def _prepare_naive(work: dict[str, Any]) -> tuple[int, Callable[[], None]]:
    """Return how a search that is written without much thought measures one individual."""
    device = work["device"]
    model = work["model"].to(device).to(memory_format=torch.contiguous_format).eval()
    state = {name: entry.clone() for name, entry in model.state_dict().items()}
    images = work["images"].contiguous()
    loader = DataLoader(TensorDataset(images, work["labels"]), batch_size=_NAIVE_BATCH)

    def loop() -> None:
        model.load_state_dict(state)
        right = 0
        with torch.no_grad():
            for batch, labels in loader:
                right += (
                    (logits(model, batch.to(device)).argmax(dim=1) == labels.to(device))
                    .sum()
                    .item()
                )

    return len(images), loop


def main() -> None:
    """Prepare a loop, say how many pictures it shows, and run it for each line that comes in, until
    none comes."""
    answers, (_, name, path) = sys.stdout, sys.argv
    with redirect_stdout(sys.stderr):
        work = torch.load(path, weights_only=False)  # ours, written a moment ago
        work["device"] = torch.device(work["device"])
        torch.set_num_threads(work["threads"])
        shown, loop = {"eager": _prepare_eager, "naive": _prepare_naive}[name](work)
        loop()  # to warm up
        print(shown, file=answers, flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            loop()
            print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    main()
