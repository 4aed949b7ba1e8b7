"""Error of DimeNet++ on held-out hosts against the number of training hosts, beside the nulls trained on the
same hosts.

    python -m benchmarks.learning_curve --out learning_curve -- --lmdb data/her2d_h_*.lmdb --epochs 15

What follows `--` goes to pretrain_dimenet.py. Writes OUT/learning_curve.csv and .png; a share that is done is
not trained again.
"""

import argparse
from pathlib import Path

import pretrain_dimenet
from models.infra.cli import real
from models.infra.files import read_json, write_rows
from models.infra.runs import run_script

CURVES = {"mae": "DimeNet++", "mae_trees": "extra-trees", "mae_median": "always the median"}


def train(share: float, out: Path, arguments: list[str]) -> dict:
    """Metrics of a model trained on a share of the hosts."""
    path = out / f"share_{share:g}.pt"
    metrics = path.with_suffix(".metrics.json")
    if not metrics.exists():
        pretrain_dimenet.main([*arguments, "--share", str(share), "--out", str(path), "--resume"])
    return read_json(metrics)["rigid"]


def draw(rows: list[dict], path: Path):
    """MAE against hosts, both logarithmic."""
    from models.evaluation.figures import plt, save

    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, label in CURVES.items():
        axis.plot([row["train_hosts"] for row in rows], [row[name] for row in rows], "o-", label=label)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="training hosts",
        ylabel="MAE of ΔE_H on held-out hosts (eV)",
        title=f"{rows[0]['n']} sites of {rows[0]['hosts']} hosts",
    )
    axis.legend(frameon=False)
    save(figure, path)


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--shares",
        type=real(1e-6, 1),
        nargs="+",
        default=[0.125, 0.25, 0.5, 1.0],
        help="of the training hosts",
    )
    parser.add_argument("--out", type=Path, default=Path("results/learning_curve"), help="folder")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="-- and the arguments of pretrain_dimenet.py"
    )
    return parser


def main() -> None:
    """Trains on each share, and draws the curve."""
    args = build_parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [{"share": share, **train(share, args.out, args.arguments[1:])} for share in sorted(args.shares)]
    write_rows(args.out / "learning_curve.csv", rows, list(rows[0]))
    draw(rows, args.out / "learning_curve.png")


if __name__ == "__main__":
    run_script(main)
