"""Stage 5: scores the generated structures and compares them with the baseline.

python test.py --cifs results/generated_cifs --out results
"""

import argparse
from pathlib import Path

from models.evaluation.settings import add_evaluation_flags
from models.infra.cli import add_system
from models.infra.runs import resolve, run_script

BASELINES = ("", "substitution_scores")  # folders of results_external/ with scored model-free baselines


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_evaluation_flags(
        parser,
        Path("results/generated_cifs"),
        [Path("results_external") / name / "metrics.csv" for name in BASELINES],
    )
    add_system(parser, out=Path("results"), resume="keep what OUT/*.jsonl already hold of these structures")
    return parser


def main() -> None:
    """Parses the flags and scores."""
    args = build_parser().parse_args()
    from geo_utils import run_evaluation  # late: torch takes seconds, and wrong flags none

    run_evaluation(resolve(args), "generated")


if __name__ == "__main__":
    run_script(main)
