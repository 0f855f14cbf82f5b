"""The search: pure functions from tensors, floats and seeds to tensors and floats.

`evolve` is MeGA, `methods` lists all search methods, and `selection`, `crossover` and `mutation`
are the operators. Imports no other folder but `runtime.seeds`.
"""
