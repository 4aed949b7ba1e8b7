"""Stage 3: trains DenoisingEGNN with the joint classifier-free-guidance loss on the graphs of stage 2.

python optimization.py --data data/c2db --epochs 120 --out models/weights/best_diffusion_model.pth
"""

import argparse
import math
from copy import deepcopy
from pathlib import Path

import torch
from tqdm import tqdm

from models.datasets.graphs import LayerGraphs, off_equilibrium_graphs
from models.evaluation.figures import plot_loss_curve
from models.infra.cli import add_system, resolve
from models.infra.files import plain, read_rows, save_checkpoint, write_json, write_rows
from models.networks.diffusion import (
    LOSS_WEIGHTS,
    MAX_E_HULL,
    Diffusion,
    joint_loss,
    off_equilibrium_loss,
    raw_lattice,
)
from models.networks.egnn import DenoisingEGNN
from models.networks.layers import collate

VALIDATION_SEED = 1234  # the same noise at every validation, so that epochs can be compared


def batches(graphs, atoms_per_batch: int, generator=None):
    """Index lists of about `atoms_per_batch` atoms, of like size so that little is padded; shuffled if
    seeded.
    """
    sizes = torch.tensor([g.num_nodes for g in graphs], dtype=torch.float32)
    jitter = torch.rand(len(sizes), generator=generator) * 0.9 if generator else torch.zeros(len(sizes))
    out, current = [], []
    for k in torch.argsort(sizes + jitter).tolist():
        if current and (len(current) + 1) * sizes[k] > atoms_per_batch:
            out.append(current)
            current = []
        current.append(k)
    out.append(current)
    order = torch.randperm(len(out), generator=generator).tolist() if generator else range(len(out))
    return [out[k] for k in order]


def lattice_statistics(graphs):
    """Mean and standard deviation [3] of the unscaled lattice over the training set."""
    cells = torch.cat([g.cell for g in graphs])[:, :2, :2]
    raw = raw_lattice(cells, torch.tensor([g.num_nodes for g in graphs]))
    return raw.mean(0), raw.std(0).clamp(min=0.05)


@torch.no_grad()
def validate(model, diffusion, graphs, args, weights):
    """Mean loss and terms over a split, with the same noise every time."""
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    sums, count = {}, 0
    for index in batches(graphs, args.batch_atoms):
        layers, labels = collate([graphs[k] for k in index])
        total, terms = joint_loss(
            model, diffusion, layers.to(args.device), labels.to(args.device), weights, 0.0, generator
        )
        for name, value in {"total": total, **terms}.items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(index)
        count += len(index)
    return {name: value / count for name, value in sums.items()}


@torch.no_grad()
def head_errors(model, train, test, args) -> dict:
    """MAE of the property heads on clean held-out structures (t = 0), beside the median of the training
    labels.
    """
    model.eval()
    known = collate(train)[1]
    predicted, labels = [], []
    for index in batches(test, args.batch_atoms):
        layers, label = collate([test[k] for k in index])
        predicted.append(
            model.properties(layers.to(args.device), torch.zeros(len(index), device=args.device)).to("cpu")
        )
        labels.append(label.replace(e_hull=label.e_hull.clamp(max=MAX_E_HULL)))
    mean = lambda values: float(values.abs().nanmean())
    errors = {}
    for field, unit in {"delta_g_h": "eV", "e_hull": "eV_per_atom", "delta_g_h_std": "eV"}.items():
        guess, label = (torch.cat([getattr(rows, field) for rows in found]) for found in (predicted, labels))
        count = int((~label.isnan()).sum())
        if count:
            median = getattr(known, field).nanmedian().clamp(max=MAX_E_HULL)
            errors[f"{field}_{unit}"] = {
                "mae": mean(guess - label),
                "mae_of_median": mean(median - label),
                "n": count,
            }
    return errors


def random_batch(graphs, count: int, generator):
    """`count` randomly chosen graphs, padded, and their labels."""
    return collate([graphs[k] for k in torch.randint(len(graphs), (count,), generator=generator).tolist()])


