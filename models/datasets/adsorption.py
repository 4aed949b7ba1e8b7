"""Adsorption graphs: a slab with its adsorbate and its periodic edges, and the labelled ones of LMDB files.

An edge j -> i carries the vector from atom i to the image of j, `pos[j] - pos[i] + edge_shift @ cell`, and
one pair of atoms can have many. No cap on neighbours: a cap cuts through shells of equal distance and breaks
the symmetry. torch_geometric's radius graph knows no periodic images, so the edges are matscipy's.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from matscipy.neighbours import neighbour_list
from torch import Tensor
from torch_geometric.data import Batch, Data
from tqdm import tqdm

from models.crystals.split import ADSORBATE, hash_fraction, host_formula, split_of
from models.crystals.thresholds import HEAVIEST, TOO_HEAVY
from models.datasets.lmdb_data import LmdbDataset, UnsafeRecordError

GRAPH_FIELDS = ("pos", "cell", "atomic_numbers", "tags", "edge_index", "edge_shift", "edge_cutoff")
MAX_ATOMIC_NUMBER = HEAVIEST  # as many rows as the element embedding of torch_geometric's EmbeddingBlock
# Å; H2 has 0.74. Broken records (a collapsed cell) cost millions of triplets and teach nothing
MIN_DISTANCE = 0.5


def add_edges(data: Data, cutoff: float) -> Data:
    """Put the periodic edges on a structure, in place. All three directions are periodic: the cell brings its
    vacuum.

    Args:
        data: With pos [N, 3] and cell [1, 3, 3], both in Å.
        cutoff: Å.

    Returns:
        The same object with edge_index [2, E] (from j, to i), edge_shift [E, 3] (int32) and edge_cutoff [1]
        (Å).

    Raises:
        ValueError: The cell spans no volume.
    """
    pos, cell = data.pos.detach().double().cpu().numpy(), data.cell[0].detach().double().cpu().numpy()
    if abs(np.linalg.det(cell)) < 1e-3:
        raise ValueError(
            f"the cell spans no volume: {cell.tolist()}; give all three vectors, vacuum included"
        )
    i, j, shift = neighbour_list("ijS", cutoff=float(cutoff), positions=pos, cell=cell, pbc=[True] * 3)
    data.edge_index = torch.from_numpy(np.stack([j, i]).astype(np.int64))
    data.edge_shift = torch.from_numpy(shift.astype(np.int32)).reshape(-1, 3)
    data.edge_cutoff = torch.tensor([float(cutoff)])
    return data


def adsorption_graph(atoms: Atoms, tags: Sequence[int], cutoff: float = 5.0) -> Data:
    """Graph of a structure for DimeNet++.

    Args:
        atoms: Slab with its adsorbate; the cell has three vectors, the vacuum at least as wide as the cutoff.
        tags: [N], 2 on adsorbate atoms (0 everywhere: the readout takes all atoms).
        cutoff: Å, not below the model's.

    Returns:
        Data with the fields of `GRAPH_FIELDS`.
    """
    data = Data(
        pos=torch.tensor(atoms.get_positions(), dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
        atomic_numbers=torch.tensor(atoms.get_atomic_numbers(), dtype=torch.int64),
        tags=torch.tensor(np.asarray(tags), dtype=torch.int64),
    )
    return add_edges(data, cutoff)


def edge_vectors(data: Data | Batch, batch: Tensor) -> Tensor:
    """[E, 3] Å, from the atom an edge goes to, to the image it comes from; differentiable in pos and cell."""
    source, target = data.edge_index
    shift = data.edge_shift.to(data.pos.dtype)
    return data.pos[source] - data.pos[target] + torch.einsum("ea,eab->eb", shift, data.cell[batch[target]])


def shortest_distance(graph: Data) -> float:
    """Å between the closest two atoms or images of one graph; infinite where no two are within the cutoff."""
    return min(edge_vectors(graph, torch.zeros_like(graph.tags)).norm(dim=1).tolist(), default=float("inf"))


# ---------------------------------------------------------------- labelled graphs of LMDB files


def reason_to_skip(record: Data, target: str, start: str, adsorbate: str) -> str | None:
    """Why a readable record cannot be trained on; None if it can. Arguments as `read_graphs` takes them."""
    if target not in record or not math.isfinite(record[target]):
        return f"no {target} (test splits have none)"
    if start == "relaxed" and "pos_relaxed" not in record:
        return "no pos_relaxed"
    if not 1 <= int(record.atomic_numbers.min()) <= int(record.atomic_numbers.max()) <= MAX_ATOMIC_NUMBER:
        return TOO_HEAVY
    adsorbed = record.atomic_numbers[record.tags == ADSORBATE]
    if adsorbate == "H" and bool((adsorbed != 1).any()):
        return "adsorbate is not hydrogen"
    return None


def is_rigid(record: Data) -> bool:
    """Whether nothing but the adsorbate moved to reach the target."""
    host = record.tags != ADSORBATE
    return bool(host.any() and record.fixed[host].bool().all())


def _labelled_graph(record: Data, cutoff: float, target: str, start: str) -> Data:
    """Graph of a record with its target, its host and its split.

    Raises:
        ValueError: The cell spans no volume.
    """
    graph = Data(
        pos=record.pos_relaxed if start == "relaxed" else record.pos,
        cell=record.cell,
        atomic_numbers=record.atomic_numbers,
        tags=record.tags,
    )
    graph = add_edges(graph, cutoff)
    graph.rigid = is_rigid(record)
    graph.y, graph.sid = record[target], record.sid
    graph.host = record.get("host_uid", str(record.sid))
    graph.split = split_of(host_formula(record.atomic_numbers, record.tags))
    return graph


def read_graphs(
    paths: Sequence[str | os.PathLike],
    cutoff: float,
    target: str = "y_relaxed",
    start: str = "initial",
    adsorbate: str = "H",
) -> list[Data]:
    """Graphs of all usable records; prints what is skipped and why.

    Args:
        paths: LMDB files, or directories of *.lmdb.
        cutoff: Å, of the edges.
        target: Field with the energy to learn, eV.
        start: "initial" takes pos, "relaxed" takes pos_relaxed.
        adsorbate: "H" skips records whose tagged atoms are others, "all" takes every one.

    Returns:
        Data with the fields of `GRAPH_FIELDS`, `y` (eV), `sid`, `host`, `rigid`, and `split` by the host's
        reduced formula.

    Raises:
        FileNotFoundError: A path does not exist.
        RecordError: A file is no LMDB, or a record asks for code.
    """
    dataset = LmdbDataset(paths)
    graphs, skipped, untagged = [], Counter(), 0
    for index in tqdm(range(len(dataset)), desc="reading", unit="record"):
        try:
            record = dataset[index]
            reason = reason_to_skip(record, target, start, adsorbate)
            graph = None if reason else _labelled_graph(record, cutoff, target, start)
        except UnsafeRecordError:
            raise
        except ValueError as error:  # one bad record costs one record
            tqdm.write(f"skipped: {error}")
            reason = "unreadable"
        if reason is None and shortest_distance(graph) < MIN_DISTANCE:
            reason = f"atoms closer than {MIN_DISTANCE} Å"
        if reason:
            skipped[reason] += 1
            continue
        graphs.append(graph)
        untagged += not bool((record.tags == ADSORBATE).any())
    counts = [f"{len(dataset)} records", f"{len(graphs)} used"]
    print(*counts, *(f"{count} skipped: {why}" for why, count in skipped.items()), sep="; ")
    if untagged:
        print(
            f"{untagged} records have no atom tagged {ADSORBATE}: taken whole "
            "(read from all atoms, host = all atoms)"
        )
    return graphs


def by_host(graphs: list[Data]) -> dict[str, list[int]]:
    """Indices of the graphs of each host."""
    hosts = {}
    for index, graph in enumerate(graphs):
        hosts.setdefault(graph.host, []).append(index)
    return hosts


def split_graphs(graphs: list[Data]) -> tuple[list[Data], list[Data], list[Data]]:
    """Train, validation and test graphs; a sample too small for the split by formula takes its validation
    graphs from train.

    Raises:
        ValueError: Fewer than two graphs lie outside the test split.
    """
    parts = {name: [graph for graph in graphs if graph.split == name] for name in ("train", "val", "test")}
    if not parts["train"] or not parts["val"]:
        pool = sorted(parts["train"] + parts["val"], key=lambda graph: hash_fraction(str(graph.sid)))
        if len(pool) < 2:
            raise ValueError(f"{len(pool)} usable records outside the test split; training needs at least 2")
        n_val = max(1, len(pool) // 10)
        parts["val"], parts["train"] = pool[:n_val], pool[n_val:]
        print(
            f"too few hosts for a split by formula: {n_val} validation records taken by a hash of sid instead"
        )
    sizes = [f"{len(part)} {name} ({len(by_host(part))} hosts)" for name, part in parts.items()]
    print(" / ".join(sizes), "split by the host's reduced formula")
    return parts["train"], parts["val"], parts["test"]
