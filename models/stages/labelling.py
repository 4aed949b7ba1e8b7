"""Stage 2: cleans a database of layers, labels them with ΔG_H, and writes the graphs that stage 3 learns
from.
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from torch_geometric.data import InMemoryDataset
from tqdm import tqdm

from models.crystals.ase_database import number, readable_rows, uid_of
from models.crystals.layer import NotALayer, extract_layer, min_distance_ratio, pack_atoms
from models.crystals.matching import Fingerprint, Register
from models.crystals.split import split_of
from models.crystals.thresholds import MAX_THICKNESS, OVERLAP_SCALE
from models.datasets.graphs import layer_graph
from models.evaluation.figures import parity
from models.infra.files import atomic, digest, file_hash, write_json
from models.infra.runs import resolve
from models.infra.shards import Shard
from models.networks.delta_g import predict_delta_g
from models.networks.dimenet import load_dimenet
from models.networks.synthesis import save_synthesis, train_synthesis
from models.physics.hydrogen import VERSION as ORACLE_VERSION
from models.physics.parallel import oracle_labels
from models.physics.potentials import load_potential

EXPERIMENT = ("icsd_id", "cod_id", "doi")  # a row with one of these has been made
METADATA = (
    "dynamic_stability_phonons",
    "dynamic_stability_stiffness",
    "gap",
    "crystal_type",
    "thermodynamic_stability_level",
)
NEAR = 0.2  # eV: labels this close to ΔG_H = 0 are looked at apart, they are what a guide follows


def synthesizable(row) -> float:
    """1 for a layer known from experiment, 0 for an unlabelled one, NaN where the row carries no metadata at
    all.
    """
    if any(row.get(key) for key in EXPERIMENT):
        return 1.0
    return 0.0 if any(row.get(key) is not None for key in METADATA) else float("nan")


def clean(row, submitted: Atoms, seen: Register, max_atoms: int, max_e_hull: float):
    """The row's layer in the convention.

    Raises:
        ValueError: with the reason why the row is dropped.
    """
    e_hull = number(row, "ehull")
    if e_hull is None or number(row, "hform") is None:
        raise ValueError("no energy")
    if row.natoms > max_atoms:
        raise ValueError(f"more than {max_atoms} atoms")
    if e_hull > max_e_hull:
        raise ValueError(f"ehull above {max_e_hull} eV/atom")
    try:
        layer = extract_layer(submitted)
    except NotALayer as error:
        raise ValueError("not one 2D component") from error
    if min_distance_ratio(layer.atoms) < OVERLAP_SCALE:
        raise ValueError("overlapping atoms")
    if layer.thickness > MAX_THICKNESS:
        raise ValueError(f"thicker than {MAX_THICKNESS} Å")
    fingerprint = Fingerprint(layer.atoms)
    if seen.find(fingerprint) is not None:
        raise ValueError("duplicate")
    seen.add(row.get("uid", str(row.id)), fingerprint)
    return layer.atoms


def read_layers(path: Path, max_atoms: int, max_e_hull: float, limit: int = 0):
    """Cleaned rows of a database, most stable first so that of duplicates the stablest stays.

    Returns:
        rows: list of (uid, atoms, labels), and a Counter of what was dropped and why.
    """
    kept, dropped, seen, uids = [], Counter(), Register(), Counter()
    rows = readable_rows(path, dropped, limit=limit)
    rows.sort(key=lambda pair: math.inf if number(pair[0], "ehull") is None else number(pair[0], "ehull"))
    for row, submitted in tqdm(rows, desc=f"cleaning {Path(path).name}", mininterval=2):
        try:
            atoms = clean(row, submitted, seen, max_atoms, max_e_hull)
            made = synthesizable(row)
        except Exception as error:  # one bad row costs one row
            dropped[str(error) if type(error) is ValueError else f"unreadable ({type(error).__name__})"] += 1
            continue
        uid = uid_of(row)
        uids[uid] += 1
        if uids[uid] > 1:  # labels are kept by uid: two layers must not share one
            uid = f"{uid} of row {row.id}"
        labels = {"e_hull": number(row, "ehull"), "e_form": number(row, "hform"), "synthesizable": made}
        kept.append((uid, atoms, labels))
    shared = sum(uids.values()) - len(uids)
    if shared:
        print(f"{shared} rows share their uid with another: they are named by their row, too")
    return kept, dropped


def write_splits(rows, delta_g: dict, out: Path, source: str) -> dict:
    """Writes processed/{train,val,test}.pt, those that hold any graph, and says how many each holds.

    Args:
        rows: as read_layers returns them.
        delta_g: uid -> the layer's label.
        source: whose energies the labels of E_hull are; training keeps sources apart by it.
    """
    splits = {"train": [], "val": [], "test": []}
    for uid, atoms, labels in rows:
        found = delta_g.get(uid) or {}
        hydrogen = {"delta_g_h": found.get("delta_g_h"), "delta_g_h_std": found.get("delta_g_h_std")}
        known = {name: value for name, value in hydrogen.items() if value is not None}
        graph = layer_graph(atoms, uid, source, **labels, **known)
        splits[split_of(atoms.get_chemical_formula())].append(graph)
    (out / "processed").mkdir(parents=True, exist_ok=True)
    for name, graphs in splits.items():
        path = out / "processed" / f"{name}.pt"
        path.unlink(missing_ok=True)
        if graphs:
            with atomic(path) as temporary:
                InMemoryDataset.save(graphs, temporary)
    return {name: len(graphs) for name, graphs in splits.items()}


def fit_synthesis(rows, args):
    """Trains the substitute for CSLLM on which of these layers are known from experiment."""
    structures = [atoms for _, atoms, _ in rows]
    columns = [[labels[name] for _, _, labels in rows] for name in ("e_hull", "synthesizable")]
    model, report = train_synthesis(
        structures, *columns, [atoms.get_chemical_formula() for atoms in structures], args.seed
    )
    save_synthesis(args.synthesis_out, model, report=report)
    print(json.dumps(report, indent=2))


def labels(rows, args, labeller: str) -> dict:
    """ΔG_H and where H sits, of each layer by uid, by DimeNet++ or by the potential; OUT/delta_g_*.jsonl keep
    what is computed.
    """
    cache = Shard(args.out / f"delta_g_{labeller}.jsonl", args.resume)
    by_potential = f"{args.potential} {args.potential_checkpoint} oracle {ORACLE_VERSION}"
    source = file_hash(args.dimenet) if labeller == "dimenet" else by_potential
    keys = {
        uid: f"{uid}:{digest(json.dumps(pack_atoms(atoms)) + f'{source} {args.correction}')}"
        for uid, atoms, _ in rows
    }
    layers = {keys[uid]: atoms for uid, atoms, _ in rows}
    if labeller == "dimenet":
        todo = [(key, atoms) for key, atoms in layers.items() if key not in cache.rows]
        for key, result in predict_delta_g(
            load_dimenet(args.dimenet, args.device), todo, args.batch_size, args.correction, progress=True
        ):
            cache.append(key, result)
    else:
        oracle_labels(layers, cache, args.potential, args.potential_checkpoint, args.correction, args.jobs)
    return {uid: cache.rows.get(key, {}) for uid, key in keys.items()}


def check_labels(rows, delta_g: dict, args) -> dict:
    """The labels' errors against the potential on random layers of the test split, and the figure of it."""
    held_out = []
    for uid, atoms, label in rows:
        if split_of(atoms.get_chemical_formula()) == "test" and delta_g[uid].get("delta_g_h") is not None:
            held_out.append((uid, atoms, label))
    chosen = np.random.default_rng(args.seed).permutation(len(held_out))[: args.check]
    oracle = labels([held_out[k] for k in chosen], args, "potential")
    pairs = []
    for uid, row in oracle.items():
        if row.get("delta_g_h") is not None:
            pairs.append((row["delta_g_h"], delta_g[uid]["delta_g_h"]))
    counts = {"layers": len(oracle), "H adsorbs": len(pairs)}
    if not pairs:
        print(
            f"--check: nothing to compare: H stays on none of {len(oracle)} labelled layers of the test split"
        )
        return counts
    true, predicted = np.array(pairs).T
    parity(
        {"ΔG_H, held-out layers": (true, predicted, "eV")},
        f"{args.potential} (eV)",
        "DimeNet++ (eV)",
        args.out / "label_check.png",
    )
    error = np.abs(predicted - true)
    near = np.abs(true) <= NEAR
    return counts | {
        "mae_eV": error.mean(),
        "median_eV": np.median(error),
        "bias_eV": (predicted - true).mean(),
        "mae_of_median_eV": np.abs(true - np.median(true)).mean(),
        "within_0.2_eV_by_potential": near.mean(),
        "of_those_by_dimenet": (np.abs(predicted[near]) <= NEAR).mean() if near.any() else None,
    }


