"""A population over Accelerate's processes; and how the processes are started."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import reduce
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mega_hf.errors import LaunchError, MegaError, Terminated
from mega_hf.runtime.watchdog import end_with_launcher, end_with_others, spans_machines

_LAUNCHER = "MEGA_HF_LAUNCHER"  # the process that started this one and its like
CPU_COMMAND = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m mega_hf ..."
)


def is_gpu(device: torch.device) -> bool:
    """Say whether a device is a CUDA (or ROCm) GPU."""
    return device.type == "cuda"


class Processes:
    """The processes of this run: one, or as many as a launcher started.

    Only integers cross between processes, so that no sum depends on how many there are.
    """

    def __init__(self) -> None:
        check_launch(os.environ)
        if "WORLD_SIZE" in os.environ:
            end_with_launcher(
                int(os.environ.get(_LAUNCHER, os.getppid()))
            )  # before it waits for the others, which may never come
        # Without a GPU, Accelerator(cpu=False) under a launcher gives N processes that all think
        # they are main.
        cpu = not torch.cuda.is_available() or _wants_cpu()
        # others wait while a parent is trained
        timeout = InitProcessGroupKwargs(timeout=timedelta(days=30))
        self._accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[timeout])
        started = int(os.environ.get("WORLD_SIZE", "1"))
        self._leave = lambda: None
        if spans_machines(os.environ, self.count):
            self._leave = end_with_others(self.rank, self.count)
        if started != self.count:
            got = f"{self.count} for each of {started} processes"
            raise LaunchError(
                "the processes don't see each other", expected=started, got=got, hint=CPU_COMMAND
            )
        if self.count > 1:  # only at exit, so that several runs can follow each other
            atexit.register(self._accelerator.end_training)

    @property
    def count(self) -> int:
        """How many processes take part."""
        return self._accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._accelerator.device

    @property
    def device_kind(self) -> str:
        """What one result is promised for: the CPU, or a GPU by its name."""
        return torch.cuda.get_device_name(self.device) if is_gpu(self.device) else "cpu"

    def share(self, items: int, width: int, measure: Callable[[int], list[int]]) -> np.ndarray:
        """Measure items side by side and return all results on every process.

        Args:
            items: how many there are; item i is this process's if i modulo the number of processes
                is its rank.
            width: how many integers `measure(i)` returns.
            measure: the work.

        Returns:
            [items, width] int64.
        """
        results = np.zeros((items, width), dtype=np.int64)
        for i in range(self.rank, items, self.count):
            try:
                results[i] = measure(i)
            except MegaError as error:
                error.on_one_process = True
                raise
        return self.add_up(results)  # all others hold zeros

    def part(self, items: int) -> range:
        """Return this process's share of a row of equal items: one piece, as long as the others' or
        one longer."""
        first, last = (items * (self.rank + i) // self.count for i in (0, 1))
        return range(first, last)

    def add_up(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of an int64 array over all processes, on each of them."""
        if self.count == 1:
            return values
        with _others_alive():
            return reduce(torch.from_numpy(values).to(self.device), "sum").cpu().numpy()

    def compare(self, what: str, value: object) -> None:
        """See that all processes hold the same value.

        Args:
            what: its name, for the error.
            value: whose text is compared.

        Raises:
            LaunchError: on every process, where one differs from the first; it names the process
                and both values.
        """
        if self.count == 1:
            return
        mine = str(value).encode()
        proof = hashlib.sha256(mine).digest()
        proofs = self._gather(np.frombuffer(proof, dtype=np.uint8))
        others = [rank for rank in range(self.count) if (proofs[rank] != proofs[0]).any()]
        if not others:
            return
        longest = int(self._gather(np.array([len(mine)])).max())
        texts = self._gather(np.frombuffer(mine.ljust(longest), dtype=np.uint8))
        first, other = (
            texts[rank].astype(np.uint8).tobytes().decode().rstrip() for rank in (0, others[0])
        )
        raise LaunchError(
            f"process {others[0]} computes otherwise than process 0",
            where=what,
            expected=first,
            got=other,
            hint=(
                "the same files, releases and kind of device on every machine; or one of its"
                " devices is faulty"
            ),
        )

    def _gather(self, row: np.ndarray) -> np.ndarray:
        """Return the rows of all processes, [processes, width] int64."""
        rows = np.zeros((self.count, len(row)), dtype=np.int64)
        rows[self.rank] = row
        return self.add_up(rows)

    @property
    def on_this_machine(self) -> int:
        """How many of them share this machine's memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.count > 1 else 1

    def wait(self) -> None:
        """Return when every process has come here."""
        with _others_alive():
            self._accelerator.wait_for_everyone()

    @property
    def span_machines(self) -> bool:
        """Whether some of the processes run on other machines."""
        return spans_machines(os.environ, self.count)

    def leave(self) -> None:
        """Say that this process has done all of its work; the others may go on."""
        self._leave()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn a broken connection into an error that says what it means."""
    try:
        yield
    except RuntimeError as error:
        got = (str(error).strip().splitlines() or ["no answer"])[0][:200]
        hint = "see what ended it, and mend that; then the same command goes on"
        raise LaunchError(
            "another process ended", expected="an answer", got=got, hint=hint
        ) from None


