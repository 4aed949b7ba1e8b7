"""Stage 1: trains DimeNet++ on adsorption energies, combines several into an ensemble, and measures it on
held-out hosts.
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
from models.infra.files import digest, plain, write_json
from models.infra.runs import resolve
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
from models.networks.training import Trainer, beside, refuse_other_arguments

# share of the validation errors that one calibrated spread covers: that of a Gaussian's standard deviation
COVERED = 0.683


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
    # a run that was killed after its last checkpoint left the figure an epoch behind
    plot_mae_curve(trainer.history, beside(args.out, ".loss.png"))
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


def pretrain(args: argparse.Namespace) -> None:
    """Reads the records, trains or combines, and reports.

    Args:
        args: parsed flags of pretrain_dimenet.py.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unreadable, or nothing is left to train on.
    """
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
