"""Runs that are killed at random moments and resumed: `python -m tests.tools.kills FOLDER
--processes 2 --kills 50`.

Each run is a child of one process that has imported everything, so that many fit into a minute; it
runs the command as a shell would, and `kill -9` meets it as it would meet the command.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.tools import tiny, trainings
from tests.tools.run_files import journal

PARENTS = {"a": {"seed": 1}, "b": {"seed": 2, "from": "a"}, "c": {"seed": 3}}
NODES = {"ab": {"parents": ["a", "b"]}, "top": {"parents": ["ab", "c"]}}
_ACCESSES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def recipe(data: Path) -> dict[str, Any]:
    """Return a recipe with every stage: trainings after one another, two merges, a report."""
    return trainings.tree(data, PARENTS, epochs=2) | {"merge": tiny.MERGE, "merges": NODES}


class Killer:
    """Start runs in child processes, kill them, resume them and count the deviations.

    Args:
        folder: where recipe, data and run folders go.
        processes: that a run consists of.
        seed: of the moments.
    """

    def __init__(self, folder: Path, processes: int, seed: int) -> None:
        self.folder, self.processes, self._draw = folder, processes, random.Random(seed)
        data = tiny.write_data(folder / "data")
        (folder / "recipe.yaml").write_text(json.dumps(recipe(data)))
        began = time.monotonic()
        self._finish(folder / "whole")
        self._duration = time.monotonic() - began
        self.whole = _outcome(folder / "whole")

    def kill(self, times: int) -> dict[str, Any]:
        """Kill runs some number of times, resume each to its end, and return the counts."""
        kills: Counter[str] = Counter()
        tally = {"runs": 0, "other results": 0, "measured again": 0, "temporary files": 0}
        out, began = self.folder / "killed", time.monotonic()
        while kills.total() < times:
            shutil.rmtree(out, ignore_errors=True)
            self._log(out).write_text("")
            before = kills.total()
            while kills.total() < times and not self._disturb(out):
                kills[_stage(out)] += 1
            self._finish(out)
            again = sum(
                count - 1 for count in Counter(self._log(out).read_text().splitlines()).values()
            )
            # One for each process; and while the main one writes a round down, the others have
            # begun the next.
            in_flight = (kills.total() - before) * (2 * self.processes - 1)
            tally["runs"] += 1
            tally["other results"] += _outcome(out) != self.whole
            tally["measured again"] += max(0, again - in_flight)
            tally["temporary files"] += len(list(out.rglob(".mega-*")))
        return {"kills": dict(kills), **tally, "seconds": round(time.monotonic() - began)}

    def _finish(self, out: Path) -> None:
        """Run the command to its end."""
        assert self._wait(self._start(out, None, 0), None, float("inf")), (
            "it was killed by something else"
        )

    def _disturb(self, out: Path) -> bool:
        """Kill a random process at a random moment or file access; return whether it finished."""
        victim = self._draw.randrange(self.processes)
        access = self._draw.randrange(1, 150) if self._draw.random() < 0.5 else 0
        end = self._draw.uniform(0, 1.1 * self._duration) if not access else float("inf")
        return self._wait(self._start(out, victim, access), victim, time.monotonic() + end)

    def _start(self, out: Path, victim: int | None, access: int) -> dict[int, int]:
        """Start the processes of a run: child -> rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = {}
        for rank in range(self.processes):
            child = os.fork()
            if not child:
                self._become(out, rank, port, access if rank == victim else 0)
            children[child] = rank
        return children

    def _wait(self, children: dict[int, int], victim: int | None, end: float) -> bool:
        """Wait like a launcher, which kills all if one is gone; return whether the run finished."""
        left = dict(children)
        while left:
            for child, rank in list(left.items()):
                if time.monotonic() > end and rank == victim:
                    os.kill(child, signal.SIGKILL)
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    del left[child]
                    if status == 0:
                        continue
                    for other in left:
                        os.kill(other, signal.SIGKILL)
                        os.waitpid(other, 0)
                    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                        return False
                    said = (self.folder / f"{rank}.err").read_text()
                    raise RuntimeError(
                        f"process {rank} ended by itself, {os.waitstatus_to_exitcode(status)}:"
                        f" {said}"
                    )
            time.sleep(0.001)
        return True

    def _become(self, out: Path, rank: int, port: int, access: int) -> None:
        """Run one process of the run in this child, and exit."""
        try:
            os.environ |= {"OMP_NUM_THREADS": "1"}
            if self.processes > 1:
                count = str(self.processes)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": count}
                os.environ |= {
                    "LOCAL_WORLD_SIZE": count,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
                os.environ |= {"ACCELERATE_USE_CPU": "true", "MEGA_HF_LAUNCHER": str(os.getppid())}
            for number, name in ((1, f"{rank}.out"), (2, f"{rank}.err")):
                os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            _log_measures(self._log(out))
            _die_at(access, str(out))
            from mega_hf.cli.main import main

            code = main(["merge", str(self.folder / "recipe.yaml"), "--out", str(out), "--quiet"])
            sys.stdout.flush()
            os._exit(code)
        finally:
            os._exit(70)  # whatever it was, it has printed it

    def _log(self, out: Path) -> Path:
        return out.with_name(f"{out.name}.measured")


def _log_measures(file: Path) -> None:
    """Log every individual when its evaluation begins, in each process that takes part."""
    from mega_hf.evaluation.racing import RacingEvaluator

    evaluate = RacingEvaluator._evaluate

    def spy(self: RacingEvaluator, population: Any, index: int, rows: Any) -> Any:
        with file.open("a") as log:
            log.write(f"{self.record.node} {population.generation} {index} {rows.tolist()}\n")  # type: ignore[attr-defined]
        return evaluate(self, population, index, rows)

    RacingEvaluator._evaluate = spy  # type: ignore[method-assign]


def _die_at(access: int, out: str) -> None:
    """Kill this process just before its n-th access to the run folder; 0 means never."""
    left = access

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if left and event in _ACCESSES and str(arguments[0]).startswith(out):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    if access:
        sys.addaudithook(count)


def _outcome(out: Path) -> list[Any]:
    """Return what kills must not change: the result's digests and counts, and the journal's lines.

    What it cost does: who is resumed tries once more whether the order of rows matters.
    """
    record = json.loads((out / "result.json").read_text())
    lines = [
        {k: v for k, v in line.items() if k not in ("seconds", "pictures", "crc")}
        for line in journal(out)
    ]
    digests = {name: value for name, value in record["digests"].items() if name != "journal"}
    return [digests, record["models"], record["nodes"][0]["digests"], lines]


def _stage(out: Path) -> str:
    """Return the stage at which a run was killed, from its files."""
    if not (out / "recipe.yaml").exists():
        return "start"
    kinds = [line["kind"] for line in _whole_lines(out)]
    if "node" not in kinds:
        return "training"
    return "search" if kinds.count("merged") < len(NODES) else "report"


def _whole_lines(out: Path) -> list[dict[str, Any]]:
    file = out / "journal.jsonl"
    raw = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in raw if line.endswith(b"\n")]


def _import_everything() -> None:
    """Import what the command imports, once for all children."""
    import transformers.models.auto  # noqa: F401

    import mega_hf.report.plots  # noqa: F401


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty or new folder")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    import tests.conftest  # noqa: F401  # an environment in which nothing leaves the machine

    _import_everything()
    print(
        json.dumps(Killer(words.folder.absolute(), words.processes, words.seed).kill(words.kills))
    )
