"""The model of band gaps: python -m data.build.gap --db c2db.db

Trained on the gaps (PBE) of a database in C2DB's schema, test formulas left out; writes models/weights/gap.pt
with its errors on held-out formulas, and data/shards/dft_gaps.json: for the layers of the DFT data set the
gaps expected by trees that saw no layer of their formula, which the correction to DFT is judged with.
"""

import argparse
from pathlib import Path

from models.infra.files import ROOT
from models.infra.runs import run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--db", type=Path, required=True, help="ASE database with the key `gap` (eV)")
    parser.add_argument("--out", type=Path, default=ROOT / "models/weights/gap.pt", help="the model")
    return parser


def main() -> None:
    """Parses the flags, trains and measures."""
    args = build_parser().parse_args()
    from data.build.gap_model import run  # late: it takes seconds, and wrong flags none

    run(args.db, args.out)


if __name__ == "__main__":
    run_script(main)
