"""How far ΔE_H by DFT depends on its settings: python -m benchmarks.dft_convergence

One setting after another is changed from the reference on a few small hosts of the embedded set; every result
is appended to data/shards/dft_convergence.jsonl and none computed again. Writes
results/published/dft_convergence.csv.
"""

import argparse
from functools import partial

from benchmarks.dft_convergence.changes import CHANGES, HOSTS
from models.infra.cli import real
from models.infra.runs import run_late, run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--changes", nargs="*", choices=CHANGES, default=list(CHANGES), help="which of them")
    parser.add_argument("--hosts", nargs="*", choices=HOSTS, default=list(HOSTS), help="which hosts")
    parser.add_argument(
        "--hours", type=real(0), default=1.0, help="no new calculation is started after this time"
    )
    return parser


main = partial(run_late, build_parser, "benchmarks.dft_convergence.study")

if __name__ == "__main__":
    run_script(main)
