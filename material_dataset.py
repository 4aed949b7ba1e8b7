"""Stage 2: a C2DB database (ASE db) becomes cleaned 2D graphs labelled with ΔG_H.

python material_dataset.py --db c2db.db --dimenet models/weights/dimenet.pt --out data/c2db
"""

import argparse
from pathlib import Path

from models.crystals.thresholds import CORRECTION
from models.infra.cli import add_system, real, whole
from models.infra.files import shipped
from models.infra.runs import run_script


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--db", type=Path, default=shipped("data/her2d.db"), help="ASE database in C2DB's schema"
    )
    data.add_argument("--max-atoms", type=whole(1), default=20, help="drop larger cells")
    data.add_argument("--max-e-hull", type=real(), default=0.3, help="drop rows above this, eV/atom")
    data.add_argument("--limit", type=whole(0), default=0, help="read only the first so many rows, 0 for all")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--dimenet", type=Path, default=shipped("models/weights/dimenet.pt"), help="checkpoint of stage 1"
    )
    model.add_argument("--correction", type=real(), default=CORRECTION, help="ΔE_ZPE − TΔS in ΔG_H, eV")
    model.add_argument(
        "--labeller",
        choices=("dimenet", "potential"),
        default="dimenet",
        help="potential: H and layer relaxed with the potential at the best site, ten seconds a layer",
    )
    model.add_argument(
        "--check",
        type=whole(0),
        default=0,
        help="compare the labels of so many random held-out layers with the potential's",
    )
    model.add_argument(
        "--potential",
        default="auto",
        help="potential of --labeller potential and --check (models/physics/potentials.py)",
    )
    model.add_argument("--potential-checkpoint", type=Path, help="MatterSim checkpoint file")
    model.add_argument("--batch-size", type=whole(1), default=64, help="adsorption graphs a batch")
    model.add_argument(
        "--synthesis-out",
        type=Path,
        help="train the positive-unlabelled synthesizability classifier into this file",
    )
    add_system(
        parser, out=Path("data/processed_layers"), resume="labels already in OUT/delta_g_*.jsonl are kept"
    )
    parser.add_argument(
        "--jobs", type=whole(1), default=2, help="processes of the potential, one thread each"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and labels."""
    args = build_parser().parse_args(argv)
    from models.stages.labelling import label  # late: torch takes seconds, and wrong flags none

    label(args)


if __name__ == "__main__":
    run_script(main)
