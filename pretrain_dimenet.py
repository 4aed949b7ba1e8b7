"""Stage 1: train DimeNet++ on OC20-type LMDB files to predict the adsorption energy (ΔE_H) of a structure, in
eV.

    python pretrain_dimenet.py --lmdb data.lmdb --epochs 50 --out results/dimenet/dimenet.pt

Beside the checkpoint of the best epoch (`--out`, EMA weights) come `_last.pt` (for --resume), `_log.csv`,
`_loss.png`, `_metrics.json`, and `config.json`.
"""

import argparse
import copy
import csv
import json
import math
import os
import time
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch_geometric.data import Data
from tqdm import tqdm

from models.dimenet import (
    MAX_ATOMIC_NUMBER,
    PeriodicDimeNetPlusPlus,
    add_edges,
    collate,
    load_checkpoint,
    predict,
    save_dimenet,
    shortest_distance,
)
from models.lmdb_data import LmdbDataset, RecordError, UnsafeRecordError
from models.split import ADSORBATE, hash_fraction, host_formula, split_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# DimeNet++ on the 10k split of IS2RE as configured by the Open Catalyst Project (there with a step-wise
# learning rate and a sum over all atoms; here a cosine and the local readout).
OC20 = dict(
    adsorbate="all",
    epochs=15,
    batch_size=2,
    lr=1e-4,
    hidden_channels=256,
    blocks=3,
    cutoff=6.0,
    int_emb_size=64,
    out_emb_channels=192,
    target_mean=-1.525913953781128,
    target_std=2.279365062713623,
)
MIN_DISTANCE = (
    0.5  # Å; H2 has 0.74. Broken records (a collapsed cell) cost millions of triplets and teach nothing
)
RUN_ONLY = (
    "resume",
    "device",
    "threads",
    "out",
)  # arguments that may differ between a run and its continuation


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Stage 1: pretrain DimeNet++ on adsorption energies from OC20-type LMDB files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
    data.add_argument("--out", default="results/dimenet/dimenet.pt", help="checkpoint of the best epoch")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--preset",
        choices=["none", "oc20"],
        default="none",
        help="oc20: defaults as published with OC20 (other flags still win)",
    )
    model.add_argument("--hidden-channels", type=int, default=64, help="width of the messages")
    model.add_argument("--blocks", type=int, default=2, help="interaction blocks")
    model.add_argument("--cutoff", type=float, default=5.0, help="neighbour cutoff in Å")
    model.add_argument("--int-emb-size", type=int, default=32, help="width of the triplet interaction")
    model.add_argument("--out-emb-channels", type=int, default=128, help="width of the per-atom output")
    model.add_argument("--target-mean", type=float, help="eV; None: mean of the training targets")
    model.add_argument(
        "--target-std", type=float, help="eV; None: standard deviation of the training targets"
    )
    model.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="fine-tune: start from its weights, model and normalisation (model flags are ignored)",
    )

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=int, default=50, help="passes over the training records")
    optim.add_argument("--batch-size", type=int, default=16, help="graphs a step")
    optim.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    optim.add_argument(
        "--warmup", type=float, default=0.05, help="share of the steps with a rising learning rate"
    )
    optim.add_argument("--weight-decay", type=float, default=1e-4, help="of AdamW")
    optim.add_argument("--grad-clip", type=float, default=10.0, help="highest norm of the gradient")
    optim.add_argument(
        "--ema", type=float, default=0.999, help="decay of the averaged weights (shorter at first)"
    )

    system = parser.add_argument_group("system")
    system.add_argument("--seed", type=int, default=0, help="of the weights and of the order of records")
    system.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    system.add_argument(
        "--threads", type=int, default=1, help="CPU threads (small graphs gain nothing from more)"
    )
    system.add_argument(
        "--resume", action="store_true", help="continue an interrupted run with the same arguments"
    )
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    if parser.parse_known_args(argv)[0].preset == "oc20":
        parser.set_defaults(**OC20)
    return parser.parse_args(argv)


# ---------------------------------------------------------------- data


def reason_to_skip(record: Data, args: argparse.Namespace) -> str | None:
    """Why a readable record cannot be trained on; None if it can."""
    if args.target not in record or not math.isfinite(record[args.target]):
        return f"no {args.target} (test splits have none)"
    if args.start == "relaxed" and "pos_relaxed" not in record:
        return "no pos_relaxed"
    if int(record.atomic_numbers.max()) > MAX_ATOMIC_NUMBER or int(record.atomic_numbers.min()) < 1:
        return "element unknown to the model"
    adsorbate = record.atomic_numbers[record.tags == ADSORBATE]
    if args.adsorbate == "H" and bool((adsorbate != 1).any()):
        return "adsorbate is not hydrogen"
    return None


