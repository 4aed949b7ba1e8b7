"""Hydrogen on monolayers by DFT: python -m data.build.dft --hours 2

One record a host and pose is appended to data/shards/dft.jsonl as it comes: SevenNet relaxes layer and
hydrogen, DFT takes its energy where SevenNet put it. The order of work is fixed and mixes its sources, so
that whatever is done is a sample of the whole; what is in the shard is never computed again. What failed is a
record with its reason.
"""

import argparse
from pathlib import Path

from models.infra.cli import real
from models.infra.files import ROOT
from models.infra.runs import run_script

SAMPLES = ("random", "targeted", "literature", "top20", "magnetic")


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--hours", type=real(0), default=1.0, help="no new calculation is started after this time"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "data/shards/dft.jsonl", help="where the records go"
    )
    evaluated = "dft.jsonl of evaluations whose records are added before the work begins"
    parser.add_argument("--evaluated", type=Path, nargs="*", default=[], help=evaluated)
    parser.add_argument("--only", nargs="*", choices=SAMPLES, help="only these samples")
    parser.add_argument(
        "--seconds",
        type=real(1),
        default=600,
        help="most processor time of one calculation; what ran out of less is tried again",
    )
    parser.add_argument("--potential", default="sevennet", help="potential that relaxes layers and hydrogen")
    parser.add_argument(
        "--dft-calculator", default="gpaw", help="gpaw, or module:factory of any ASE calculator"
    )
    return parser


def main() -> None:
    """Parses the flags and computes."""
    args = build_parser().parse_args()
    from data.build.dft.records import run  # late: it takes seconds, and wrong flags none

    run(args)


if __name__ == "__main__":
    run_script(main)
