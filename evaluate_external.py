"""Stage 5, for anybody's structures: scores a folder of CIFs with the same evaluator and compares it with
ours.

python evaluate_external.py --cifs DIR --out results_external
"""

import argparse
from pathlib import Path

from models.evaluation.settings import add_evaluation_flags
from models.infra.cli import add_system
from models.infra.files import shipped
from models.infra.runs import resolve, run_script


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_evaluation_flags(parser, shipped("results_external/random_baseline"), [Path("results/metrics.csv")])
    add_system(
        parser, out=Path("results_external"), resume="keep what OUT/*.jsonl already hold of these structures"
    )
    return parser


def main() -> None:
    """Parses the flags and scores."""
    args = build_parser().parse_args()
    from geo_utils import run_evaluation  # late: torch takes seconds, and wrong flags none

    run_evaluation(resolve(args), args.cifs.name)


if __name__ == "__main__":
    run_script(main)
