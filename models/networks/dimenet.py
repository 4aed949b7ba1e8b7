"""DimeNet++ (Gasteiger et al., arXiv:2011.14115) for periodic structures, with a readout at the adsorbate.

The blocks are torch_geometric's; triplets, the spherical basis and the readout are made here, because
torch_geometric's own model knows no periodic images. The edges are those of models.datasets.adsorption.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn.models.dimenet import (
    BesselBasisLayer,
    EmbeddingBlock,
    Envelope,
    InteractionPPBlock,
    OutputPPBlock,
)
from torch_geometric.nn.resolver import activation_resolver
from torch_geometric.utils import scatter
from tqdm import tqdm

from models.crystals.elements import element_features
from models.crystals.split import ADSORBATE
from models.datasets.adsorption import GRAPH_FIELDS, MAX_ATOMIC_NUMBER, edge_vectors
from models.infra.files import load_checkpoint as read_checkpoint
from models.infra.files import save_checkpoint


def collate(graphs: Sequence[Data]) -> Batch:
    """Batch of graphs, of the fields that the model reads (so that records with other extra fields mix)."""
    return Batch.from_data_list([Data(**{name: graph[name] for name in GRAPH_FIELDS}) for graph in graphs])


def triplets(edge_index: Tensor, edge_shift: Tensor, num_nodes: int, num_ji: int) -> tuple[Tensor, Tensor]:
    """Pairs of edges k -> j -> i, without going straight back.

    Only the exact way back is left out: k is i AND the images agree. Another image of i is a proper neighbour
    of j.

    Args:
        edge_index: [2, E] (from, to).
        edge_shift: [E, 3], the image of `from` as seen from `to`.
        num_nodes: N.
        num_ji: Only the first `num_ji` edges are wanted as j -> i.

    Returns:
        idx_kj [T], idx_ji [T]: indices into the edges, idx_ji ascending.
    """
    source, target = edge_index
    degree = torch.bincount(target, minlength=num_nodes)  # [N] edges into each atom
    order, start = torch.argsort(target, stable=True), torch.cumsum(degree, 0) - degree  # grouped by target
    count = degree[source[:num_ji]]  # [num_ji] edges into the j of each edge j -> i
    idx_ji = torch.repeat_interleave(torch.arange(num_ji, device=source.device), count)  # [T]
    first = (torch.cumsum(count, 0) - count)[idx_ji]
    rank = torch.arange(len(idx_ji), device=source.device) - first  # [T] which of the edges into j
    idx_kj = order[start[source[idx_ji]] + rank]  # [T]
    back = (source[idx_kj] == target[idx_ji]) & (edge_shift[idx_kj] == -edge_shift[idx_ji]).all(1)
    return idx_kj[~back], idx_ji[~back]


def readout_level(readout: Tensor, edge_index: Tensor, depth: int) -> Tensor:
    """Number of hops from each atom to the nearest readout atom.

    Args:
        readout: [N] bool.
        edge_index: [2, E] (from, to).
        depth: Hops to follow; atoms further out get `depth + 1`.

    Returns:
        [N] int64.
    """
    level = torch.where(readout, 0, depth + 1)
    for hop in range(1, depth + 1):
        neighbours = edge_index[0, level[edge_index[1]] == hop - 1]
        level[neighbours] = level[neighbours].clamp(max=hop)
    return level


def spherical_bessel_zeros(num_spherical: int, num_radial: int) -> np.ndarray:
    """First zeros of the spherical Bessel functions.

    Returns:
        [num_spherical, num_radial]: row l holds the zeros of j_l. Those of j_l lie between those of j_{l-1}.
    """
    rows = [np.pi * np.arange(1, num_radial + num_spherical)]
    for order in range(1, num_spherical):
        last = rows[-1]
        rows.append(
            np.array([brentq(lambda x, n=order: spherical_jn(n, x), *pair) for pair in zip(last, last[1:])])
        )
    return np.stack([row[:num_radial] for row in rows])


class SphericalBasis(nn.Module):
    """Basis of DimeNet (arXiv:2003.03123, eq. 7) in closed form: j_l(z_ln d / c) Y_l0(angle), with the
    envelope.

    Ours, because torch_geometric's SphericalBasisLayer, to which it is equal, spends 5-12 s in sympy at every
    start and has no gradient where the angle is straight. The upward recurrence of j_l loses digits at short
    distances, so the radial part is computed in float64.
    """

    def __init__(self, num_spherical: int, num_radial: int, cutoff: float, envelope_exponent: int):
        super().__init__()
        self.cutoff = cutoff
        self.envelope = Envelope(envelope_exponent)
        self.zeros = spherical_bessel_zeros(num_spherical, num_radial)
        orders = np.arange(num_spherical)[:, None]
        self.radial_norm = np.sqrt(2) / np.abs(spherical_jn(orders + 1, self.zeros))
        self.angular_norm = np.sqrt((2 * orders[:, 0] + 1) / (4 * np.pi))

    def radial(self, distance: Tensor) -> Tensor:
        """[E] Å to [E, num_spherical * num_radial]."""
        scaled = distance.double()[:, None] / self.cutoff  # [E, 1]
        columns = []
        for order, (zeros, norm) in enumerate(zip(self.zeros, self.radial_norm)):
            z = scaled * scaled.new_tensor(zeros)  # [E, num_radial]
            below, bessel = z.cos() / z, z.sin() / z  # j_-1 and j_0
            for step in range(order):
                below, bessel = bessel, (2 * step + 1) / z * bessel - below
            columns.append(bessel * scaled.new_tensor(norm))
        return (self.envelope(scaled) * torch.cat(columns, 1)).to(distance.dtype)

    def angular(self, cosine: Tensor) -> Tensor:
        """[T] cosine of the angle to [T, num_spherical], by the recurrence of the Legendre polynomials."""
        legendre = [torch.ones_like(cosine), cosine]
        for order in range(2, len(self.angular_norm)):
            legendre.append(((2 * order - 1) * cosine * legendre[-1] - (order - 1) * legendre[-2]) / order)
        return torch.stack(legendre[: len(self.angular_norm)], 1) * cosine.new_tensor(self.angular_norm)

    def forward(self, distance: Tensor, cosine: Tensor, idx_kj: Tensor) -> Tensor:
        """Triplet basis: distance [E] Å, cosine [T], idx_kj [T] to [T, num_spherical * num_radial]."""
        num_spherical, num_radial = self.zeros.shape
        radial = self.radial(distance)[idx_kj].view(-1, num_spherical, num_radial)  # [T, l, n]
        return (radial * self.angular(cosine)[:, :, None]).flatten(1)


class ElementEmbedding(nn.Module):
    """Embedding of an element: learned for itself, plus learned of what chemistry knows of it, which helps
    with those that training has hardly seen.

    Args:
        channels: width.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.own = nn.Embedding(MAX_ATOMIC_NUMBER + 1, channels)
        known = np.nan_to_num([_descriptors(number) for number in range(1, MAX_ATOMIC_NUMBER + 1)])
        table = np.vstack([np.zeros(known.shape[1]), (known - known.mean(0)) / known.std(0)])
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32), persistent=False)
        self.shared = nn.Sequential(
            nn.Linear(table.shape[1], channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """[N] to [N, channels]."""
        return self.own(atomic_numbers) + self.shared(self.table[atomic_numbers])


def _descriptors(number: int) -> list[float]:
    """Group, row, electronegativity, covalent radius, valence electrons, first ionisation energy and electron
    affinity (eV).
    """
    element = Element.from_Z(number)
    return [*element_features(number), element.ionization_energy or 0.0, element.electron_affinity or 0.0]


class PeriodicDimeNetPlusPlus(nn.Module):
    """Adsorption energy of a structure: the mean of per-atom outputs over its adsorbate atoms.

    The readout is local, so the prediction does not change when the structure is repeated, and messages that
    cannot reach the readout atoms within `num_blocks` steps are never computed.

    Args:
        hidden_channels: Width of the messages.
        num_blocks: Interaction blocks.
        cutoff: Å.
        int_emb_size: Width of the triplet interaction.
        basis_emb_size: Width of the embedded basis.
        out_emb_channels: Width of the per-atom output.
        num_spherical: Angular functions.
        num_radial: Radial functions.
        envelope_exponent: Sharpness of the smooth cutoff.
        num_before_skip: Residual layers before the skip connection.
        num_after_skip: Residual layers after it.
        num_output_layers: Layers of the output blocks.
        target_mean: eV; the prediction of a network that has learnt nothing.
        target_std: eV.

    Raises:
        ValueError: num_blocks is below 1.
    """

    def __init__(
        self,
        hidden_channels: int = 64,
        num_blocks: int = 2,
        cutoff: float = 5.0,
        int_emb_size: int = 32,
        basis_emb_size: int = 8,
        out_emb_channels: int = 128,
        num_spherical: int = 7,
        num_radial: int = 6,
        envelope_exponent: int = 5,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_layers: int = 3,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ):
        super().__init__()
        self.hyper_parameters = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.cutoff = float(cutoff)
        self.num_blocks = num_blocks
        act = activation_resolver("swish")
        self.rbf = BesselBasisLayer(num_radial, cutoff, envelope_exponent)
        self.sbf = SphericalBasis(num_spherical, num_radial, cutoff, envelope_exponent)
        self.emb = EmbeddingBlock(num_radial, hidden_channels, act)
        self.emb.emb = ElementEmbedding(hidden_channels)
        self.interaction_blocks = nn.ModuleList(
            InteractionPPBlock(
                hidden_channels,
                int_emb_size,
                basis_emb_size,
                num_spherical,
                num_radial,
                num_before_skip,
                num_after_skip,
                act,
            )
            for _ in range(num_blocks)
        )
        self.output_blocks = nn.ModuleList(
            OutputPPBlock(num_radial, hidden_channels, out_emb_channels, 1, num_output_layers, act)
            for _ in range(num_blocks + 1)
        )
        self.register_buffer("target_mean", torch.tensor(float(target_mean)))
        self.register_buffer("target_std", torch.tensor(float(target_std)))

    def forward(self, data: Data | Batch) -> Tensor:
        """Energies of a graph or a batch of graphs.

        Args:
            data: With the fields of `GRAPH_FIELDS`, and `batch` [N] where there is more than one graph.

        Returns:
            [B] eV, differentiable with respect to pos and cell.

        Raises:
            ValueError: The edges end below the model's cutoff, or an element is unknown to the model.
        """
        self._check(data)
        batch = getattr(data, "batch", None)
        batch = torch.zeros_like(data.tags) if batch is None else batch  # [N]
        readout = readout_atoms(data.tags, batch)  # [N] bool
        edge_index, edge_shift, vector, level = self._edges(data, batch, readout)
        distance = vector.norm(dim=1)  # [E] Å
        # Block k needs the edges into atoms at most num_blocks - k hops from the readout: a prefix of them.
        kept = [int((level <= self.num_blocks - block).sum()) for block in range(self.num_blocks + 1)]

        idx_kj, idx_ji = triplets(edge_index, edge_shift, len(batch), kept[1])  # [T], [T]
        # PyG's DimeNet++ takes the angle between (i - j) and (j - k); `vector` is j - i and k - j.
        cosine = (vector[idx_ji] * vector[idx_kj]).sum(1) / (distance[idx_ji] * distance[idx_kj])  # [T]
        sbf = self.sbf(distance, cosine, idx_kj)  # [T, num_spherical * num_radial]
        rbf = self.rbf(distance)  # [E, num_radial]

        source, target = edge_index
        x = self.emb(data.atomic_numbers, rbf, target, source)  # [E, hidden_channels], a message an edge
        per_atom = self.output_blocks[0](x, rbf, target, num_nodes=len(batch))  # [N, 1]
        blocks = zip(self.interaction_blocks, self.output_blocks[1:])
        for block, (interact, out) in enumerate(blocks, start=1):
            read, write = kept[block - 1], kept[block]
            t = int(torch.searchsorted(idx_ji, write))  # triplets into the edges that are written
            x = interact(x[:read], rbf[:read], sbf[:t], idx_kj[:t], idx_ji[:t])[:write]  # [write, hidden]
            per_atom = per_atom + out(x, rbf[:write], target[:write], num_nodes=len(batch))  # [N, 1]
        graphs = data.cell.shape[0]
        local = scatter(per_atom[readout, 0], batch[readout], dim_size=graphs, reduce="mean")  # [B]
        return local * self.target_std + self.target_mean  # [B] eV

    def _edges(self, data: Data, batch: Tensor, readout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges within the cutoff that can reach a readout atom, nearest level first.

        Returns:
            edge_index [2, E], edge_shift [E, 3], vector [E, 3] Å, level [E] of the atom an edge goes to.
        """
        target = data.edge_index[1]
        vector = edge_vectors(data, batch)
        inside = vector.norm(dim=1) < self.cutoff
        level = readout_level(readout, data.edge_index[:, inside], self.num_blocks)[target[inside]]
        level, order = torch.sort(level, stable=True)
        kept = inside.nonzero()[:, 0][order[level <= self.num_blocks]]
        return data.edge_index[:, kept], data.edge_shift[kept], vector[kept], level[: len(kept)]

    def _check(self, data: Data) -> None:
        if float(data.edge_cutoff.min()) < self.cutoff:
            raise ValueError(
                f"the edges end at {float(data.edge_cutoff.min())} Å, the model needs {self.cutoff} Å"
            )
        if not 1 <= int(data.atomic_numbers.min()) <= int(data.atomic_numbers.max()) <= MAX_ATOMIC_NUMBER:
            raise ValueError(
                f"atomic numbers must be 1 to {MAX_ATOMIC_NUMBER}, got {data.atomic_numbers.unique()}"
            )


def readout_atoms(tags: Tensor, batch: Tensor) -> Tensor:
    """Atoms that the prediction is read from: those tagged 2, or all atoms of a graph where none is.

    Args:
        tags: [N].
        batch: [N], graph of each atom.

    Returns:
        [N] bool.
    """
    tagged = tags == ADSORBATE
    has_adsorbate = scatter(tagged.long(), batch, reduce="max").bool()
    return tagged | ~has_adsorbate[batch]


class Ensemble(nn.Module):
    """Several models trained from other seeds; their mean predicts, their spread says how far to trust it.

    Args:
        members: models of one cutoff.
        spread_scale: factor that makes the members' standard deviation cover the error (68 % within it),
            measured on held-out hosts.
    """

    def __init__(self, members: Sequence[PeriodicDimeNetPlusPlus], spread_scale: float = 1.0):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.cutoff = members[0].cutoff
        self.target_mean = members[0].target_mean
        self.spread_scale = float(spread_scale)

    def forward(self, data: Data | Batch) -> Tensor:
        """Energies [B] of a batch, eV."""
        return self.each(data).mean(0)

    def each(self, data: Data | Batch) -> Tensor:
        """Energies [members, B] of a batch, eV."""
        return torch.stack([member(data) for member in self.members])


def dimenet_content(model: PeriodicDimeNetPlusPlus) -> dict[str, Any]:
    """What a checkpoint of one model holds, plain types and tensors."""
    normalisation = {"target_mean": float(model.target_mean), "target_std": float(model.target_std)}
    return {
        "hyper_parameters": model.hyper_parameters | normalisation,
        "state_dict": model.state_dict(),
    }


def save_dimenet(path: str | os.PathLike, model: PeriodicDimeNetPlusPlus, **extra: Any) -> None:
    """Write a checkpoint of one model, with `extra` (plain types and tensors); appears by rename."""
    save_checkpoint(Path(path), extra | dimenet_content(model))


def save_ensemble(path: str | os.PathLike, ensemble: Ensemble, **extra: Any) -> None:
    """Write a checkpoint of an ensemble: its members, spread_scale, and `extra`; appears by rename."""
    members = [dimenet_content(member) for member in ensemble.members]
    save_checkpoint(Path(path), {**extra, "members": members, "spread_scale": ensemble.spread_scale})


def load_checkpoint(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """All that `save_dimenet` or `save_ensemble` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of this model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: train it with pretrain_dimenet.py --out {path}")
    checkpoint = read_checkpoint(path, map_location)
    if not isinstance(checkpoint, dict) or not (
        {"hyper_parameters", "state_dict"} <= checkpoint.keys() or "members" in checkpoint
    ):
        raise ValueError(f"{path} is no checkpoint of PeriodicDimeNetPlusPlus (see pretrain_dimenet.py)")
    return checkpoint


def load_dimenet(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> Ensemble:
    """Ensemble of a checkpoint, on `map_location`, in evaluation mode; a single model is an ensemble of one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of this model.
    """
    checkpoint = load_checkpoint(path, map_location)
    members = []
    for saved in checkpoint.get("members", [checkpoint]):
        members.append(PeriodicDimeNetPlusPlus(**saved["hyper_parameters"]))
        members[-1].load_state_dict(saved["state_dict"])
    return Ensemble(members, checkpoint.get("spread_scale", 1.0)).to(map_location).eval()


@torch.no_grad()
def predict(
    model: nn.Module, graphs: Sequence[Data], batch_size: int = 32, progress: bool = False
) -> np.ndarray:
    """Energies of many graphs.

    Args:
        model: PeriodicDimeNetPlusPlus or Ensemble; its device is used, its mode (train, eval) makes no
            difference.
        graphs: As `adsorption_graph` makes them.
        batch_size: Graphs at a time.
        progress: Show a bar.

    Returns:
        [n] eV.
    """
    return _in_batches(model, model, graphs, batch_size, progress, np.zeros(0))


@torch.no_grad()
def predict_spread(
    ensemble: Ensemble, graphs: Sequence[Data], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Energies of many graphs and their calibrated spread.

    Returns:
        [n] and [n] eV; the spread of an ensemble of one is NaN.
    """
    each = _in_batches(
        ensemble, ensemble.each, graphs, batch_size, False, np.zeros((len(ensemble.members), 0))
    )
    spread = each.std(0, ddof=1) * ensemble.spread_scale if len(each) > 1 else np.full(each.shape[1], np.nan)
    return each.mean(0), spread


def _in_batches(model, function, graphs, batch_size, progress, empty) -> np.ndarray:
    device = model.target_mean.device
    starts = tqdm(range(0, len(graphs), batch_size), desc="DimeNet++", unit="batch", disable=not progress)
    parts = [function(collate(graphs[start : start + batch_size]).to(device)).cpu() for start in starts]
    return torch.cat(parts, -1).double().numpy() if parts else empty
