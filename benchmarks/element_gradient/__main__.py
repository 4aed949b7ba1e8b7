"""Does the gradient on the elements do what best-of-32 proposals do, at equal cost?

    python -m benchmarks.element_gradient --num 64 --out results/element_gradient

Element proposals alone, without denoising: what a guide decides is decided there. Every arm starts from the
same templates; its cost is counted in function evaluations a structure (a gradient counts as three). Judged
by the heads that guide, which says only that the guide works, and by DimeNet++, which did not guide. Writes
OUT/table.md and .csv.
"""

import argparse
from functools import partial
from pathlib import Path

from models.infra.cli import whole
from models.infra.files import shipped
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--db", type=Path, default=shipped("data/her2d.db"), help="templates")
    weights = shipped("models/weights/best_diffusion_model.pth")
    parser.add_argument("--checkpoint", type=Path, default=weights, help="from stage 3")
    parser.add_argument(
        "--dimenet", type=Path, default=shipped("models/weights/dimenet.pt"), help="from stage 1"
    )
    parser.add_argument("--only-heads", action="store_true", help="without DimeNet++")
    parser.add_argument("--num", type=whole(1), default=64, help="structures an arm")
    parser.add_argument("--seed", type=whole(0), default=0, help="of everything random")
    parser.add_argument("--out", type=Path, default=Path("results/element_gradient"), help="folder")
    return parser


main = partial(run_late, build_parser, "benchmarks.element_gradient.study")

if __name__ == "__main__":
    run_script(main)
