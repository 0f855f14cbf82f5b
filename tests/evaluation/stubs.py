"""A journal in memory, tiny models and populations of them, for the tests of evaluation."""

from types import SimpleNamespace

import torch
from torch import nn

from mega_hf.search.population import Fitness

ROWS = 30


class Record:
    """A journal in memory that counts what is added to it.

    Attributes:
        known: (generation, index) -> (correct, seen[, loss]).
    """

    def __init__(self, known=()):
        self.known = {at: Fitness(*numbers) for at, numbers in dict(known).items()}
        self.genomes = {}
        self.added = []
        self.examples = 0

    def find(self, generation, index, genome):
        return self.known.get((generation, index))

    def find_genome(self, genome):
        return self.genomes.get(genome)

    def add(self, generation, index, genome, fitness, seconds, examples, write):
        existing = self.known.get((generation, index))
        assert existing is None or existing.seen < fitness.seen, "evaluated twice"
        assert write
        assert seconds >= 0
        self.examples += examples
        fitness = Fitness(fitness.correct, fitness.seen, loss=fitness.loss)
        self.known[generation, index] = self.genomes[genome] = fitness
        self.added.append((generation, index))


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def populate(encoding, generation=1, seeds=(0, 1, 2, 3)):
    genomes = torch.stack(
        [encoding.space.pack(dict(make_model(seed).state_dict())) for seed in seeds]
    )
    return SimpleNamespace(genomes=genomes, generation=generation, fingerprint="00")


def expect(examples, seed):
    with torch.no_grad():
        scores = make_model(seed)(examples.images[:ROWS].cpu())
    return int((scores.argmax(dim=1) == examples.labels[:ROWS].cpu()).sum())
