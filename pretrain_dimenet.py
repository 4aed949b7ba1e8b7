"""Stage 1: trains DimeNet++ on OC20-type LMDB files to predict the adsorption energy ΔE_H (eV).

    python pretrain_dimenet.py --lmdb data.lmdb --epochs 50 --out results/dimenet/dimenet.pt

Beside the checkpoint of the best epoch (`--out`, averaged weights) come what every training writes
(models/networks/training.py), `.loss.png` and `.parity.png`. Models of several seeds become one ensemble with
a calibrated spread by --combine.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from tqdm import tqdm

from models.crystals.split import hash_fraction
from models.datasets.adsorption import by_host, read_graphs, split_graphs
from models.evaluation.figures import parity, plot_mae_curve
from models.infra.cli import add_system, real, whole
from models.infra.files import digest, plain, write_json
from models.infra.runs import resolve, run_script
from models.networks.baselines import surrogate_report
from models.networks.dimenet import (
    Ensemble,
    PeriodicDimeNetPlusPlus,
    collate,
    dimenet_content,
    load_checkpoint,
    load_dimenet,
    predict,
    predict_spread,
    save_ensemble,
)
from models.networks.training import Trainer, add_optimisation, beside, refuse_other_arguments

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
# share of the validation errors that one calibrated spread covers: that of a Gaussian's standard deviation
COVERED = 0.683


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


# ---------------------------------------------------------------- build


def make_model(args: argparse.Namespace, train: list[Data]) -> PeriodicDimeNetPlusPlus:
    """New model that predicts the mean of the training targets, or the one to fine-tune."""
    if args.init:
        checkpoint = load_checkpoint(args.init)
        model = PeriodicDimeNetPlusPlus(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
        return model.to(args.device)
    y = targets(train)
    model = PeriodicDimeNetPlusPlus(
        hidden_channels=args.hidden_channels,
        num_blocks=args.blocks,
        cutoff=args.cutoff,
        int_emb_size=args.int_emb_size,
        out_emb_channels=args.out_emb_channels,
        target_mean=float(y.mean()) if args.target_mean is None else args.target_mean,
        target_std=(float(y.std()) or 1.0) if args.target_std is None else args.target_std,
    )
    return model.to(args.device)


def targets(graphs: list[Data]) -> np.ndarray:
    """[n] eV."""
    return np.array([graph.y for graph in graphs])


def fingerprint(graphs: list[Data]) -> str:
    """Digest of what is trained on, for --resume."""
    return digest(" ".join(f"{graph.sid} {graph.y!r}" for graph in graphs))


# ---------------------------------------------------------------- train


def epoch_order(graphs: list[Data], epoch: int, args: argparse.Namespace) -> list[int]:
    """Order of an epoch, which depends on seed and epoch alone; at most --per-host records of each host."""
    rng = np.random.default_rng([args.seed, epoch])
    drawn = [rng.permutation(indices)[: args.per_host or None] for indices in by_host(graphs).values()]
    return rng.permutation(np.concatenate(drawn)).tolist()


def train_epoch(trainer: Trainer, graphs: list[Data], epoch: int, args: argparse.Namespace) -> float:
    """One pass; returns the mean absolute error on the way, in eV."""
    model, order = trainer.model, epoch_order(graphs, epoch, args)
    noise = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
    starts = range(0, len(order), args.batch_size)
    error = 0.0
    for start in tqdm(starts, desc=f"epoch {epoch + 1}", unit="batch", leave=False):
        batch = [graphs[k] for k in order[start : start + args.batch_size]]
        data = collate(batch)
        data.pos = data.pos + args.jitter * torch.randn(data.pos.shape, generator=noise)  # [N, 3] Å
        y = torch.tensor([graph.y for graph in batch], device=args.device)  # [B] eV
        absolute = (model(data.to(args.device)) - y).abs()  # [B] eV
        # L1, because labels of a potential have outliers; by the spread of the targets, so that one --lr fits
        trainer.step(absolute.mean() / model.target_std, ", ".join(str(graph.sid) for graph in batch))
        error += float(absolute.detach().sum())
    return error / len(order)


def mae(model: PeriodicDimeNetPlusPlus, graphs: list[Data], batch_size: int) -> float:
    """Mean absolute error in eV."""
    return float(np.abs(predict(model, graphs, batch_size) - targets(graphs)).mean())


def train_model(
    model: PeriodicDimeNetPlusPlus, train: list[Data], val: list[Data], args: argparse.Namespace
) -> Path:
    """Trains, or continues with --resume; returns the checkpoint of the epoch of least validation error."""
    null = float(np.abs(targets(val) - targets(train).mean()).mean())
    steps_per_epoch = math.ceil(len(epoch_order(train, 0, args)) / args.batch_size)
    trainer = Trainer(model, args, steps_per_epoch, dimenet_content, fingerprint(train + val))
    for epoch in trainer.epochs():
        start = time.perf_counter()
        train_mae = train_epoch(trainer, train, epoch, args)
        val_mae = mae(trainer.average.module, val, args.batch_size)
        row = {
            "train_mae_eV": train_mae,
            "val_mae_eV": val_mae,
            "null_val_mae_eV": null,
            "seconds": time.perf_counter() - start,
        }
        best = trainer.end_epoch(row, judged_by="val_mae_eV")
        plot_mae_curve(trainer.history, beside(args.out, ".loss.png"))
        state = f"train {train_mae:.4f}, validation {val_mae:.4f} eV (mean of train {null:.4f})"
        print(f"epoch {epoch + 1}: {state}, {trainer.counts()}{'  best' if best else ''}", flush=True)
    return args.out


def combine(val: list[Data], args: argparse.Namespace) -> Path:
    """Makes an ensemble of --combine; returns its checkpoint.

    Its spread is scaled so that the share COVERED of the validation errors (of relaxed targets, where there
    are any) lies within it.
    """
    members = [member for path in args.combine for member in load_dimenet(path, args.device).members]
    ensemble = Ensemble(members)
    if len(members) > 1:
        judged = [graph for graph in val if not graph.rigid] or val
        energies, spreads = predict_spread(ensemble, judged, args.batch_size)
        ensemble.spread_scale = float(np.quantile(np.abs(energies - targets(judged)) / spreads, COVERED))
    save_ensemble(args.out, ensemble, args=plain(vars(args)))
    print(f"{len(members)} members; the spread is scaled by {ensemble.spread_scale:.2f}")
    return args.out


# ---------------------------------------------------------------- report


def report(ensemble: Ensemble, train: list[Data], test: list[Data], args: argparse.Namespace) -> None:
    """Errors on held-out hosts beside the model-free baselines, rigid and relaxed targets apart:
    `.metrics.json` and `.parity.png`.
    """
    energies, spreads = predict_spread(ensemble, test, args.batch_size)
    found = surrogate_report(energies, spreads, train, test, args.seed)
    write_json(beside(args.out, ".metrics.json"), found)
    if not found:
        print("no test MAE: no host of these records falls into the test split")
        return
    panels = {}
    for level, row in found.items():
        print(
            f"test, {level}: MAE of the best epoch {row['mae']:.3f} eV on {row['n']} records of "
            f"{row['hosts']} hosts; always the mean {row['mae_mean']:.3f}, extra-trees {row['mae_trees']:.3f}"
        )
        chosen = np.array([graph.rigid == (level == "rigid") for graph in test])
        panels[level] = (targets(test)[chosen], energies[chosen], "eV")
    parity(panels, "ΔE_H of the LMDB (eV)", "DimeNet++ (eV)", beside(args.out, ".parity.png"))


def main(argv: list[str] | None = None) -> None:
    """Reads the records, trains or combines, and reports."""
    args = parse_args(argv)
    refuse_other_arguments(args)
    first_weights = args.init or (args.combine or [None])[0]
    cutoff = load_dimenet(first_weights).cutoff if first_weights else args.cutoff
    args = resolve(args, out_is_file=True)
    graphs = read_graphs(args.lmdb, cutoff, args.target, args.start, args.adsorbate)
    train, val, test = split_graphs(graphs)
    train = [graph for graph in train if hash_fraction(f"share {graph.host}") < args.share]
    if not train:
        raise ValueError(f"--share {args.share} leaves no host to train on")

    if args.combine:
        checkpoint = combine(val, args)
    else:
        checkpoint = train_model(make_model(args, train), train, val, args)
    report(load_dimenet(checkpoint, args.device), train, test, args)
    print(f"wrote {checkpoint}")


if __name__ == "__main__":
    run_script(main)