def check_models(args) -> None:
    """Reads the models that the labels need, so that a broken one is said before hours of work.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: with what is wrong.
    """
    if args.labeller == "dimenet":
        load_dimenet(args.dimenet)
    if args.labeller == "potential" or args.check:
        load_potential(args.potential, args.potential_checkpoint)


def summary(delta_g: dict) -> dict:
    """How many layers have a label, and how the labels are spread."""
    values = np.array([row["delta_g_h"] for row in delta_g.values() if row.get("delta_g_h") is not None])
    if not len(values):
        return {"labelled": 0}
    spread = np.percentile(values, [5, 50, 95]).round(3).tolist()
    return {
        "labelled": len(values),
        "delta_g_h_eV": dict(zip(("p5", "median", "p95"), spread)),
        "share_within_0.1_eV": float(np.mean(abs(values) <= 0.1)),
        "share_within_0.2_eV": float(np.mean(abs(values) <= NEAR)),
    }


def label(args: argparse.Namespace) -> None:
    """Cleans the database, labels its layers, and writes the splits and the report.

    Args:
        args: parsed flags of material_dataset.py.

    Raises:
        FileNotFoundError, ValueError: a file is missing or unreadable, or no row is left.
    """
    check_models(args)
    args = resolve(args)
    rows, dropped = read_layers(args.db, args.max_atoms, args.max_e_hull, args.limit)
    if not rows:
        raise ValueError(f"{args.db}: no row is left after cleaning ({dict(dropped)})")
    for reason, count in dropped.most_common():
        print(f"dropped {count:6d}  {reason}")
    print(f"kept    {len(rows):6d}")

    if args.synthesis_out:
        fit_synthesis(rows, args)
    delta_g = labels(rows, args, args.labeller)
    report = {
        "db": args.db.name,
        "kept": len(rows),
        "dropped": dict(dropped),
        "splits": write_splits(rows, delta_g, args.out, args.db.stem),
        **summary(delta_g),
    }
    write_json(args.out / "report.json", report)
    if args.check:
        report["check"] = check_labels(rows, delta_g, args)
        write_json(args.out / "report.json", report)
    print(json.dumps(report, indent=2, default=float))
