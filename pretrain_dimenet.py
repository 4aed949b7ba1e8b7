"""Stage 1: trains DimeNet++ on OC20-type LMDB files to predict the adsorption energy ΔE_H (eV).

    python pretrain_dimenet.py --lmdb data.lmdb --epochs 50 --out results/dimenet/dimenet.pt

Beside the checkpoint of the best epoch (`--out`, averaged weights) come what every training writes
(models/networks/training.py), `.loss.png` and `.parity.png`. Models of several seeds become one ensemble with
a calibrated spread by --combine.
"""

import argparse
from pathlib import Path

from models.infra.cli import add_optimisation, add_system, real, whole
from models.infra.runs import run_script

# DimeNet++ on the 10k split of IS2RE as configured by the Open Catalyst Project (there with a step-wise
# learning rate and a sum over all atoms; here a cosine and the local readout).
OC20 = dict(
    adsorbate="all",
    per_host=0,
    jitter=0.0,
    epochs=15,
    batch_size=2,
    lr=1e-4,
    weight_decay=1e-4,
    ema=0.999,
    hidden_channels=256,
    blocks=3,
    cutoff=6.0,
    int_emb_size=64,
    out_emb_channels=192,
    target_mean=-1.525913953781128,
    target_std=2.279365062713623,
)
DEFAULTS = dict(
    epochs=30,  # 17,000 steps on the embedded hosts, ten core-minutes; the cosine ends with the last of them
    lr=1e-3,  # usual for Adam at this width; OC20's 1e-4 belongs to its batches of two
    warmup=0.05,  # Adam's second moments are worth nothing in the first steps
    weight_decay=1e-2,  # torch's default for AdamW: a few hundred hosts are learned by heart otherwise
    clip=10.0,  # a guard against broken records, no regulariser: the log says how many steps it caps
    ema=0.998,  # averages over 500 steps, about one epoch of the embedded hosts
)


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description="Stage 1: pretrain DimeNet++ on adsorption energies from OC20-type LMDB files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data(parser)
    add_model(parser)
    optimisation = add_optimisation(parser, **DEFAULTS)
    optimisation.add_argument("--batch-size", type=whole(1), default=16, help="graphs a step")
    # H relaxes by tenths of an Å from its start: a shift of 0.05 Å must not matter to the relaxed energy
    optimisation.add_argument(
        "--jitter", type=real(0, 1), default=0.05, help="Å, noise on the positions whenever a graph is seen"
    )
    add_system(
        parser,
        out=Path("results/dimenet/dimenet.pt"),
        resume="continue an interrupted run with the same arguments from OUT's .last.pt",
    )
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the records."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--lmdb", nargs="+", required=True, metavar="PATH", help="LMDB files, or directories of *.lmdb"
    )
    data.add_argument(
        "--target", default="y_relaxed", help="field of a record with the energy to learn, in eV"
    )
    data.add_argument(
        "--start",
        choices=["initial", "relaxed"],
        default="initial",
        help="geometry to predict from: pos or pos_relaxed",
    )
    data.add_argument(
        "--adsorbate",
        choices=["H", "all"],
        default="H",
        help="H: only records whose tagged atoms are hydrogen (untagged records are kept)",
    )
    data.add_argument(
        "--share",
        type=real(1e-6, 1),
        default=1.0,
        help="train on this share of the hosts only (for learning curves)",
    )
    data.add_argument(
        "--per-host",
        type=whole(0),
        default=4,
        help="records of a host that an epoch draws, 0 for all: hosts teach, frames do not",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Flags that make the model, or take one that is there."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--preset",
        choices=["none", "oc20"],
        default="none",
        help="oc20: defaults as published with OC20 (other flags still win)",
    )
    model.add_argument("--hidden-channels", type=whole(1), default=64, help="width of the messages")
    model.add_argument(
        "--blocks", type=whole(1), default=1, help="interaction blocks; a second costs four times the time"
    )
    model.add_argument("--cutoff", type=real(1, 20), default=5.0, help="neighbour cutoff in Å")
    model.add_argument("--int-emb-size", type=whole(1), default=32, help="width of the triplet interaction")
    model.add_argument("--out-emb-channels", type=whole(1), default=128, help="width of the per-atom output")
    model.add_argument("--target-mean", type=real(), help="eV; None: mean of the training targets")
    model.add_argument(
        "--target-std",
        type=real(1e-9),
        help="eV; None: standard deviation of the training targets",
    )
    model.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="fine-tune: start from its weights, model and normalisation (model flags are ignored)",
    )
    model.add_argument(
        "--combine",
        nargs="+",
        metavar="CHECKPOINT",
        help="train nothing: make these models one ensemble, calibrate and measure it",
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, those of --preset as defaults."""
    parser = build_parser()
    if parser.parse_known_args(argv)[0].preset == "oc20":
        parser.set_defaults(**OC20)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and trains."""
    args = parse_args(argv)
    from models.stages.pretraining import pretrain  # late: torch takes seconds, and wrong flags none

    pretrain(args)


if __name__ == "__main__":
    run_script(main)
