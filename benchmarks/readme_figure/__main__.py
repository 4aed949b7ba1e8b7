"""The README's figure: a generated layer with its hydrogen beside the hit rates of the study.

python -m benchmarks.readme_figure

Reads results/published: study.csv, top20 (the pose, and ΔG_H by the potential), and dft_single_points.csv
(ΔE_H of that pose by DFT). Nothing in the picture is computed here but the shading.
"""

import argparse
from functools import partial
from pathlib import Path

from models.infra.files import ROOT
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/published/readme.png", help="PNG to write"
    )
    return parser


main = partial(run_late, build_parser, "benchmarks.readme_figure.study")

if __name__ == "__main__":
    run_script(main)
