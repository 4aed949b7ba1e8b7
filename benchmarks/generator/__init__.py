"""What the generator draws before any filter (python -m benchmarks.generator)."""

RELAXED = 30  # formulas whose guesses are relaxed: some ten different ones each, 2 to 5 core-seconds each
QUICK_FORMULAS = 60
