"""Processed graphs on disk (torch-geometric)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from ase import Atoms
from torch_geometric.data import Data, InMemoryDataset

from models.crystals.split import split_of
from models.crystals.thresholds import HEAVIEST
from models.infra.files import load_checkpoint

LABELS = ("delta_g_h", "delta_g_h_std", "e_hull", "e_form", "synthesizable")
EMBEDDED = "her2d"  # the source of the embedded layers, whose energies are the potential's


class LayerGraphs(InMemoryDataset):
    """Labelled layers of one split: <root>/processed/<split>.pt, written by material_dataset.py.

    Each graph: atomic_numbers [N], pos [N, 3] Å, cell [1, 3, 3] Å, delta_g_h and delta_g_h_std eV, e_hull and
    e_form eV/atom, synthesizable (1, 0 or NaN), uid, source (the database whose energies the labels are).

    Raises:
        FileNotFoundError: There is no such split.
        ValueError: The file holds anything but graphs; nothing of it is run.
    """

    def __init__(self, root: Path, split: str):
        path = Path(root) / "processed" / f"{split}.pt"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: run material_dataset.py --out {root} on a database with such layers"
            )
        super().__init__(str(root))
        saved = load_checkpoint(path)  # not torch_geometric's load, which falls back to running the file
        try:
            content, self.slices, *_ = saved
            self.data = Data.from_dict(content)
            for name in ("pos", "cell", "atomic_numbers", *LABELS, "uid"):  # of one graph there are no slices
                if self.slices is not None and len(self.slices[name]) != len(self) + 1:
                    raise ValueError(f"`{name}` of {len(self.slices[name]) - 1} graphs")
            for graph in self:
                _check_shapes(graph)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no graphs of material_dataset.py ({type(error).__name__}: {error}): "
                "make it again"
            ) from None


def _check_shapes(graph: Data) -> None:
    """Raises ValueError, AttributeError or TypeError where a graph lacks what the trainings rely on."""
    n = len(graph.atomic_numbers)
    wanted = {"pos": (n, 3), "cell": (1, 3, 3), "atomic_numbers": (n,)} | dict.fromkeys(LABELS, (1,))
    for name, shape in wanted.items():
        if tuple(graph[name].shape) != shape or n == 0:
            raise ValueError(f"`{name}` of shape {list(graph[name].shape)} for {n} atoms")


def layer_graph(atoms: Atoms, uid: str, source: str = EMBEDDED, **labels: float) -> Data:
    """Graph of a layer in the convention; labels default to NaN (unknown)."""
    values = {name: torch.tensor([float(labels.get(name, torch.nan))]) for name in LABELS}
    return Data(
        atomic_numbers=torch.tensor(atoms.numbers),
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array[None], dtype=torch.float32),
        num_nodes=len(atoms),
        uid=uid,
        source=source,
        **values,
    )


def problem_of(graph: Data) -> str | None:
    """Why a graph cannot be trained on; None if it can."""
    if not (torch.isfinite(graph.pos).all() and torch.isfinite(graph.cell).all()):
        return "positions or cell that are not finite"
    if abs(float(torch.linalg.det(graph.cell[0]))) < 1e-3:
        return "a cell without volume"
    if not 1 <= int(graph.atomic_numbers.min()) <= int(graph.atomic_numbers.max()) <= HEAVIEST:
        return f"atomic numbers outside 1 to {HEAVIEST}"
    if any(bool(torch.isinf(graph[name]).any()) for name in LABELS):
        return "an infinite label"
    return None


def labelled_layers(folders: Sequence[Path], split: str) -> list[Data]:
    """Graphs of one split from several folders of stage 2; prints which it leaves out, and why.

    A graph without a source, as folders of older versions have them, takes the folder's name for one.

    Raises:
        FileNotFoundError: No folder has this split.
        ValueError: A file holds anything but graphs, or no graph can be trained on.
    """
    found = [folder for folder in folders if (Path(folder) / "processed" / f"{split}.pt").exists()]
    for folder in folders:
        if found and folder not in found:
            print(f"{folder} has no {split} split")
    graphs, total = [], 0
    for folder in found or folders[:1]:  # where none has it, LayerGraphs says so
        for graph in LayerGraphs(folder, split):
            total += 1
            if problem := problem_of(graph):
                print(f"left out: {graph.uid} of {folder} ({split}): {problem}")
                continue
            if "source" not in graph:
                graph.source = Path(folder).resolve().name
            graphs.append(graph)
    if not graphs:
        raise ValueError(
            f"none of the {total} graphs of the {split} split in {' '.join(map(str, found))} can be used"
        )
    return graphs


def off_equilibrium_graphs(path: Path, split: str) -> list[Data]:
    """Strained, rattled and badly substituted layers of one split, with E_hull at a single point (python -m
    data.build perturbed).

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: python -m data.build perturbed pack, or --off-equilibrium '' to do without"
        )
    saved = load_checkpoint(path)
    sizes = saved["natoms"].tolist()
    numbers, positions = saved["atomic_numbers"].long().split(sizes), saved["pos"].split(sizes)
    rows = zip(numbers, positions, saved["cell"].double(), saved["e_hull"].tolist(), saved["uid"])
    graphs = []
    for z, x, cell, e_hull, uid in rows:
        atoms = Atoms(z, x, cell=cell.numpy(), pbc=(1, 1, 0))
        if split_of(atoms.get_chemical_formula()) == split:
            graphs.append(layer_graph(atoms, uid, e_hull=e_hull))
    return graphs


def graph_atoms(graph: Data) -> Atoms:
    """ASE layer of a graph."""
    return Atoms(
        graph.atomic_numbers.numpy(),
        graph.pos.double().numpy(),
        cell=graph.cell[0].double().numpy(),
        pbc=(1, 1, 0),
    )
