"""Stage 1: train DimeNet++ on OC20-type LMDB files to predict the adsorption energy (ΔE_H) of a structure, in
eV.

    python pretrain_dimenet.py --lmdb data.lmdb --epochs 50 --out results/dimenet/dimenet.pt

Beside the checkpoint of the best epoch (`--out`, EMA weights) come `_last.pt` (for --resume), `_log.csv`,
`_loss.png`, `_metrics.json`, `_parity.png`, and `config.json`. Models of several seeds become one ensemble
with a calibrated spread by --combine.
"""

import argparse
import copy
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data
from tqdm import tqdm

from models.crystals.split import ADSORBATE, hash_fraction, host_formula, split_of
from models.datasets.lmdb_data import LmdbDataset, RecordError, UnsafeRecordError
from models.evaluation.figures import parity, plot_mae_curve
from models.infra.files import plain, write_json, write_rows
from models.infra.runs import run_script
from models.networks.baselines import surrogate_report
from models.networks.dimenet import (
    MAX_ATOMIC_NUMBER,
    Ensemble,
    PeriodicDimeNetPlusPlus,
    add_edges,
    collate,
    load_checkpoint,
    load_dimenet,
    predict,
    predict_spread,
    save_dimenet,
    save_ensemble,
    shortest_distance,
)

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
    data.add_argument(
        "--share", type=float, default=1.0, help="train on this share of the hosts only (for learning curves)"
    )
    data.add_argument(
        "--per-host",
        type=int,
        default=4,
        help="records of a host that an epoch draws, 0 for all: hosts teach, frames do not",
    )
    data.add_argument(
        "--out", type=Path, default=Path("results/dimenet/dimenet.pt"), help="checkpoint of the best epoch"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--preset",
        choices=["none", "oc20"],
        default="none",
        help="oc20: defaults as published with OC20 (other flags still win)",
    )
    model.add_argument("--hidden-channels", type=int, default=64, help="width of the messages")
    model.add_argument(
        "--blocks", type=int, default=1, help="interaction blocks; a second costs four times the time"
    )
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
    model.add_argument(
        "--combine",
        nargs="+",
        metavar="CHECKPOINT",
        help="train nothing: make these models one ensemble, calibrate and measure it",
    )

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=int, default=30, help="passes over the training records")
    optim.add_argument("--batch-size", type=int, default=16, help="graphs a step")
    optim.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    optim.add_argument(
        "--warmup", type=float, default=0.05, help="share of the steps with a rising learning rate"
    )
    optim.add_argument("--weight-decay", type=float, default=1e-2, help="of AdamW")
    optim.add_argument(
        "--jitter",
        type=float,
        default=0.05,
        help="Å, Gaussian noise on the positions whenever a graph is seen",
    )
    optim.add_argument("--grad-clip", type=float, default=10.0, help="highest norm of the gradient")
    optim.add_argument(
        "--ema", type=float, default=0.998, help="decay of the averaged weights (shorter at first)"
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
                graph.rigid = is_rigid(record)
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
        graph.host = record.get("host_uid", str(record.sid))
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


def is_rigid(record: Data) -> bool:
    """Whether nothing but the adsorbate moved to reach the target."""
    host = record.tags != ADSORBATE
    return bool(host.any() and record.fixed[host].bool().all())


def by_host(graphs: list[Data]) -> dict[str, list[int]]:
    """Indices of the graphs of each host."""
    hosts = {}
    for index, graph in enumerate(graphs):
        hosts.setdefault(graph.host, []).append(index)
    return hosts


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
    sizes = [f"{len(part)} {name} ({len(by_host(part))} hosts)" for name, part in parts.items()]
    print(" / ".join(sizes), "split by the host's reduced formula")
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


def epoch_order(graphs: list[Data], epoch: int, args: argparse.Namespace) -> list[int]:
    """Order of an epoch, which depends on seed and epoch alone; at most --per-host records of each host."""
    rng = np.random.default_rng([args.seed, epoch])
    drawn = [rng.permutation(indices)[: args.per_host or None] for indices in by_host(graphs).values()]
    return rng.permutation(np.concatenate(drawn)).tolist()


def train_epoch(
    model, ema, optimizer, graphs: list[Data], epoch: int, args: argparse.Namespace, device: str
) -> float:
    """One pass; returns the mean absolute error on the way, in eV."""
    order = epoch_order(graphs, epoch, args)
    noise = torch.Generator().manual_seed(args.seed * 1_000_003 + epoch)
    batches = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
    error = 0.0
    for number, batch in enumerate(tqdm(batches, desc=f"epoch {epoch + 1}", unit="batch", leave=False)):
        step = epoch * len(batches) + number
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.epochs * len(batches), args)
        y = torch.tensor([graphs[i].y for i in batch], device=device)
        data = collate([graphs[i] for i in batch])
        data.pos = data.pos + args.jitter * torch.randn(data.pos.shape, generator=noise)
        absolute = (model(data.to(device)) - y).abs()
        optimizer.zero_grad()
        (absolute.mean() / model.target_std).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        update_ema(ema, model, step, args.ema)
        error += float(absolute.detach().sum())
    return error / len(order)


