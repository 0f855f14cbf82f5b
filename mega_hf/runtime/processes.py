"""The processes of a run: share work among them, compare their values, and launch them."""

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
from mega_hf.runtime.process_count import OVERSUBSCRIBE, check_process_count, wants_cpu
from mega_hf.runtime.watchdog import end_with_launcher, end_with_others, spans_machines

_LAUNCHER = "MEGA_HF_LAUNCHER"  # the process ID of `mega-hf --num-processes`, in its children
CPU_COMMAND = (
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N -m mega_hf ..."
)


def is_gpu(device: torch.device) -> bool:
    """Return whether a device is a CUDA or ROCm GPU."""
    return device.type == "cuda"


class Processes:
    """The processes of this run: one, or as many as a launcher started.

    Processes exchange integers only, so that no sum depends on their number.

    Raises:
        LaunchError: the processes were not launched as asked, or there are too many of them.
    """

    def __init__(self) -> None:
        check_launch(os.environ)
        # Without a GPU, Accelerator(cpu=False) under a launcher makes every process the main one.
        cpu = not torch.cuda.is_available() or wants_cpu()
        check_process_count(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), uses_gpu=not cpu)
        if "WORLD_SIZE" in os.environ:
            # before Accelerator waits for the other processes, which may never start
            end_with_launcher(int(os.environ.get(_LAUNCHER, os.getppid())))
        # The main process may train for days while the others wait.
        timeout = InitProcessGroupKwargs(timeout=timedelta(days=30))
        self._accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[timeout])
        started = int(os.environ.get("WORLD_SIZE", "1"))
        self._leave = lambda: None
        if spans_machines(os.environ, self.count):
            self._leave = end_with_others(self.rank, self.count)
        if started != self.count:
            raise LaunchError(
                "the processes are not connected to each other",
                expected=f"{started} processes in one group",
                got=f"{started} groups of {self.count}",
                hint=f"launch them by: {CPU_COMMAND}",
            )
        if self.count > 1:  # only at exit, so that several runs can follow each other
            atexit.register(self._accelerator.end_training)

    @property
    def count(self) -> int:
        """The number of processes."""
        return self._accelerator.num_processes

    @property
    def rank(self) -> int:
        """This process's index."""
        return self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        return self._accelerator.device

    @property
    def device_kind(self) -> str:
        """`cpu`, or the name of the GPU: results are reproducible on one kind of device."""
        return torch.cuda.get_device_name(self.device) if is_gpu(self.device) else "cpu"

    def share(self, items: int, width: int, measure: Callable[[int], list[int]]) -> np.ndarray:
        """Distribute items over the processes, and return all results on every process.

        Args:
            items: number of items; the process of rank r does items r, r + count, r + 2 count, ...
            width: number of integers that `measure(i)` returns.
            measure: the work for one item.

        Returns:
            int64 array of shape [items, width].
        """
        results = np.zeros((items, width), dtype=np.int64)
        for i in range(self.rank, items, self.count):
            try:
                results[i] = measure(i)
            except MegaError as error:
                error.on_one_process = True
                raise
        return self.add_up(results)  # the items of other processes are zeros here

    def part(self, items: int) -> range:
        """Return this process's consecutive share of some items; shares differ by at most one."""
        first, last = (items * (self.rank + i) // self.count for i in (0, 1))
        return range(first, last)

    def add_up(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of an int64 array over all processes, on each of them."""
        if self.count == 1:
            return values
        with _others_alive():
            return reduce(torch.from_numpy(values).to(self.device), "sum").cpu().numpy()

    def compare(self, what: str, value: object) -> None:
        """Check that all processes hold the same value.

        Args:
            what: the name of the value, for the error.
            value: the value; its text is compared.

        Raises:
            LaunchError: on every process, if a value differs from that of process 0; the error
                names the process and both values.
        """
        if self.count == 1:
            return
        mine = str(value).encode()
        digest = hashlib.sha256(mine).digest()
        digests = self._gather(np.frombuffer(digest, dtype=np.uint8))
        others = [rank for rank in range(self.count) if (digests[rank] != digests[0]).any()]
        if not others:
            return
        longest = int(self._gather(np.array([len(mine)])).max())
        texts = self._gather(np.frombuffer(mine.ljust(longest), dtype=np.uint8))
        first, other = (
            texts[rank].astype(np.uint8).tobytes().decode().rstrip() for rank in (0, others[0])
        )
        raise LaunchError(
            f"process {others[0]} got a different result from process 0",
            where=what,
            expected=first,
            got=other,
            hint=(
                "use the same files, library versions and device type on every machine; otherwise a"
                " device may be faulty"
            ),
        )

    def _gather(self, row: np.ndarray) -> np.ndarray:
        """Return the rows of all processes: int64, [count, width]."""
        rows = np.zeros((self.count, len(row)), dtype=np.int64)
        rows[self.rank] = row
        return self.add_up(rows)

    @property
    def on_this_machine(self) -> int:
        """The number of processes on this machine, which share its memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if self.count > 1 else 1

    def wait(self) -> None:
        """Wait until every process has come here."""
        with _others_alive():
            self._accelerator.wait_for_everyone()

    @property
    def span_machines(self) -> bool:
        """Whether some processes run on other machines."""
        return spans_machines(os.environ, self.count)

    def leave(self) -> None:
        """Tell the other machines that this process has finished, and has not failed."""
        self._leave()


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn a broken connection into a LaunchError."""
    try:
        yield
    except RuntimeError as error:
        got = (str(error).strip().splitlines() or ["no answer"])[0][:200]
        raise LaunchError(
            "another process ended; run the same command to resume",
            expected="an answer from every process",
            got=got,
            hint="see the message of the process that ended first",
        ) from None


def check_launch(environment: os._Environ[str] | dict[str, str]) -> None:
    """Raise LaunchError if several processes were asked for, but only one was started.

    `accelerate launch --cpu --num_processes 2` does this; it sets MASTER_ADDR all the same.
    """
    uses_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if uses_cpu and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "accelerate launch --cpu starts one process, whatever --num_processes says",
            expected="the number of processes asked for",
            got="one process",
            hint=f"use mega-hf ... --num-processes N, or {CPU_COMMAND}",
        )


def is_launched() -> bool:
    """Return whether a launcher started this process."""
    return "WORLD_SIZE" in os.environ or "MASTER_ADDR" in os.environ


def default_processes() -> int:
    """Return the number of GPUs, or 1 without any."""
    return 1 if wants_cpu() else max(1, torch.cuda.device_count())


def launch(count: int, arguments: list[str], oversubscribe: bool = False) -> int:
    """Run `python -m mega_hf ARGUMENTS` in several processes, and return their exit code.

    Args:
        count: number of processes.
        arguments: of the command line.
        oversubscribe: allow more processes than this machine has cores or memory for.

    Raises:
        LaunchError: there are too many processes.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    on_cpu = not torch.cuda.is_available()
    if not on_cpu and count > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise LaunchError(
            f"{count} processes asked for, this machine has {gpus} GPUs",
            expected=f"at most {gpus}, one per GPU",
            got=f"{count} processes",
            hint=f"--num-processes {gpus}",
        )
    if not oversubscribe:
        check_process_count(count, uses_gpu=not on_cpu)
    flags = f"--num_processes {count} --num_machines 1 --main_process_port 0 --multi_gpu"
    flags += " --mixed_precision no --dynamo_backend no -m mega_hf"
    parsed = launch_command_parser().parse_args([*flags.split(), *arguments])
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # it warns about each signal
    parsed.signals_to_handle = "SIGHUP,SIGQUIT"  # SIGINT and SIGTERM are handled by the command
    with _environment(count, on_cpu, oversubscribe):
        try:
            launch_command(parsed)
        except ChildFailedError as error:
            return _exit_code(error)
        except SignalException as error:
            raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from None
    return 0


def _exit_code(error: ChildFailedError) -> int:
    """Return one exit code for all processes, and name those that died without a message."""
    spoken = (1, 2, 130, -signal.SIGTERM)  # the launcher ends the others by SIGTERM
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    for rank, code in codes.items():
        if code not in spoken:
            print(
                f"mega-hf: process {rank} died (exit code {code}); run the same command to resume",
                file=sys.stderr,
            )
    return 2 if 2 in codes.values() else 1


@contextmanager
def _environment(count: int, on_cpu: bool, oversubscribe: bool) -> Iterator[None]:
    """Set the environment of the launched processes while inside."""
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if oversubscribe:
        os.environ[OVERSUBSCRIBE] = "1"
    os.environ[_LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