def build_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, default=Path("data/processed_layers"), help="folder written by stage 2"
    )
    data.add_argument(
        "--limit", type=int, default=0, help="train on the first so many graphs only, 0 for all"
    )
    data.add_argument(
        "--off-equilibrium",
        type=Path,
        default=Path("data/perturbed.pt"),
        help="bent layers with energies, for the E_hull head alone; '' for none",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--channels", type=int, default=128, help="width of the scalar features")
    model.add_argument("--vectors", type=int, default=16, help="width of the vector features")
    model.add_argument("--trunk", type=int, default=3, help="layers below the condition")
    model.add_argument("--conditional", type=int, default=2, help="layers above the condition")
    model.add_argument("--neighbours", type=int, default=20, help="images that each atom sees")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--epochs", type=int, default=100, help="passes over the training set")
    optimisation.add_argument("--batch-atoms", type=int, default=512, help="atoms a batch, padding included")
    optimisation.add_argument(
        "--off-equilibrium-atoms", type=int, default=192, help="atoms of bent layers beside each batch"
    )
    optimisation.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of AdamW")
    optimisation.add_argument(
        "--warmup", type=int, default=500, help="steps of linear warm-up, then cosine to 1 %%"
    )
    optimisation.add_argument("--clip", type=float, default=1.0, help="gradient norm")
    optimisation.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    optimisation.add_argument(
        "--drop", type=float, default=0.15, help="probability that a condition is dropped"
    )
    optimisation.add_argument("--init", type=Path, help="start from the weights of this checkpoint")
    optimisation.add_argument(
        "--train-only",
        nargs="*",
        default=[],
        metavar="NAME",
        help="train these parts alone, e.g. heads uncertainty",
    )
    for name, value in LOSS_WEIGHTS.items():
        flag = f"--weight-{name.replace('_', '-')}"
        optimisation.add_argument(flag, type=float, default=value, help=f"weight of the {name} term")
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


def main():
    args = build_parser().parse_args()
    if args.plot:
        history = [{name: float(value) for name, value in row.items()} for row in read_rows(args.plot)]
        return plot_loss_curve(history, args.figure)
    args = resolve(args, out_is_file=True)
    weights = {name: getattr(args, f"weight_{name}") for name in LOSS_WEIGHTS}
    train, val = (list(LayerGraphs(args.data, split)) for split in ("train", "val"))
    train = train[: args.limit] if args.limit else train
    bent = off_equilibrium_graphs(args.off_equilibrium, "train") if args.off_equilibrium.name else []
    bent_count = max(
        1, round(args.off_equilibrium_atoms * len(bent) / max(1, sum(graph.num_nodes for graph in bent)))
    )
    mean, std = lattice_statistics(train)

    diffusion = Diffusion(lattice_mean=mean, lattice_std=std).to(args.device)
    model = DenoisingEGNN(args.channels, args.vectors, args.trunk, args.conditional, args.neighbours).to(
        args.device
    )
    if args.init:
        saved = torch.load(args.init, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["model"])
        diffusion.load_state_dict(saved["diffusion"])
    if missing := set(args.train_only) - {name for name, _ in model.named_children()}:
        raise SystemExit(
            f"--train-only {' '.join(missing)}: the model has {', '.join(name for name, _ in model.named_children())}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not args.train_only or name.split(".")[0] in args.train_only)
    ema = deepcopy(model).requires_grad_(False)
    print(
        f"{len(train)} training and {len(val)} validation graphs, {sum(p.numel() for p in model.parameters())} parameters"
    )

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    steps_per_epoch = len(batches(train, args.batch_atoms, torch.Generator().manual_seed(args.seed)))
    total_steps = args.epochs * steps_per_epoch
    schedule = lambda k: min(
        (k + 1) / args.warmup, 0.505 + 0.495 * math.cos(math.pi * min(k / total_steps, 1))
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    history, best, first, skipped = [], math.inf, 0, 0
    last = args.out.with_suffix(".last.pth")
    if args.resume and last.exists():
        saved = torch.load(last, map_location=args.device, weights_only=True)
        model.load_state_dict(saved["raw_model"])
        ema.load_state_dict(saved["model"])
        diffusion.load_state_dict(saved["diffusion"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        history, best, first = saved["history"], saved["best"], saved["epoch"] + 1

    for epoch in range(first, args.epochs):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
        sums, count = {}, 0
        bar = tqdm(
            batches(train, args.batch_atoms, generator),
            desc=f"epoch {epoch + 1}/{args.epochs}",
            mininterval=5,
            leave=False,
        )
        for index in bar:
            layers, labels = collate([train[k] for k in index])
            layers, labels = layers.to(args.device), labels.to(args.device)
            loss, terms = joint_loss(model, diffusion, layers, labels, weights, args.drop, generator)
            if bent:
                layers, labels = random_batch(bent, bent_count, generator)
                layers, e_hull = layers.to(args.device), labels.e_hull.to(args.device)
                terms["off_equilibrium"] = off_equilibrium_loss(model, diffusion, layers, e_hull, generator)
                loss = loss + weights["off_equilibrium"] * terms["off_equilibrium"]
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            if torch.isfinite(norm):
                optimizer.step()
            else:
                skipped += 1
            scheduler.step()
            with torch.no_grad():
                for averaged, parameter in zip(ema.parameters(), model.parameters()):
                    averaged.lerp_(
                        parameter, 1 - min(args.ema, (1 + scheduler.last_epoch) / (10 + scheduler.last_epoch))
                    )
            for name, value in {"total": loss, **terms}.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(index)
            count += len(index)
            bar.set_postfix(loss=f"{sums['total'] / count:.3f}", refresh=False)

        row = {"epoch": epoch + 1, **{f"train_{k}": v / count for k, v in sums.items()}}
        row |= {f"val_{k}": v for k, v in validate(ema, diffusion, val, args, weights).items()}
        history.append(row)
        state = (
            f"train {row['train_total']:.4f} val {row['val_total']:.4f}, {skipped} steps skipped (not finite)"
        )
        print(f"epoch {epoch + 1}: {state}", flush=True)
        content = {
            "model": ema.state_dict(),
            "hparams": model.hparams,
            "diffusion": diffusion.state_dict(),
            "diffusion_hparams": diffusion.hparams,
            "args": plain(vars(args)),
            "epoch": epoch,
            "val": row["val_total"],
        }
        if row["val_total"] < best:
            best = row["val_total"]
            save_checkpoint(args.out, content)
        training = {
            "raw_model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        }
        save_checkpoint(last, content | training | {"history": history, "best": best})
        write_rows(args.out.with_suffix(".csv"), history, list(row))
        plot_loss_curve(history, args.figure)

    try:
        test = list(LayerGraphs(args.data, "test"))
    except FileNotFoundError:
        return print("no layer of this database falls into the test split: heads not measured")
    saved = torch.load(args.out, map_location=args.device, weights_only=True)
    model.load_state_dict(saved["model"])
    errors = head_errors(model, train, test, args)
    if bent:
        errors["off_equilibrium"] = head_errors(
            model, bent, off_equilibrium_graphs(args.off_equilibrium, "test"), args
        )
    write_json(
        args.out.with_suffix(".metrics.json"),
        {"best_validation_loss": best, "epochs": len(history), "heads_on_test": errors},
    )
    print(f"held-out heads at t = 0: {errors}")


if __name__ == "__main__":
    main()
