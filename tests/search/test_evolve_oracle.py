"""The generation loop equals a slow re-implementation, bit for bit."""

import hashlib
import json
from itertools import combinations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import RecordedDraws, Search, evolve
from mega_hf.search.mutation import Gaussian
from mega_hf.search.population import Fitness, Genes

GENES = Genes(bounds=((0, 4), (4, 5), (5, 7)), learned=2, scales=(0.5, 2.0, 1.0))

NOTHING = RecordedDraws(lambda _, make: make(), lambda _: np.empty((0, 0), dtype=bool))


class Evaluator:
    """Returns `score(genome)` as fitness, and keeps all calls."""

    def __init__(self, score):
        self.score, self.calls, self.evaluated = score, [], 0

    def __call__(self, population, tournaments, elite):
        genomes = population.genomes.clone()
        fitness = [elite] if elite is not None else []
        fitness += [Fitness(self.score(g.numpy()), 100) for g in genomes[len(fitness) :]]
        self.evaluated += len(genomes) - (elite is not None)
        self.calls.append((population, genomes, tournaments, elite, fitness))
        return fitness


def coarse(genome):
    """Return one of few values, so that ties occur, or sometimes None for a failure."""
    total = sum(float(x) for x in genome)
    return None if total > 2.5 else 10 - min(10, int(abs(total - 1) * 4))


def parents_of(count=2, size=7, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    )


def settings_of(n=6, g=4, k=3, t=2, rate=0.5, std=0.3, **more):
    return Search(n, g, k, t, Gaussian(rate, std), **more)


def run(search, score=coarse, parents=None, seed=46, node="a+b", genes=GENES):
    evaluator = Evaluator(score)
    parents = parents_of() if parents is None else parents
    return evolve(parents, genes, search, streams(seed, node), evaluator), evaluator


# --- The algorithm again, element by element, from the paper's text


def _draws(seed, node, generation, child, purpose):
    name = json.dumps([seed, node, generation, child, purpose]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def weighted(vectors, weights):
    result = []
    for values in zip(*vectors, strict=True):
        total = np.float32(weights[0]) * values[0]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            total = total + np.float32(weight) * value
        result.append(total)
    return result


def _slow_founders(parents, s, seed, node):
    founders = [list(p) for p in parents] if s["include_parents"] else []
    while len(founders) < s["n"]:
        cuts = sorted(
            _draws(seed, node, 1, len(founders), "founder").random(len(parents) - 1).tolist()
        )
        edges = [0.0, *cuts, 1.0]
        founders.append(weighted(parents, [edges[i + 1] - edges[i] for i in range(len(parents))]))
    return founders


def _slow_tournaments(s, seed, node, generation):
    stream, drawn = _draws(seed, node, generation, 0, "tournaments"), []
    for _ in range(s["k"]):
        uniforms = stream.random(s["n"]).tolist()
        drawn.append(sorted(range(s["n"]), key=uniforms.__getitem__)[: s["t"]])
    return drawn


def _slow_mutate(genome, s, stream):
    for tensor in range(GENES.learned):
        start, stop = GENES.bounds[tensor]
        hit = [i for i in range(start, stop) if stream.random() < s["rate"]]
        for i in hit:
            genome[i] = genome[i] + np.float32(
                stream.standard_normal() * (s["std"] * GENES.scales[tensor])
            )


def fittest(indices, values):
    return min(indices, key=lambda i: (1 if values[i] is None else 0, -(values[i] or 0), i))


def _slow_children(population, values, s, seed, node, generation):
    mates = [fittest(t, values) for t in _slow_tournaments(s, seed, node, generation)]
    pairs = list(combinations(mates, 2))
    for child in range(1, s["n"]):
        a, b = pairs[(child - 1) % len(pairs)]
        beta = _draws(seed, node, generation + 1, child, "crossover").random()
        same = a == b
        genome = (
            list(population[a])
            if same
            else weighted([population[a], population[b]], [beta, 1 - beta])
        )
        _slow_mutate(genome, s, _draws(seed, node, generation + 1, child, "mutation"))
        yield genome


def slow_evolve(parents, s, score, seed, node):
    """Return the best genome with its value and place, and the values of each generation."""
    population, elite, history = _slow_founders(parents, s, seed, node), None, []
    for generation in range(1, s["g"] + 1):
        values = [score(g) for g in population]
        best = fittest(range(s["n"]), values)
        if elite is None or best != 0:
            elite = (list(population[best]), values[best], generation, best)
        history.append(values)
        if generation < s["g"]:
            children = list(_slow_children(population, values, s, seed, node, generation))
            population = [elite[0], *children]
    return elite, history


@st.composite
def _settings(draw):
    parents = draw(st.integers(2, 4))
    n = draw(st.integers(max(2, parents), 8))
    s = {
        "n": n,
        "g": draw(st.integers(1, 5)),
        "k": draw(st.integers(2, 5)),
        "t": draw(st.integers(1, n)),
    }
    s |= {"rate": draw(st.sampled_from([0.0, 0.3, 1.0])), "std": draw(st.sampled_from([0.05, 0.5]))}
    return parents, s | {"include_parents": draw(st.booleans())}


@given(_settings(), st.integers(0, 1000), st.sampled_from(["a+b", "node"]))
@settings(max_examples=60, deadline=None)
def test_evolve_equals_the_slow_implementation_bit_for_bit(drawn, seed, node):
    count, s = drawn
    parents = parents_of(count, seed=seed)
    search = settings_of(
        s["n"], s["g"], s["k"], s["t"], s["rate"], s["std"], include_parents=s["include_parents"]
    )
    outcome, evaluator = run(search, parents=parents, seed=seed, node=node)
    (genome, value, generation, index), history = slow_evolve(
        list(parents.numpy()), s, coarse, seed, node
    )
    assert outcome.best.genome.numpy().tobytes() == np.array(genome, dtype=np.float32).tobytes()
    assert (outcome.best.fitness.correct, outcome.best.generation, outcome.best.index) == (
        value,
        generation,
        index,
    )
    assert [[f.correct for f in call[4]] for call in evaluator.calls] == history


def test_the_slow_implementation_covers_ties_failures_and_equal_mates():
    """Otherwise the comparison above would show little."""
    s = {"n": 6, "g": 4, "k": 3, "t": 3, "rate": 0.3, "std": 0.5, "include_parents": True}
    ties = failures = equal_mates = 0
    for seed in range(20):
        _, history = slow_evolve(list(parents_of(seed=seed).numpy()), s, coarse, seed, "a+b")
        for generation, values in enumerate(history, start=1):
            ties += values.count(max((v for v in values if v is not None), default=0)) > 1
            failures += values.count(None)
            mates = [fittest(t, values) for t in _slow_tournaments(s, seed, "a+b", generation)]
            equal_mates += len(set(mates)) < len(mates)
    assert min(ties, failures, equal_mates) > 10
