"""How well the 2D gate tells monolayers from everything else, counted on structures whose truth is known by
construction.

python -m benchmarks.gates --db data/her2d.db
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
        description="confusion table of the 2D gate", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--db", type=Path, default=shipped("data/her2d.db"), help="ASE database of monolayers, e.g. C2DB"
    )
    parser.add_argument("--count", type=whole(1), default=300, help="at most so many structures of each kind")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sample and of the rattling")
    return parser


main = partial(run_late, build_parser, "benchmarks.gates.study")

if __name__ == "__main__":
    run_script(main)
