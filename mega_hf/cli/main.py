"""`mega-hf ...`: arguments in, one call of the API, a rendered answer out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mega_hf.cli.arguments import build_parser, without
from mega_hf.cli.failures import open_streams, say
from mega_hf.cli.signals import SIGNALS, handle_signals
from mega_hf.errors import MegaError, RecipeError, Terminated, VerificationError
from mega_hf.runtime.environment import configure_logging, let_threads_sleep, relax_gc
from mega_hf.runtime.untrusted import harmless

if TYPE_CHECKING:
    from mega_hf.recipe.schema import Recipe
    from mega_hf.report.result import MergeResult
    from mega_hf.run.node import MergedNode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 the answer is no, 2 an error, 130 or 143
    interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with handle_signals() as interruption:
        try:
            open_streams()
            code = _run(words)
            sys.stdout.flush()
            return code
        except BaseException as error:
            if isinstance(error, Terminated):
                interruption.number = signal.SIGTERM  # a launcher of torch's may have heard it
            if interruption.number is not None or isinstance(error, KeyboardInterrupt):
                return interruption.end()  # whatever the signal's exception became on its way
            failed = say(error)
            if failed is None:
                raise
            return failed


def program() -> NoReturn:
    """Run the command that this process was started for, and end the process."""
    with relax_gc():
        code = main()
    if code > 128:
        os._exit(code)  # nothing that is left to do is worth waiting for
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the work is done
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        args = build_parser().parse_args(words)
    except SystemExit:
        sys.stdout.flush()
        raise
    configure_logging(getattr(args, "quiet", False))
    let_threads_sleep()
    return COMMANDS[args.command](args, words)


def _merge(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.cli.asked import asked_recipe

    recipe = asked_recipe(args)
    if args.seeds is not None:
        return _merge_seeds(args, words, recipe)
    if args.only is not None and args.push:
        what = "a part of a tree is not pushed"
        hint = "--only alone; then the whole tree with --push"
        raise RecipeError(what, expected="--only or --push", got="both", hint=hint)
    if args.dry_run:
        return _say_cost(recipe, args)
    from mega_hf.run.folder import RunFolder

    out = args.out or Path("runs") / recipe.name
    folder = RunFolder(out)
    folder.check(recipe, args.overwrite, args.update)
    is_part = args.only is not None
    result = None if args.overwrite or args.update or is_part else folder.finished()
    if result is None:
        _refuse_busy(out)
        if not is_part:
            _check_push(recipe)
        code = _launched(args, words)
        if code is not None:
            return code
        from mega_hf.run.context import RunOptions
        from mega_hf.run.pipeline import run_merge, run_merge_only

        options = RunOptions(
            args.overwrite,
            args.update,
            args.parents,
            args.forward,
            args.full_evaluation,
            not args.quiet,
        )
        if is_part:
            return _say_node(run_merge_only(recipe, args.only, folder, options))
        result = run_merge(recipe, folder, options, args.keep)
    elif _is_main():
        folder.tidy()
        if args.keep == "final":
            folder.drop_intermediates()
    return _say_result(result, recipe, args.parents)


def _merge_seeds(args: argparse.Namespace, words: list[str], recipe: Recipe) -> int:
    from mega_hf.cli.seeds import check_seeds, merge_seeds

    args.out = check_seeds(args, recipe)
    if args.dry_run:
        return _say_cost(recipe, args)
    failed, found = merge_seeds(args, words, recipe, _merge)
    _say(found or "the runs of the seeds before are kept: the same command goes on")
    return failed


def _say_cost(recipe: Recipe, args: argparse.Namespace) -> int:
    from mega_hf.run.estimate import estimate

    out = args.out or Path("runs") / recipe.name
    kept = None if args.overwrite and args.parents is None else args.parents or out / "parents"
    with recipe.document.placing():
        cost = estimate(recipe, args.num_processes or 1, args.only, kept, args.update)
    _say(replace(cost, runs=args.seeds or 1))
    if recipe.push and args.only is None:
        _check_push(recipe)
        _say(f"The merge would then be pushed to {recipe.push.repo}.")
    return 0


def _say_result(result: MergeResult, recipe: Recipe, parents: Path | None) -> int:
    if _is_main():
        _say(f"{result.report}\n\n{result.merged}\n{result.folder / 'README.md'}")
        if recipe.push:
            from mega_hf.hub.push import push

            _say(
                push(
                    result,
                    recipe.push.repo,
                    parents=parents,
                    **recipe.push.model_dump(exclude={"repo"}),
                )
            )
    return 0


def _check_push(recipe: Recipe) -> None:
    """See, before hours of work, that its result can be pushed."""
    if recipe.push and _is_main():
        from mega_hf.hub.push import check_push

        check_push(recipe, recipe.push)


def _say_node(merged: MergedNode) -> int:
    if _is_main():
        correct, rows = merged.record["correct"], merged.record["n"]
        _say(
            f"{merged.name}: {100 * correct / rows:.2f} % on validation ({correct} of {rows} right,"
            f" selected on)\n{merged.folder}\nThe report follows when the whole tree is run: the"
            " same command without --only."
        )
    return 0


def _refuse_busy(out: Path) -> None:
    """Refuse at once where another run is at work; the processes of one run, which share the
    folder, ask nothing."""
    if "WORLD_SIZE" not in os.environ:
        from mega_hf.runtime.lock import check_unlocked

        check_unlocked(out)


def _launched(args: argparse.Namespace, words: list[str]) -> int | None:
    """Run the same command in several processes, where it should be and isn't yet, and return its
    exit code."""
    from mega_hf.runtime.processes import default_processes, is_launched, launch

    count = args.num_processes or default_processes()
    return (
        launch(count, without(words, "--num-processes"))
        if count > 1 and not is_launched()
        else None
    )


def _train(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.recipe.schema import Recipe

    recipe = Recipe.from_yaml(args.recipe, args.overrides)
    _refuse_busy(args.out or Path("runs") / recipe.name)
    code = _launched(args, words)
    if code is not None:
        return code
    from mega_hf.run.pipeline import train

    trained = train(
        recipe,
        args.out,
        parent=args.parent,
        update=args.update,
        parents=args.parents,
        progress=not args.quiet,
    )
    if _is_main():
        _say("\n".join(f"{name}  {folder}" for name, folder in trained.items()))
    return 0


def _evaluate(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.cli.asked import data_of
    from mega_hf.evaluation.evaluate import evaluate

    measured = evaluate(args.model, data_of(args), args.split, args.batch_size)
    _say(json.dumps(measured.to_dict()) if args.json else measured)
    return 0


def _compare(args: argparse.Namespace, words: list[str]) -> int:
    if len(set(args.models)) < 2:
        got, hint = ", ".join(args.models), "name another model"
        raise RecipeError("nothing to compare", expected="two models or more", got=got, hint=hint)
    from mega_hf.cli.asked import data_of
    from mega_hf.evaluation.compare import compare

    data = data_of(args) if args.data else None
    comparison = compare(args.models, data, args.split, args.sample, progress=not args.quiet)
    _say(json.dumps(comparison.to_dict()) if args.json else comparison)
    return 0 if comparison.mergeable else 1


def _card(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.report.card import write_card
    from mega_hf.report.result import MergeResult
    from mega_hf.runtime.lock import lock_folder

    MergeResult.load(args.folder)  # a folder that is no run's gets no lock
    with lock_folder(args.folder, "wait until it has ended"):
        write_card(MergeResult.load(args.folder), args.overwrite_card)
    _say(args.folder / "README.md")
    return 0


def _push(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.hub.push import plan_push, push

    where = {
        "private": args.private,
        "create_pr": args.create_pr,
        "branch": args.branch,
        "message": args.message,
    }
    what = {
        "license": args.license,
        "with_nodes": args.with_nodes,
        "overwrite_card": args.overwrite_card,
    }
    what |= {"with_parents": not args.without_parents, "parents": args.parents}
    _say((plan_push if args.dry_run else push)(args.folder, args.repository, **where, **what))
    return 0


def _pull(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.hub.pull import pull

    result = pull(args.repository, args.out)
    _say(f"{result.report}\n\n{result.merged}\n{result.folder / 'recipe.yaml'}")
    return 0


def _verify(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.verification.verify import verify

    if args.data and args.evaluate is None:
        hint = "add --evaluate K to measure again; without it no data is read"
        raise RecipeError(
            "--data is not needed",
            expected="--evaluate K with it",
            got="--data alone",
            hint=hint,
        )
    try:
        verified = verify(
            args.run,
            parents=dict(args.places),
            trained=args.parents,
            evaluate=args.evaluate,
            data=args.data,
            progress=not args.quiet,
        )
    except MegaError as error:
        if args.json:  # not known where it could not be tried
            is_false = isinstance(error, VerificationError)
            _say(json.dumps({"reproduced": False if is_false else None, **error.to_dict()}))
        raise
    _say(json.dumps({"reproduced": True, **verified.to_dict()}) if args.json else verified)
    return 0


def _bench(args: argparse.Namespace, words: list[str]) -> int:
    from mega_hf.recipe.schema import Recipe

    recipe = Recipe.from_yaml(args.recipe, args.overrides)
    code = _launched(args, words)
    if code is not None:
        return code
    from mega_hf.run.benchmark import bench

    found = bench(
        recipe,
        args.out,
        parents=args.parents,
        forward=args.forward,
        full_evaluation=args.full_evaluation,
        progress=not args.quiet,
    )
    if _is_main():
        _say(json.dumps(found.to_dict()) if args.json else found)
    return 0


COMMANDS = {
    "merge": _merge,
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "card": _card,
    "push": _push,
    "pull": _pull,
    "verify": _verify,
    "bench": _bench,
}


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _say(text: object) -> None:
    """Print what may hold others' words: no name, label or path of theirs reaches the terminal as a
    command to it."""
    print(harmless(text), flush=True)
