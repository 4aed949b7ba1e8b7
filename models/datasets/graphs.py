"""Processed graphs on disk (torch-geometric)."""

from pathlib import Path

import torch
from ase import Atoms
from torch_geometric.data import Data, InMemoryDataset

from models.crystals.split import split_of
from models.infra.files import load_checkpoint


class LayerGraphs(InMemoryDataset):
    """Labelled layers of one split: <root>/processed/<split>.pt, written by material_dataset.py.

    Each graph: atomic_numbers [N], pos [N, 3] Å, cell [1, 3, 3] Å, delta_g_h and delta_g_h_std eV, e_hull and
        e_form
    eV/atom, synthesizable (1, 0 or NaN), uid.
    """

    def __init__(self, root: Path, split: str):
        path = Path(root) / "processed" / f"{split}.pt"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: run material_dataset.py --out {root} on a database with layers in this split"
            )
        super().__init__(str(root))
        self.load(str(path))


def layer_graph(atoms: Atoms, uid: str, **labels) -> Data:
    """Graph of a layer in the convention; labels default to NaN (unknown)."""
    names = ("delta_g_h", "delta_g_h_std", "e_hull", "e_form", "synthesizable")
    values = {name: torch.tensor([float(labels.get(name, torch.nan))]) for name in names}
    return Data(
        atomic_numbers=torch.tensor(atoms.numbers),
        pos=torch.tensor(atoms.positions, dtype=torch.float32),
        cell=torch.tensor(atoms.cell.array[None], dtype=torch.float32),
        num_nodes=len(atoms),
        uid=uid,
        **values,
    )


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
    made = ((Atoms(z, x, cell=cell.numpy(), pbc=(1, 1, 0)), uid, e_hull) for z, x, cell, e_hull, uid in rows)
    return [
        layer_graph(atoms, uid, e_hull=e_hull)
        for atoms, uid, e_hull in made
        if split_of(atoms.get_chemical_formula()) == split
    ]


def graph_atoms(graph: Data) -> Atoms:
    """ASE layer of a graph."""
    return Atoms(
        graph.atomic_numbers.numpy(),
        graph.pos.double().numpy(),
        cell=graph.cell[0].double().numpy(),
        pbc=(1, 1, 0),
    )
