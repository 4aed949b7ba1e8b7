"""Stage 5: scores the generated structures and compares them with the baseline.

python test.py --cifs results/generated_cifs --out results
"""

import argparse
from pathlib import Path

from geo_utils import run_evaluation
from models.evaluation.settings import add_evaluation_flags
from models.infra.cli import add_system, resolve

NULLS = ("", "substitution_scores")  # folders of scored sets that no model had a hand in


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_evaluation_flags(
        parser,
        Path("results/generated_cifs"),
        [Path("results_external") / name / "metrics.csv" for name in NULLS],
    )
    add_system(parser, out=Path("results"), resume="keep what OUT/*.jsonl already hold of these structures")
    return parser


def main():
    run_evaluation(resolve(build_parser().parse_args()), "generated")


if __name__ == "__main__":
    main()
