"""Time the same search by other libraries: `python -m tests.tools.peers RECIPE.yaml`.

PyGAD and EvoTorch get the founders and the settings of the recipe's one merge, and the eager
forward pass of mega_hf on images in memory as their fitness. So the comparison is about the number
of evaluated images and the overhead of each search. Each runs in a process of its own. Both are
installed by `pip install -e ".[benchmarks]"`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mega_hf import Recipe, bench
from mega_hf.evaluation.batch_size import choose_batch_size
from mega_hf.evaluation.forward import Examples, ResidentModel, place_examples
from mega_hf.models.merge_inputs import encode, open_inputs
from mega_hf.run.node import search_node
from mega_hf.run.parents import ParentSet
from mega_hf.search.evolve import RecordedDraws
from mega_hf.search.population import Fitness, Population
from mega_hf.tasks.rows import load_examples
from mega_hf.tasks.splits import load_splits

CPU = torch.device("cpu")


class Ran(NamedTuple):
    """A search and its row of the table."""

    name: str
    seconds: float
    individuals: int
    examples: int
    accuracy: float


class Task:
    """Founders and a fitness function that counts its calls, for any library."""

    def __init__(self, recipe: Recipe) -> None:
        splits = load_splits(recipe.data)
        parents = ParentSet(splits)
        for name in recipe.leaves(None):
            parents.add_parent(name, recipe.parents[name])
        ((self.name, self.node),) = recipe.nodes().items()
        if self.node.batchnorm != "blend":
            raise SystemExit("other libraries do not recalibrate: --set merge.batchnorm=blend")
        model = parents.model
        self.encoding = encode(open_inputs(parents.sources), self.node)
        rows = splits.validation
        size = choose_batch_size(
            recipe.evaluation.batch_size, len(rows), CPU, model.model, model.input_shape
        )
        self.examples: Examples = place_examples(len(rows), model.input_shape, size, CPU, 0.5)
        load_examples(
            rows, parents.mapping, model.transform, self.examples.images, self.examples.labels
        )
        self.forward = ResidentModel(model.model, CPU)
        self.asked = 0
        tensors = [self.encoding.parents[:, a:b] for a, b in self.encoding.bounds if b - a > 1]
        self.std = float(np.mean([tensor.std() for tensor in tensors]))

    def founders(self) -> torch.Tensor:
        """Return the recipe's first population: [population_size, size] float32."""
        bred: list[torch.Tensor] = []

        def keep(population: Population, *_: object) -> list[Fitness]:
            bred.append(population.genomes.clone())
            return [Fitness(0, 1)] * len(population.genomes)

        alone = self.node.model_copy(update={"generations": 1})
        search_node(
            self.name,
            alone,
            self.encoding,
            keep,
            RecordedDraws(lambda _, make: make(), lambda _: np.empty((0, 0))),
        )
        return bred[0]

    def fitness(self, genome: torch.Tensor) -> float:
        """Return the correct answers of a genome ([size] float32) on all rows."""
        self.asked += 1
        self.forward.write(self.encoding.entries(genome))
        return float(self.forward.count_correct(self.examples) or 0)


def run_pygad(task: Task) -> float:
    """Search with PyGAD; return the correct answers of its best individual.

    Mutation is uniform noise with the standard deviation of the recipe.
    """
    import pygad

    node = task.node
    width = task.node.mutation.std * (task.std if task.node.mutation.relative else 1) * 3**0.5
    search = pygad.GA(
        num_generations=node.generations - 1,
        num_parents_mating=node.num_mates,
        initial_population=task.founders().numpy(),
        gene_type=np.float32,
        fitness_func=lambda _, solution, __: task.fitness(
            torch.from_numpy(np.asarray(solution, dtype=np.float32))
        ),
        parent_selection_type="tournament",
        K_tournament=node.tournament_size,
        crossover_type="uniform",
        mutation_type="random",
        mutation_probability=node.mutation.rate,
        random_mutation_min_val=-width,
        random_mutation_max_val=width,
        keep_elitism=1,
        random_seed=node.seed % 2**31,
        suppress_warnings=True,
    )
    search.run()
    return float(search.best_solution(search.last_generation_fitness)[1])


def run_evotorch(task: Task) -> float:
    """Search with EvoTorch's genetic algorithm; return the correct answers of its best."""
    from evotorch import Problem
    from evotorch.algorithms import GeneticAlgorithm
    from evotorch.operators import GaussianMutation, OnePointCrossOver

    node, founders = task.node, task.founders()
    std = node.mutation.std * (task.std if node.mutation.relative else 1)

    class Merging(Problem):
        def __init__(self) -> None:
            super().__init__(
                "max",
                solution_length=founders.shape[1],
                initial_bounds=(-1, 1),
                seed=node.seed % 2**31,
            )

        def _fill(self, values: torch.Tensor) -> None:
            values.copy_(founders[: len(values)])

        def _evaluate(self, solution: Any) -> None:
            solution.set_evals(task.fitness(solution.values.as_subclass(torch.Tensor).clone()))

    problem = Merging()
    operators = [
        OnePointCrossOver(problem, tournament_size=node.tournament_size),
        GaussianMutation(problem, stdev=std, mutation_probability=node.mutation.rate),
    ]
    search = GeneticAlgorithm(
        problem, operators=operators, popsize=node.population_size, elitist=True, re_evaluate=False
    )
    search.run(node.generations - 1)  # its first step evaluates founders and children
    return float(search.status["best_eval"])


PEERS: dict[str, Callable[[Task], float]] = {"PyGAD": run_pygad, "EvoTorch": run_evotorch}


def run_peer(name: str, recipe: Recipe) -> Ran:
    """Time the search of another library, without loading parents and images."""
    task = Task(recipe)
    began = time.perf_counter()
    best, rows = PEERS[name](task), task.examples.count
    return Ran(name, time.perf_counter() - began, task.asked, task.asked * rows, best / rows)


def run_apart(name: str, words: list[str]) -> Ran:
    """Run another library in a process of its own."""
    command = [sys.executable, "-m", "tests.tools.peers", *words, "--only", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Ran(*json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run all searches one after the other, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=PEERS, help="run this library alone and print its record")
    args = parser.parse_args()
    recipe = Recipe.from_yaml(args.recipe, args.overrides)
    if args.only:
        print(json.dumps(run_peer(args.only, recipe)))
        return
    ours = bench(recipe)
    found = [
        Ran(
            "mega_hf", ours.search_seconds, ours.evaluations, ours.pictures_evaluated, ours.accuracy
        )
    ]
    naive = Ran(
        "naive (scaled)", ours.naive_seconds, ours.evaluations, ours.pictures_full, ours.accuracy
    )
    words = [
        str(args.recipe),
        *(word for override in args.overrides for word in ("--set", override)),
    ]
    found += [run_apart(name, words) for name in PEERS] + [naive]
    if args.json:
        print(json.dumps([ran._asdict() for ran in found]))
        return
    print(
        "| search | seconds | relative time | individuals | images | best on validation"
        " |\n|---|---|---|---|---|---|"
    )
    for ran in found:
        print(
            f"| {ran.name} | {ran.seconds:,.0f} | {ran.seconds / found[0].seconds:.2f} |"
            f" {ran.individuals:,} | {ran.examples:,} | {100 * ran.accuracy:.2f} % |"
        )


if __name__ == "__main__":
    main()
