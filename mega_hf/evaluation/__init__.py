"""Evaluate weights: forward pass, racing, recalibration, alignment.

`forward` runs one resident model, `racing` evaluates a population just far enough for the search,
`calibration` recomputes BatchNorm statistics, `aligner` finds channel permutations, and
`interpolation`, `compare` and `evaluate` evaluate models for a user. May import recipe, tasks,
models, weights and search.
"""
