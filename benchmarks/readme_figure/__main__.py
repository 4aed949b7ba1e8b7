"""The README's figure: a generated layer with its hydrogen beside the hit rates of the study.

python -m benchmarks.readme_figure

Reads results/published: study.csv, top20 (the pose, and ΔG_H by the potential), and dft_single_points.csv
(ΔE_H of that pose by DFT). Nothing in the picture is computed here but the shading.
"""

import argparse
from pathlib import Path

from models.infra.files import ROOT
from models.infra.runs import run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/published/readme.png", help="PNG to write"
    )
    return parser


def main() -> None:
    """Parses the flags and runs the study."""
    args = build_parser().parse_args()
    from benchmarks.readme_figure.study import run  # late: torch takes seconds, and wrong flags none

    run(args)


if __name__ == "__main__":
    run_script(main)
