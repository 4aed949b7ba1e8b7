"""Stage 3: trains DenoisingEGNN with the joint classifier-free-guidance loss, and measures its heads on the
test split.
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import torch
from torch_geometric.data import Data
from tqdm import tqdm

from models.datasets.graphs import labelled_layers, off_equilibrium_graphs
from models.evaluation.figures import plot_loss_curve
from models.infra.files import load_checkpoint, read_rows, write_json
from models.infra.runs import resolve
from models.networks.diffusion import Diffusion, joint_loss, off_equilibrium_loss
from models.networks.egnn import DenoisingEGNN
from models.networks.joint import (
    STARTS,
    Joint,
    Means,
    TrainingData,
    batches,
    head_errors,
    lattice_statistics,
    random_batch,
    sample_metrics,
    silence_untaught_heads,
    symmetry_of,
    validate,
)
from models.networks.layers import collate
from models.networks.settings import LOSS_WEIGHTS
from models.networks.training import Trainer, beside, refuse_other_arguments

# Of AdamW. The second moment over 100 steps, not 1,000: the scale of the gradient changes with the noise
# levels that a batch happens to draw, and a run has only ten thousand steps.
BETAS = (0.9, 0.99)
DRAWN = tuple(f"sample_{start}_{what}" for start in STARTS for what in ("match", "symmetric", "rmsd_A"))


# ---------------------------------------------------------------- build


def read_data(args: argparse.Namespace) -> TrainingData:
    """Training and validation graphs of all folders, and the off-equilibrium ones.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file holds no graphs, or none that can be trained on.
    """
    train, val = (labelled_layers(args.data, split) for split in ("train", "val"))
    bent = off_equilibrium_graphs(args.off_equilibrium, "train") if args.off_equilibrium.name else []
    return TrainingData(train[: args.limit or None], val, bent)


def build(data: TrainingData, args: argparse.Namespace) -> tuple[Joint, Diffusion]:
    """The network, new or from --init, and the noise schedule.

    Raises:
        FileNotFoundError, ValueError: --init or --train-only cannot be followed.
    """
    mean, std = lattice_statistics(data.train)
    diffusion = Diffusion(lattice_mean=mean, lattice_std=std)
    network = DenoisingEGNN(args.channels, args.vectors, args.trunk, args.conditional, args.neighbours)
    if args.init:
        load_weights(network, diffusion, args.init)
    else:
        silence_untaught_heads(network, data, loss_weights(args))
    names = [name for name, _ in network.named_children()]
    if missing := set(args.train_only) - set(names):
        raise ValueError(f"--train-only {' '.join(missing)}: the model has {', '.join(names)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not args.train_only or name.split(".")[0] in args.train_only)
    sizes = f"{len(data.train)} training and {len(data.val)} validation graphs"
    print(f"{sizes}, {sum(p.numel() for p in network.parameters())} parameters")
    return Joint(network, data.sources).to(args.device), diffusion.to(args.device)


def load_weights(network: DenoisingEGNN, diffusion: Diffusion, path: Path) -> None:
    """Weights of an earlier training.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no such weights.
    """
    saved = load_checkpoint(path)
    try:
        network.load_state_dict(saved["model"])
        diffusion.load_state_dict(saved["diffusion"])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--init {path} holds no weights of this model ({reason})") from error


def loss_weights(args: argparse.Namespace) -> dict[str, float]:
    """The weight of each term."""
    return {name: getattr(args, f"weight_{name}") for name in LOSS_WEIGHTS}


# ---------------------------------------------------------------- train


def train_epoch(
    trainer: Trainer, diffusion: Diffusion, data: TrainingData, epoch: int, args: argparse.Namespace
) -> dict[str, float]:
    """One pass; returns the mean of the loss and of its terms, over the steps that were taken."""
    joint, weights, means = trainer.model, loss_weights(args), Means()
    generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
    bent_atoms = sum(graph.num_nodes for graph in data.bent)
    bent_count = max(1, round(args.off_equilibrium_atoms * len(data.bent) / max(1, bent_atoms)))
    order = batches(data.train, args.batch_atoms, generator)
    for index in tqdm(order, desc=f"epoch {epoch + 1}/{args.epochs}", mininterval=5, leave=False):
        batch = [data.train[k] for k in index]
        layers, labels = (part.to(args.device) for part in collate(batch))
        labels = labels.replace(e_hull=labels.e_hull - joint.offsets(batch))
        symmetry = None
        if args.symmetric_share and torch.rand(1, generator=generator).item() < args.symmetric_share:
            symmetry = symmetry_of(batch).to(args.device)
        loss, terms = joint_loss(
            joint.network, diffusion, layers, labels, weights, args.drop, generator, args.drop_all, symmetry
        )
        if data.bent:
            batch = random_batch(data.bent, bent_count, generator)
            layers, labels = (part.to(args.device) for part in collate(batch))
            e_hull = labels.e_hull - joint.offsets(batch).detach()
            terms["off_equilibrium"] = off_equilibrium_loss(
                joint.network, diffusion, layers, e_hull, generator
            )
            loss = loss + weights["off_equilibrium"] * terms["off_equilibrium"]
        if trainer.step(loss, ", ".join(data.train[k].uid for k in index)):
            means.add({"total": loss, **terms}, len(index))
    return means.named("train_")


def drawn_row(network, diffusion: Diffusion, data: TrainingData, epoch: int, args) -> dict[str, float]:
    """Figures of what the network draws, NaN in the epochs that are not asked for."""
    if epoch % args.sample_every and epoch != args.epochs:
        return dict.fromkeys(DRAWN, math.nan)
    found = sample_metrics(network, diffusion, data.val, args.device)
    return {name: found[name.removeprefix("sample_")] for name in DRAWN}


def train_model(joint: Joint, diffusion: Diffusion, data: TrainingData, args: argparse.Namespace) -> Trainer:
    """Trains, or continues with --resume; OUT holds the averaged weights of the best epoch."""

    def content(average: Joint) -> dict:
        return {
            "model": average.network.state_dict(),
            "hparams": average.network.hparams,
            "diffusion": diffusion.state_dict(),
            "diffusion_hparams": diffusion.hparams,
            "e_hull_offsets_eV_per_atom": average.by_source(),
        }

    steps_per_epoch = len(batches(data.train, args.batch_atoms, torch.Generator().manual_seed(args.seed)))
    trainer = Trainer(joint, args, steps_per_epoch, content, data.fingerprint(), BETAS)
    for epoch in trainer.epochs():
        row = train_epoch(trainer, diffusion, data, epoch, args)
        average = trainer.average.module
        found = validate(average.network, diffusion, average.on_reference(data.val), args, loss_weights(args))
        row |= {f"val_{name}": value for name, value in found.items()}
        if args.sample_every:
            row |= drawn_row(average.network, diffusion, data, epoch + 1, args)
        trainer.end_epoch(row, judged_by="val_total")
        plot_loss_curve(trainer.history, args.figure)
        state = f"train {row.get('train_total', math.nan):.4f} val {row['val_total']:.4f}"
        print(f"epoch {epoch + 1}: {state}, {trainer.counts()}", flush=True)
    # a run that was killed after its last checkpoint left the figure an epoch behind
    plot_loss_curve(trainer.history, args.figure)
    return trainer


# ---------------------------------------------------------------- report


def held_out(sources: list[str], folders: list[Path]) -> list[Data]:
    """Test graphs of the sources that were trained on; empty, and said why, where there are none."""
    try:
        graphs = labelled_layers(folders, "test")
    except (FileNotFoundError, ValueError) as error:
        print(f"the heads are not measured on held-out layers: {error}")
        return []
    foreign = Counter(graph.source for graph in graphs if graph.source not in sources)
    for source, count in foreign.items():
        print(f"left out of the test: {count} layers of {source}, on whose energies nothing was trained")
    return [graph for graph in graphs if graph.source in sources]


def report(trainer: Trainer, data: TrainingData, args: argparse.Namespace) -> None:
    """Errors of the heads of the best epoch on the test split: OUT.metrics.json."""
    found = {
        "best_validation_loss": min(row["val_total"] for row in trainer.history),
        "epochs": len(trainer.history),
    }
    joint = trainer.average.module
    joint.network.load_state_dict(load_checkpoint(args.out, args.device)["model"])
    found["e_hull_offsets_eV_per_atom"] = joint.by_source()
    if test := joint.on_reference(held_out(joint.sources, args.data)):
        found["heads_on_test"] = head_errors(joint.network, joint.on_reference(data.train), test, args)
    bent = off_equilibrium_graphs(args.off_equilibrium, "test") if data.bent else []
    if bent:
        found["heads_on_test_off_equilibrium"] = head_errors(joint.network, data.bent, bent, args)
    write_json(beside(args.out, ".metrics.json"), found)
    print(f"held-out heads at t = 0: {found}")


def plot(log: Path, figure: Path) -> None:
    """Loss curve of an earlier training's log."""
    history = []
    for row in read_rows(log):
        history.append({name: float(value) for name, value in row.items()})
    plot_loss_curve(history, figure)


def train(args: argparse.Namespace) -> None:
    """Reads the graphs, builds the network, trains it, and measures its heads; with --plot only draws.

    Args:
        args: parsed flags of optimization.py.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unreadable, or holds nothing to train on.
    """
    if args.plot:
        return plot(args.plot, args.figure)
    refuse_other_arguments(args)
    args = resolve(args, out_is_file=True)
    data = read_data(args)
    joint, diffusion = build(data, args)
    trainer = train_model(joint, diffusion, data, args)
    report(trainer, data, args)
