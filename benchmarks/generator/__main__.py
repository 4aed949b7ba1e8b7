"""What the generator draws before any filter, beside plain substitution (the model-free baseline) and real
held-out layers (the ceiling).

    python -m benchmarks.generator --db c2db.db --out results/benchmark_generator
    python -m benchmarks.generator --db c2db.db --quick

Formulas of the test split are asked for, and it is counted how often the stablest layer of the formula comes
out; the guesses at some of them are relaxed and ranked by the potential as well. Then every set is drawn
unguided by structure_generator.py and judged by evaluate_external.py, without hydrogen. Writes OUT/table.md
and OUT/table.csv; what is done is not done again. --quick: formulas only, the four ways that matter; with
--tries 1 three core-minutes, with 20 guesses a formula half a core-hour.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.generator import QUICK_FORMULAS, RELAXED
from models.infra.cli import real, whole
from models.infra.files import shipped
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add, weights = parser.add_argument, shipped("models/weights/best_diffusion_model.pth")
    novel = "templates, held-out layers, and what is novel"
    add("--db", type=Path, default=shipped("data/her2d.db"), help=novel)
    add("--checkpoint", type=Path, default=weights, help="from stage 3")
    add("--num", type=whole(1), default=256, help="structures a set")
    add("--formulas", type=whole(1), default=100, help="held-out formulas to ask for")
    add("--tries", type=whole(1), default=20, help="guesses a formula")
    relax = f"formulas whose guesses are relaxed by the potential; {RELAXED}, with --quick none, if not given"
    add("--relax", type=whole(0), help=relax)
    add("--only-formulas", action="store_true", help="judge no sets")
    quick = f"formulas only ({QUICK_FORMULAS} at most), the ways that matter; 0.5 core-seconds a guess"
    add("--quick", action="store_true", help=quick)
    height = "of the layers that are to be found, eV/atom"
    add("--max-e-hull", type=real(), default=0.3, help=height)
    add("--seed", type=whole(0), default=0, help="of everything random")
    add("--jobs", type=whole(1), default=2, help="processes of the potential")
    add("--out", type=Path, default=Path("results/benchmark_generator"), help="folder")
    return parser


main = partial(run_late, build_parser, "benchmarks.generator.study")

if __name__ == "__main__":
    run_script(main)