def mae(model: PeriodicDimeNetPlusPlus, graphs: list[Data], batch_size: int) -> float:
    """Mean absolute error in eV; NaN without graphs."""
    if not graphs:
        return math.nan
    return float(np.abs(predict(model, graphs, batch_size) - targets(graphs)).mean())


def targets(graphs: list[Data]) -> np.ndarray:
    """[n] eV."""
    return np.array([graph.y for graph in graphs])


# ---------------------------------------------------------------- output


def write_log(out: Path, history: list[dict]) -> None:
    write_rows(out.with_name(f"{out.stem}_log.csv"), history, list(history[0]))


def measure(ensemble: Ensemble, train: list[Data], test: list[Data], args: argparse.Namespace) -> None:
    """Errors on held-out hosts beside the nulls, rigid and relaxed targets apart: `_metrics.json` and
    `_parity.png`.
    """
    energies, spreads = predict_spread(ensemble, test, args.batch_size)
    report = surrogate_report(energies, spreads, train, test, args.seed)
    write_json(args.out.with_name(f"{args.out.stem}_metrics.json"), report)
    for level, found in report.items():
        print(
            f"test, {level}: MAE of the best epoch {found['mae']:.3f} eV on {found['n']} records of {found['hosts']} hosts; "
            f"always the mean {found['mae_mean']:.3f}, extra-trees {found['mae_trees']:.3f}"
        )
    panels = {level: (*_of_level(level, test, energies), "eV") for level in report}
    if panels:
        parity(
            panels,
            "ΔE_H of the LMDB (eV)",
            "DimeNet++ (eV)",
            args.out.with_name(f"{args.out.stem}_parity.png"),
        )
    else:
        print("no test MAE: no host of these records falls into the test split")


def _of_level(level: str, graphs: list[Data], energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = [index for index, graph in enumerate(graphs) if graph.rigid == (level == "rigid")]
    return targets([graphs[index] for index in chosen]), energies[chosen]


def combine(
    args: argparse.Namespace, train: list[Data], val: list[Data], test: list[Data], device: str
) -> None:
    """Makes an ensemble; its spread is scaled so that 68.3 % of the validation errors (of relaxed targets,
    where there are any) lie within it.
    """
    members = [member for path in args.combine for member in load_dimenet(path, device).members]
    ensemble = Ensemble(members)
    if len(members) > 1:
        judged = [graph for graph in val if not graph.rigid] or val
        energies, spreads = predict_spread(ensemble, judged, args.batch_size)
        ensemble.spread_scale = float(np.quantile(np.abs(energies - targets(judged)) / spreads, 0.683))
    save_ensemble(args.out, ensemble, args=plain(vars(args)))
    print(f"{len(members)} members; the spread is scaled by {ensemble.spread_scale:.2f}")
    measure(ensemble, train, test, args)


def check_same_run(before: dict, args: argparse.Namespace) -> None:
    changed = [k for k, v in plain(vars(args)).items() if k not in RUN_ONLY and before.get(k) != v]
    if changed:
        what = ", ".join(f"{k} was {before.get(k)!r}, is {getattr(args, k)!r}" for k in changed)
        raise SystemExit(f"error: --resume continues a run with the same arguments, but {what}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    args.out.parent.mkdir(parents=True, exist_ok=True)
    last = args.out.with_name(f"{args.out.stem}_last.pt")
    first_weights = args.init or (args.combine or [None])[0]
    try:
        cutoff = load_dimenet(first_weights).cutoff if first_weights else args.cutoff
        train, val, test = split_graphs(load_graphs(args, cutoff))
    except (FileNotFoundError, RecordError) as error:
        raise SystemExit(f"error: {error}") from None
    train = [graph for graph in train if hash_fraction(f"share {graph.host}") < args.share]
    if args.combine:
        return combine(args, train, val, test, device)
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
    write_json(args.out.with_name("config.json"), {**plain(vars(args)), **model.hyper_parameters})

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
        progress = {"epoch": epoch + 1, "history": history, "args": plain(vars(args))}
        if best:
            save_dimenet(args.out, ema, **progress)
        save_dimenet(
            last, ema, raw_state_dict=model.state_dict(), optimizer=optimizer.state_dict(), **progress
        )
        write_log(args.out, history)
        plot_mae_curve(history, args.out.with_name(f"{args.out.stem}_loss.png"))
        state = f"train {train_mae:.4f}, validation {val_mae:.4f} eV (mean of train {null:.4f})"
        print(f"epoch {epoch + 1}: {state}{'  best' if best else ''}", flush=True)

    measure(load_dimenet(args.out, device), train, test, args)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_script(main)
