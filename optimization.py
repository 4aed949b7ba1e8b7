"""Stage 3: trains DenoisingEGNN with the joint classifier-free-guidance loss on the graphs of stage 2.

    python optimization.py --data data/c2db --epochs 120 --out models/weights/best_diffusion_model.pth

Several folders are trained on together (`--data data/c2db data/processed_layers`). Their labels of E_hull may
come from different methods: the head keeps to the first folder's, every other source has its own offset.
"""

import argparse
from pathlib import Path

from models.infra.cli import add_optimisation, add_system, real, whole
from models.infra.files import shipped
from models.infra.runs import run_script
from models.networks.settings import LOSS_WEIGHTS

DEFAULTS = dict(
    epochs=100,  # the best epoch of the shipped weights' last run was its last, the 72nd
    lr=1e-3,  # usual for Adam at this width
    warmup=0.04,  # 500 steps on C2DB: Adam's second moments are worth nothing in the first steps
    weight_decay=1e-4,  # hardly any: noise and masks are drawn anew each time, which regularises enough
    clip=1.0,  # rare noise levels must not set the direction: the log says how many steps it caps
    ema=0.999,  # averages over 1,000 steps, some seven epochs of C2DB
)


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[Path("data/processed_layers")],
        help="folders written by stage 2; the E_hull head keeps to the first one's energies",
    )
    data.add_argument(
        "--limit", type=whole(0), default=0, help="train on the first so many graphs only, 0 for all"
    )
    data.add_argument(
        "--off-equilibrium",
        type=Path,
        default=shipped("data/perturbed.pt"),
        help="bent layers with energies, for the E_hull head alone; '' for none",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--channels", type=whole(1), default=128, help="width of the scalar features")
    model.add_argument("--vectors", type=whole(1), default=16, help="width of the vector features")
    model.add_argument("--trunk", type=whole(1), default=3, help="layers below the condition")
    model.add_argument("--conditional", type=whole(1), default=2, help="layers above the condition")
    model.add_argument("--neighbours", type=whole(1), default=20, help="images that each atom sees")
    model.add_argument("--init", type=Path, help="start from the weights of this checkpoint")
    add_loss(add_optimisation(parser, **DEFAULTS))
    add_system(
        parser,
        out=Path("results/best_diffusion_model.pth"),
        resume="continue from OUT's .last.pth to the same result",
    )
    parser.add_argument("--figure", type=Path, default=Path("results/loss_curve.png"), help="loss curve")
    parser.add_argument(
        "--plot", type=Path, metavar="LOG.csv", help="only draw the loss curve of an earlier training's log"
    )
    return parser


def add_loss(group: argparse._ArgumentGroup) -> None:
    """Flags of the batches and of the joint loss."""
    group.add_argument("--batch-atoms", type=whole(1), default=512, help="atoms a batch, padding included")
    # about a third of the atoms of a batch: they teach one head, and cost only the trunk
    group.add_argument(
        "--off-equilibrium-atoms", type=whole(1), default=192, help="atoms of bent layers beside each batch"
    )
    group.add_argument(
        "--drop", type=real(0, 1), default=0.15, help="probability that a condition is dropped by itself"
    )
    # by themselves all three are absent in 0.3 % of the graphs: guidance needs the unconditional model too
    group.add_argument(
        "--drop-all", type=real(0, 1), default=0.1, help="share of the graphs with all conditions dropped"
    )
    # for generation inside a layer group; off, as the shipped weights were trained without
    group.add_argument(
        "--symmetric-share",
        type=real(0, 1),
        default=0.0,
        help="share of the batches whose noise keeps the layer group of each layer",
    )
    group.add_argument(
        "--sample-every",
        type=whole(0),
        default=10,
        help="epochs between drawings of a few validation layers, for the log alone; 0 for never",
    )
    group.add_argument(
        "--train-only",
        nargs="*",
        default=[],
        metavar="NAME",
        help="train these parts alone, e.g. heads uncertainty",
    )
    for name, value in LOSS_WEIGHTS.items():
        flag = f"--weight-{name.replace('_', '-')}"
        group.add_argument(flag, type=real(0), default=value, help=f"weight of the {name} term")


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and trains."""
    args = build_parser().parse_args(argv)
    from models.stages.joint_training import train  # late: torch takes seconds, and wrong flags none

    train(args)


if __name__ == "__main__":
    run_script(main)
