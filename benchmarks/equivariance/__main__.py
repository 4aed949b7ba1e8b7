"""What equivariance buys: the denoiser with its own heads, and the same network with heads that are not
equivariant, on ever less data.

    python -m benchmarks.equivariance --data data/processed_layers --out results/equivariance

Both see the same vectors and train for the same number of steps; the other one's heads may mix the Cartesian
components. Writes OUT/equivariance.csv and .png; what is trained is not trained again.
"""

import argparse
from functools import partial
from pathlib import Path

from models.infra.cli import real, whole
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/processed_layers"), help="folder written by stage 2"
    )
    parser.add_argument(
        "--shares", type=real(0, 1), nargs="+", default=[0.1, 0.3, 1.0], help="of the training layers"
    )
    parser.add_argument("--steps", type=whole(1), default=3000, help="optimiser steps of every training")
    parser.add_argument("--channels", type=whole(1), default=64, help="width of the scalar features")
    parser.add_argument("--vectors", type=whole(1), default=8, help="width of the vector features")
    parser.add_argument("--batch-atoms", type=whole(1), default=384, help="atoms a batch")
    parser.add_argument("--seed", type=whole(0), default=0, help="of weights, noise and the choice of layers")
    parser.add_argument("--out", type=Path, default=Path("results/equivariance"), help="folder")
    return parser


main = partial(run_late, build_parser, "benchmarks.equivariance.study")

if __name__ == "__main__":
    run_script(main)