def load_graphs(args: argparse.Namespace, cutoff: float) -> list[Data]:
    """Graphs of all usable records, edges included, with `y` in eV and the split by host formula; says what
    it skips.
    """
    dataset = LmdbDataset(args.lmdb)
    graphs, skipped, untagged = [], Counter(), 0
    for index in tqdm(range(len(dataset)), desc="reading", unit="record"):
        try:
            record = dataset[index]
            reason = reason_to_skip(record, args)
            if reason is None:
                graph = Data(
                    pos=record.pos_relaxed if args.start == "relaxed" else record.pos,
                    cell=record.cell,
                    atomic_numbers=record.atomic_numbers,
                    tags=record.tags,
                )
                graph = add_edges(graph, cutoff)
                if shortest_distance(graph) < MIN_DISTANCE:
                    reason = f"atoms closer than {MIN_DISTANCE} Å"
        except UnsafeRecordError:
            raise
        except ValueError as error:
            tqdm.write(f"skipped: {error}")
            reason = "unreadable"
        if reason:
            skipped[reason] += 1
            continue
        graph.y, graph.sid = record[args.target], record.sid
        graph.split = split_of(host_formula(record.atomic_numbers, record.tags))
        untagged += not bool((record.tags == ADSORBATE).any())
        graphs.append(graph)
    print(
        f"{len(dataset)} records",
        f"{len(graphs)} used",
        *(f"{n} skipped: {why}" for why, n in skipped.items()),
        sep="; ",
    )
    if untagged:
        print(
            f"{untagged} records have no atom tagged {ADSORBATE}: taken whole "
            "(read from all atoms, host = all atoms)"
        )
    return graphs


