"""Padded batches of layers, which the diffusion model takes, their labels, and their way from and to ASE."""

from dataclasses import dataclass, fields

import torch
from ase import Atoms
from torch import Tensor
from torch_geometric.data import Data

from models.crystals.layer import layer_atoms

MASK = 119  # token of a slot whose element is not decided
TOKENS = 120


class TensorFields:
    """A dataclass of tensors whose first axis is the batch."""

    def replace(self, **changes):
        return type(self)(**{f.name: changes.get(f.name, getattr(self, f.name)) for f in fields(self)})

    def to(self, device):
        return self.replace(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def stacked(self) -> Tensor:
        """[B, fields] of a class whose fields are all [B]."""
        return torch.stack([getattr(self, f.name) for f in fields(self)], -1)

    def __getitem__(self, index):
        return self.replace(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass
class Labels(TensorFields):
    """What is known of B layers; NaN where it is not.

    Attributes:
        delta_g_h: [B] eV.
        e_hull: [B] eV/atom.
        synthesizable: [B] 1 or 0.
        delta_g_h_std: [B] eV, standard deviation of DimeNet++'s members on ΔG_H.
    """

    delta_g_h: Tensor
    e_hull: Tensor
    synthesizable: Tensor
    delta_g_h_std: Tensor


@dataclass
class Layers(TensorFields):
    """A padded batch of layers, B graphs of at most N atoms.

    Attributes:
        atomic_numbers: [B, N] int; MASK where undecided, 0 on padding.
        slots: [B, N] int; atoms of one slot share their element; 0 on padding.
        frac_coords: [B, N, 2] in-plane fractional coordinates.
        z: [B, N] Å.
        cell: [B, 2, 2] Å, in-plane lattice rows.
        mask: [B, N] bool, False on padding.
    """

    atomic_numbers: Tensor
    slots: Tensor
    frac_coords: Tensor
    z: Tensor
    cell: Tensor
    mask: Tensor


def reduction(cell: Tensor) -> Tensor:
    """Integer matrices [B, 2, 2] whose product with the rows of `cell` [B, 2, 2] Å is a Gauss-reduced basis
    of the same lattice: |a| <= |b|, |a·b| <= a·a / 2.

    Identity where the rows are reduced but for 0.1 %, so that a 60° or 120° cell does not flip with rounding.
    """
    basis = torch.eye(2, device=cell.device, dtype=cell.dtype).expand(len(cell), 2, 2)
    for _ in range(16):  # enough for a sheared by thousands of b: every step shortens as Euclid's does
        rows = basis @ cell
        square = (rows**2).sum(-1)  # [B, 2] Å^2
        overlap = (rows[:, 0] * rows[:, 1]).sum(-1) / square.min(-1).values  # [B]
        steps = torch.round(overlap * 0.999)[:, None, None]  # of the shorter row, off the longer one
        if not steps.any():
            break
        longer = (square[:, 0] > square[:, 1])[:, None, None]
        basis = torch.where((steps != 0) & longer, basis.flip(1), basis)
        basis = torch.cat([basis[:, :1], basis[:, 1:] - steps * basis[:, :1]], 1)
    return basis


def collate(graphs: list[Data]) -> tuple[Layers, Labels]:
    """Padded batch of graphs, and its labels."""
    layers = pad(
        [graph.atomic_numbers for graph in graphs],
        [graph.pos for graph in graphs],
        [graph.cell[0] for graph in graphs],
    )
    column = lambda name: torch.cat([graph[name] for graph in graphs])
    return layers, Labels(**{field.name: column(field.name) for field in fields(Labels)})


def layers_of(structures: list[Atoms]) -> Layers:
    """Padded batch of ASE layers in the convention."""
    tensor = lambda x: torch.tensor(x, dtype=torch.float32)
    return pad(
        [torch.tensor(a.numbers) for a in structures],
        [tensor(a.positions) for a in structures],
        [tensor(a.cell.array) for a in structures],
    )


def pad(numbers, positions, cells) -> Layers:
    """Layers from lists of numbers [N], positions [N, 3] Å and cells [3, 3] Å; atoms of one element are one
    slot.
    """
    b, n = len(numbers), max(len(x) for x in numbers)
    cell = torch.stack(cells)[:, :2, :2]
    out = Layers(
        torch.zeros(b, n, dtype=torch.long),
        torch.zeros(b, n, dtype=torch.long),
        torch.zeros(b, n, 2),
        torch.zeros(b, n),
        cell,
        torch.zeros(b, n, dtype=torch.bool),
    )
    inverse = torch.linalg.inv(cell)
    for k, (number, position) in enumerate(zip(numbers, positions)):
        m = len(number)
        out.atomic_numbers[k, :m] = number
        out.slots[k, :m] = torch.unique(number, return_inverse=True)[1]
        out.frac_coords[k, :m] = (position[:, :2] @ inverse[k]) % 1.0
        out.z[k, :m] = position[:, 2] - position[:, 2].mean()
        out.mask[k, :m] = True
    return out


def to_atoms(layers: Layers) -> list[Atoms]:
    """ASE layers, in the convention, of a padded batch."""
    structures = []
    for k in range(len(layers)):
        keep = layers.mask[k]
        cell = layers.cell[k].double()
        plane = layers.frac_coords[k, keep].double() @ cell
        positions = torch.cat([plane, layers.z[k, keep, None].double()], -1)
        structures.append(
            layer_atoms(layers.atomic_numbers[k, keep].numpy(), positions.numpy(), cell.numpy())
        )
    return structures