def check_launch(environment: os._Environ[str] | dict[str, str]) -> None:
    """Refuse a launch that silently became one process: `accelerate launch --cpu --num_processes
    2`.

    That launcher sets MASTER_ADDR only when several processes were asked for, and then starts one.
    """
    uses_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if uses_cpu and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "accelerate launch --cpu starts one process, whatever --num_processes says",
            expected="as many processes as asked for",
            got="one",
            hint=f"mega-hf ... --num-processes N, or {CPU_COMMAND}",
        )


def is_launched() -> bool:
    """Say whether this process is one that a launcher started."""
    return "WORLD_SIZE" in os.environ or "MASTER_ADDR" in os.environ


def _wants_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def default_processes() -> int:
    """Return every GPU there is, else one."""
    return 1 if _wants_cpu() else max(1, torch.cuda.device_count())


def launch(count: int, arguments: list[str]) -> int:
    """Start `count` processes of `python -m mega_hf ARGUMENTS` through Accelerate and return their
    exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    on_cpu = not torch.cuda.is_available()
    if not on_cpu and count > torch.cuda.device_count():
        raise LaunchError(
            "too few GPUs",
            expected=f"at most {torch.cuda.device_count()} processes",
            got=count,
            hint="a smaller --num-processes",
        )
    flags = ["--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    flags += [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        *(["--multi_gpu"] if count > 1 else []),
    ]
    parsed = launch_command_parser().parse_args([*flags, "-m", "mega_hf", *arguments])
    for name in [
        name
        for name in logging.root.manager.loggerDict
        if name.startswith("torch.distributed.elastic")
    ]:
        # it warns of each signal; what was meant by it, we say
        logging.getLogger(name).setLevel(logging.ERROR)
    # the others are ours; an older torch takes them all
    parsed.signals_to_handle = "SIGHUP,SIGQUIT"
    with _environment(count, on_cpu):
        try:
            launch_command(parsed)
        except ChildFailedError as error:
            return _explain(error)
        except SignalException as error:
            raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from None
    return 0


def _explain(error: ChildFailedError) -> int:
    """Name the process that died without a word of its own; return the exit code that stands for
    all."""
    spoken = (1, 2, 130, -signal.SIGTERM)  # the launcher ends the others by SIGTERM
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    for rank, code in codes.items():
        if code not in spoken:
            print(
                f"mega-hf: process {rank} died (exit code {code}); the same command resumes",
                file=sys.stderr,
            )
    return 2 if 2 in codes.values() else 1


@contextmanager
def _environment(count: int, on_cpu: bool) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