def split_graphs(graphs: list[Data]) -> tuple[list[Data], list[Data], list[Data]]:
    """Train, validation and test graphs; a sample too small for the formula split gets its validation from
    train.
    """
    parts = {name: [graph for graph in graphs if graph.split == name] for name in ("train", "val", "test")}
    if not parts["train"] or not parts["val"]:
        pool = sorted(parts["train"] + parts["val"], key=lambda graph: hash_fraction(str(graph.sid)))
        if len(pool) < 2:
            raise SystemExit(
                f"error: {len(pool)} usable records outside the test split; training needs at least 2"
            )
        n_val = max(1, len(pool) // 10)
        parts["val"], parts["train"] = pool[:n_val], pool[n_val:]
        print(
            f"too few hosts for a split by formula: {n_val} validation records taken by a hash of sid instead"
        )
    print(
        " / ".join(f"{len(part)} {name}" for name, part in parts.items()),
        "(split by the host's reduced formula)",
    )
    return parts["train"], parts["val"], parts["test"]


# ---------------------------------------------------------------- training


def make_model(args: argparse.Namespace, train_y: np.ndarray) -> PeriodicDimeNetPlusPlus:
    """New model, or the one to fine-tune."""
    if args.init:
        checkpoint = load_checkpoint(args.init)
        model = PeriodicDimeNetPlusPlus(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
        return model
    std = float(train_y.std()) or 1.0
    return PeriodicDimeNetPlusPlus(
        hidden_channels=args.hidden_channels,
        num_blocks=args.blocks,
        cutoff=args.cutoff,
        int_emb_size=args.int_emb_size,
        out_emb_channels=args.out_emb_channels,
        target_mean=float(train_y.mean()) if args.target_mean is None else args.target_mean,
        target_std=std if args.target_std is None else args.target_std,
    )


def learning_rate(step: int, total: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the highest rate."""
    warmup = max(1, round(args.warmup * total))
    if step < warmup:
        return args.lr * (step + 1) / warmup
    return args.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


@torch.no_grad()
def update_ema(ema: torch.nn.Module, model: torch.nn.Module, step: int, decay: float) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # else a short run would never leave its random start
    for average, parameter in zip(ema.parameters(), model.parameters()):
        average.lerp_(parameter, 1 - decay)


def train_epoch(
    model, ema, optimizer, graphs: list[Data], epoch: int, args: argparse.Namespace, device: str
) -> float:
    """One pass in an order that depends on seed and epoch alone; returns the mean absolute error on the way,
    in eV.
    """
    order = torch.randperm(
        len(graphs), generator=torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
    ).tolist()
    batches = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
    error = 0.0
    for number, batch in enumerate(tqdm(batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False)):
        step = epoch * len(batches) + number
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.epochs * len(batches), args)
        y = torch.tensor([graphs[i].y for i in batch], device=device)
        absolute = (model(collate([graphs[i] for i in batch]).to(device)) - y).abs()
        optimizer.zero_grad()
        (absolute.mean() / model.target_std).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        update_ema(ema, model, step, args.ema)
        error += float(absolute.detach().sum())
    return error / len(graphs)


def mae(model: PeriodicDimeNetPlusPlus, graphs: list[Data], batch_size: int) -> float:
    """Mean absolute error in eV; NaN without graphs."""
    if not graphs:
        return math.nan
    return float(np.abs(predict(model, graphs, batch_size) - targets(graphs)).mean())


def targets(graphs: list[Data]) -> np.ndarray:
    """[n] eV."""
    return np.array([graph.y for graph in graphs])


# ---------------------------------------------------------------- output


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_log(out: Path, history: list[dict]) -> None:
    temporary = out.with_name(f".{out.stem}_log.tmp")
    with temporary.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=history[0].keys())
        writer.writeheader()
        writer.writerows(history)
    os.replace(temporary, out.with_name(f"{out.stem}_log.csv"))


def plot_loss(out: Path, history: list[dict], null: float) -> None:
    """Error by epoch, with the error of always predicting the mean of the training targets."""
    epochs = [row["epoch"] for row in history]
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    axis.plot(epochs, [row["train_mae_eV"] for row in history], ".-", label="train")
    axis.plot(epochs, [row["val_mae_eV"] for row in history], ".-", label="validation (EMA)")
    axis.axhline(null, color="0.5", linestyle="--", label="mean of train, on validation")
    axis.set(xlabel="epoch", ylabel="MAE (eV)", ylim=(0, None), title="DimeNet++ adsorption energy")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend()
    temporary = out.with_name(f".{out.stem}_loss.tmp.png")
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    os.replace(temporary, out.with_name(f"{out.stem}_loss.png"))


def check_same_run(before: dict, args: argparse.Namespace) -> None:
    changed = [k for k, v in vars(args).items() if k not in RUN_ONLY and before.get(k) != v]
    if changed:
        what = ", ".join(f"{k} was {before.get(k)!r}, is {getattr(args, k)!r}" for k in changed)
        raise SystemExit(f"error: --resume continues a run with the same arguments, but {what}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    last = out.with_name(f"{out.stem}_last.pt")

    try:
        cutoff = load_checkpoint(args.init)["hyper_parameters"]["cutoff"] if args.init else args.cutoff
        train, val, test = split_graphs(load_graphs(args, cutoff))
    except (FileNotFoundError, RecordError) as error:
        raise SystemExit(f"error: {error}") from None
    train_y = targets(train)
    null = float(np.abs(targets(val) - train_y.mean()).mean())

    model = make_model(args, train_y).to(device)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    first, history = 0, []
    if args.resume and last.exists():
        state = load_checkpoint(last, device)
        check_same_run(state["args"], args)
        ema.load_state_dict(state["state_dict"])
        model.load_state_dict(state["raw_state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        first, history = state["epoch"], state["history"]
        print(f"continuing after epoch {first}")
    write_text(out.with_name("config.json"), json.dumps({**vars(args), **model.hyper_parameters}, indent=1))

    for epoch in range(first, args.epochs):
        start = time.perf_counter()
        train_mae = train_epoch(model, ema, optimizer, train, epoch, args, device)
        val_mae = mae(ema, val, args.batch_size)
        best = all(val_mae < row["val_mae_eV"] for row in history)
        history.append(
            {
                "epoch": epoch + 1,
                "train_mae_eV": train_mae,
                "val_mae_eV": val_mae,
                "null_val_mae_eV": null,
                "lr": optimizer.param_groups[0]["lr"],
                "seconds": time.perf_counter() - start,
            }
        )
        for path in [out, last] if best else [last]:
            save_dimenet(
                path,
                ema,
                raw_state_dict=model.state_dict(),
                optimizer=optimizer.state_dict(),
                epoch=epoch + 1,
                history=history,
                args=vars(args),
            )
        write_log(out, history)
        plot_loss(out, history, null)
        print(
            f"epoch {epoch + 1}: train {train_mae:.4f}, validation {val_mae:.4f} eV "
            f"(mean of train {null:.4f})"
            f"{'  best' if best else ''}"
        )

    ema.load_state_dict(load_checkpoint(out, device)["state_dict"])
    y = targets(test)
    metrics = {
        "n_train": len(train),
        "n_val": len(val),
        "n_test": len(test),
        "val_mae_eV": mae(ema, val, args.batch_size),
        "test_mae_eV": mae(ema, test, args.batch_size),
        "test_mae_mean_of_train_eV": float(np.abs(y - train_y.mean()).mean()) if len(y) else math.nan,
        "test_mae_median_of_train_eV": float(np.abs(y - np.median(train_y)).mean()) if len(y) else math.nan,
    }
    finite = {name: None if math.isnan(value) else value for name, value in metrics.items()}
    write_text(out.with_name(f"{out.stem}_metrics.json"), json.dumps(finite, indent=1))
    if len(y):
        print(
            f"test MAE of the best epoch {metrics['test_mae_eV']:.4f} eV on {len(y)} records; "
            f"always the mean of train {metrics['test_mae_mean_of_train_eV']:.4f}, "
            f"its median {metrics['test_mae_median_of_train_eV']:.4f} eV"
        )
    else:
        print("no test MAE: no host of these records falls into the test split")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
