"""Does guidance find active, stable layers more often than its nulls? Arms drawn by structure_generator.py,
judged by the evaluator.

    python -m benchmarks.guidance --out results/study

A hit is stable (E_hull < 0.1 eV/atom) and active by the oracle: H and layer relaxed with the potential.
Settings of the guide are swept first, with a seed that no arm has; every arm has three seeds. Writes
OUT/table.csv, OUT/table.md, OUT/study.png, and TOP, the best of the default by its own ranking. What is done
is not done again.
"""

import argparse
from functools import partial
from pathlib import Path

from benchmarks.guidance.arms import ARMS
from models.infra.cli import whole
from models.infra.files import shipped
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--db", type=Path, default=shipped("data/her2d.db"), help="templates, and what is novel"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=shipped("models/weights/best_diffusion_model.pth"),
        help="from stage 3",
    )
    parser.add_argument(
        "--dimenet", type=Path, default=shipped("models/weights/dimenet.pt"), help="from stage 1"
    )
    parser.add_argument("--num", type=whole(1), default=96, help="structures a seed of a whole arm")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    parser.add_argument(
        "--top", type=Path, default=Path("results/published/top20"), help="folder of the best"
    )
    parser.add_argument(
        "--only", nargs="*", choices=[*ARMS, "sweep"], help="draw and judge these, and write no table"
    )
    parser.add_argument("--out", type=Path, default=Path("results/study"), help="folder")
    return parser


main = partial(run_late, build_parser, "benchmarks.guidance.study")

if __name__ == "__main__":
    run_script(main)
