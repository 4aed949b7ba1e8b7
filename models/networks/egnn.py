"""DenoisingEGNN: a periodic E(3)-equivariant network for layers, in the padded layout [B, N].

Edges are Cartesian vectors x_j − x_i + S·L over in-plane images. Every atom sees its K nearest images through
an envelope that falls to zero at the distance of the (K+1)-th: density-adaptive, and exact under ties,
supercells and any choice of basis. Scalars travel with vector channels (Satorras et al. 2021,
arXiv:2102.09844; Schütt et al. 2021, arXiv:2102.03150 for the vector channels).
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.networks.layers import MASK, TOKENS, Layers, TensorFields, reduction

# In-plane images searched for neighbours, −3 … 3 along the rows of a reduced basis: the 21 nearest of any
# atom of a reduced
# cell lie there.
IMAGES = 3
# Å; Gaussians this far apart cover the lengths of bonds: late in denoising an atom moves by hundredths of
# an Å.
SHORTEST_BOND, FINE_WIDTH = 1.0, 0.1
# Å²; under the square root, so that an atom on another has a finite gradient.
SOFTENING = 1e-6
TIME_WAVES = 16  # frequencies of the embedding of t, π/2 apart: the fastest turns four times over t in [0, 1]
ATTENTION = 8  # weighted means over the atoms that the property heads read, beside the plain mean
CONDITIONS = ("delta_g_h", "e_hull", "synthesizable")  # names of Labels that the network can be asked for


@dataclass
class Heads(TensorFields):
    """What the property heads say of B layers.

    Attributes:
        delta_g_h: [B] ΔG_H, eV.
        e_hull: [B] E_hull, eV/atom.
        synth_logit: [B] logit of P_synth.
        delta_g_h_std: [B] how far DimeNet++'s members are apart on ΔG_H, eV.
    """

    delta_g_h: Tensor
    e_hull: Tensor
    synth_logit: Tensor
    delta_g_h_std: Tensor


@dataclass
class Denoised:
    """What DenoisingEGNN says of a noised batch.

    Attributes:
        score: [B, N, 2] σ_t times the in-plane score, dimensionless, in the frame of `cell`.
        z: [B, N] v-prediction of z, mean-free over the atoms.
        lattice: [B, 3] v-prediction of the standardised lattice.
        slot_logits: [B, S, TOKENS] elements of the slots.
        properties: what the heads say; None if not asked for.
    """

    score: Tensor
    z: Tensor
    lattice: Tensor
    slot_logits: Tensor
    properties: Heads | None


def neighbours(layers: Layers, k: int):
    """The k nearest in-plane images of every atom.

    Returns:
        index [B, N, k] of the neighbour, vectors [B, N, k, 3] Å from the atom to it,
        weight [B, N, k] of the envelope (0 on padding).
    """
    index, shift = _nearest_images(layers, k + 1)  # [B, N, k+1], [B, N, k+1, 2]
    b, n, _ = index.shape
    flat = index.view(b, n * (k + 1), 1).expand(-1, -1, 3)
    coords = torch.cat([layers.frac_coords, layers.z[..., None]], -1)  # [B, N, 3], fractional and Å
    other = torch.gather(coords, 1, flat).view(b, n, k + 1, 3)
    plane = (other[..., :2] + shift - coords[:, :, None, :2]) @ layers.cell[:, None]  # [B, N, k+1, 2] Å
    vectors = torch.cat([plane, other[..., 2:] - coords[:, :, None, 2:]], -1)  # [B, N, k+1, 3] Å
    distance = (vectors**2).sum(-1).add(SOFTENING).sqrt()  # [B, N, k+1]
    ratio = (distance[..., :k] / distance[..., k:]).clamp(max=1.0)  # [B, N, k]
    weight = 0.5 * (torch.cos(torch.pi * ratio) + 1) * layers.mask[..., None]
    return index[..., :k], vectors[..., :k, :], weight


@torch.no_grad()
def _nearest_images(layers: Layers, count: int) -> tuple[Tensor, Tensor]:
    """Index [B, N, count] of the atoms whose images are nearest to each atom, and the images' lattice shifts
    [B, N, count, 2].
    """
    # In a skewed basis the nearest image may lie at b + 4a: the search is in the reduced one.
    basis = reduction(layers.cell)  # [B, 2, 2] integers
    cell = basis @ layers.cell
    frac = layers.frac_coords @ torch.linalg.inv(basis)  # [B, N, 2]
    span = torch.arange(-IMAGES, IMAGES + 1, device=layers.z.device)
    shifts = torch.cartesian_prod(span, span).to(layers.z.dtype)  # [S, 2]
    delta = frac[:, None] - frac[:, :, None]  # [B, N, N, 2], from the first atom
    home = torch.round(delta)
    base = (delta - home) @ cell[:, None]  # [B, N, N, 2] Å
    offsets = shifts @ cell  # [B, S, 2] Å
    height = (layers.z[:, None] - layers.z[:, :, None]) ** 2  # [B, N, N]
    square = ((base[..., None, :] + offsets[:, None, None]) ** 2).sum(-1) + height[..., None]  # [B, N, N, S]
    padded = ~(layers.mask[:, None, :, None] & layers.mask[:, :, None, None])
    square = square.masked_fill(padded, torch.inf)
    atoms = torch.arange(square.shape[1], device=square.device)
    square[:, atoms, atoms, len(shifts) // 2] = torch.inf  # no atom is its own neighbour, its images are
    b, n, _, s = square.shape
    nearest = square.view(b, n, n * s).topk(count, largest=False).indices  # [B, N, count]
    index, image = nearest // s, nearest % s
    shift = shifts[image] - torch.gather(home, 2, index[..., None].expand(-1, -1, -1, 2))
    return index, shift @ basis[:, None]


class Edges(NamedTuple):
    """What every layer sees of the neighbours.

    Attributes:
        index: [B, N, K] the neighbour.
        unit: [B, N, K, 3] towards it.
        radial: [B, N, K, R] basis functions of the distance.
        weight: [B, N, K] of the envelope.
    """

    index: Tensor
    unit: Tensor
    radial: Tensor
    weight: Tensor


class EquivariantLayer(nn.Module):
    """One message-passing step on scalars h [B, N, C] and vectors v [B, N, V, 3]."""

    def __init__(self, channels: int, vectors: int, radial: int):
        super().__init__()
        self.vectors = vectors
        self.norm = nn.LayerNorm(channels)
        self.receiver = nn.Linear(channels, channels)
        self.sender = nn.Linear(channels, channels, bias=False)
        self.edge = nn.Linear(radial + 2 * vectors, channels, bias=False)
        self.coordinate = nn.Linear(channels, 2 * vectors)
        self.mix = nn.Linear(vectors, 2 * vectors, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * channels + vectors, channels), nn.SiLU(), nn.Linear(channels, channels + vectors)
        )

    def forward(self, h: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """New h [B, N, C] and v [B, N, V, 3]."""
        b, n, k = edges.index.shape
        flat = edges.index.reshape(b, n * k, 1)  # gather takes the neighbours of all atoms in one row
        weight = edges.weight[..., None]  # [B, N, K, 1]
        x = self.norm(h)

        # what each neighbour sends, and what the vectors of both ends have along the edge
        sender = torch.gather(self.sender(x), 1, flat.expand(-1, -1, h.shape[-1])).view(b, n, k, -1)
        v_other = torch.gather(v.flatten(2), 1, flat.expand(-1, -1, 3 * self.vectors))
        v_other = v_other.view(b, n, k, self.vectors, 3)
        theirs = (v_other * edges.unit[..., None, :]).sum(-1)  # [B, N, K, V]
        own = torch.einsum("bnvd,bnkd->bnkv", v, edges.unit)  # [B, N, K, V]
        along = torch.cat([theirs, own], -1)  # [B, N, K, 2V]
        edge = self.edge(torch.cat([edges.radial, along], -1))  # [B, N, K, C]
        message = nn.functional.silu(self.receiver(x)[:, :, None] + sender + edge) * weight

        # vectors: Σ φ(m_ij) (x_j − x_i) and what the neighbours' vectors bring
        radial_part, vector_part = self.coordinate(message).mul(weight).chunk(2, -1)  # [B, N, K, V] each
        pulled = torch.einsum("bnkv,bnkd->bnvd", radial_part, edges.unit)  # [B, N, V, 3]
        pulled = pulled + (vector_part[..., None] * v_other).sum(2)
        # sums over K neighbours grow like √K, not K, as the messages have no common sign
        mixed = self.mix((v + pulled / k**0.5).transpose(-1, -2)).transpose(-1, -2)  # [B, N, 2V, 3]
        left, right = mixed.chunk(2, 2)  # [B, N, V, 3] each

        # scalars: messages, and the invariant products of the vectors
        change = self.update(torch.cat([x, message.sum(2) / k**0.5, (left * right).sum(-1)], -1))
        scalars, gate = change.split([h.shape[-1], self.vectors], -1)  # [B, N, C], [B, N, V]
        return h + scalars, v + pulled / k**0.5 + torch.tanh(gate)[..., None] * left


class Condition(nn.Module):
    """Embedding of one target value; NaN stands for "not given" and has a learned embedding of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(1, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.null = nn.Parameter(torch.randn(channels) * 0.1)

    def forward(self, target: Tensor) -> Tensor:
        """[B, C] of targets [B]."""
        known = ~torch.isnan(target)  # [B]
        embedded = self.value(torch.nan_to_num(target)[:, None])  # [B, C]
        return torch.where(known[:, None], embedded, self.null)


class DenoisingEGNN(nn.Module):
    """Denoises layers and predicts their properties.

    The trunk sees the noised structure and the time; its property heads branch off before the condition
    enters. The conditional layers above it give score, z, lattice and slot elements.

    Args:
        channels, vectors: widths of the scalar and the vector features.
        trunk, conditional: numbers of layers below and above the condition.
        neighbours: images that each atom sees.
        radial: Gaussian basis functions of the distance, up to `reach` Å.
        fine: further ones, FINE_WIDTH Å apart over the lengths of bonds.
    """

    def __init__(
        self, channels=128, vectors=16, trunk=3, conditional=2, neighbours=20, radial=24, fine=40, reach=9.0
    ):
        super().__init__()
        names = ("channels", "vectors", "trunk", "conditional", "neighbours", "radial", "fine", "reach")
        given = (channels, vectors, trunk, conditional, neighbours, radial, fine, reach)
        self.hparams = dict(zip(names, given))  # travels in the checkpoint
        # Gaussians on a quadratic grid, dense where bonds are and wide where there is little to tell apart
        coarse = torch.linspace(0, reach**0.5, radial) ** 2
        widths = torch.diff(coarse, append=coarse[-1:] + 1.0).clamp(min=0.2)
        bonds = SHORTEST_BOND + FINE_WIDTH * torch.arange(fine)
        self.register_buffer("centres", torch.cat([coarse, bonds]), persistent=False)
        self.register_buffer(
            "widths", torch.cat([widths, torch.full_like(bonds, FINE_WIDTH)]), persistent=False
        )
        self.element = nn.Embedding(TOKENS, channels)
        self.time = nn.Sequential(
            nn.Linear(2 * TIME_WAVES, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        self.conditions = nn.ModuleList(Condition(channels) for _ in CONDITIONS)
        layer = partial(EquivariantLayer, channels, vectors, radial + fine)
        self.trunk = nn.ModuleList(layer() for _ in range(trunk))
        self.conditional = nn.ModuleList(layer() for _ in range(conditional))
        self.attention = nn.Linear(channels, ATTENTION)
        pooled = (ATTENTION + 1) * channels
        self.heads = nn.Sequential(nn.Linear(pooled, channels), nn.SiLU(), nn.Linear(channels, 3))
        self.uncertainty = nn.Sequential(nn.Linear(pooled, channels), nn.SiLU(), nn.Linear(channels, 1))
        self.vector_gates = nn.Linear(channels, 3 * vectors)
        self.lattice = nn.Sequential(nn.Linear(2 * channels + 4, channels), nn.SiLU(), nn.Linear(channels, 3))
        self.slot = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, TOKENS))

    def forward(
        self, layers: Layers, t: Tensor, lattice: Tensor, conditions: Tensor | None = None, properties=True
    ) -> Denoised:
        """Everything the sampler and the loss need.

        Args:
            layers: noised batch.
            t: [B] time in [0, 1].
            lattice: [B, 3] the noised standardised lattice that `layers.cell` was made of.
            conditions: [B, 3] targets in the order of CONDITIONS, NaN where not given; None for none at all.
            properties: whether to evaluate the property heads.
        """
        h, v, edges, time = self._embed(layers, t)  # [B, N, C], [B, N, V, 3], edges, [B, C]
        for layer in self.trunk:
            h, v = layer(h, v, edges)
        # the heads branch off here, below the condition: they cannot copy it
        predicted = self._properties(h, layers.mask) if properties else None
        if conditions is None:
            conditions = lattice.new_full((len(layers), len(CONDITIONS)), torch.nan)
        given = sum(embed(conditions[:, k]) for k, embed in enumerate(self.conditions))  # [B, C]
        h = h + (given + time)[:, None]
        for layer in self.conditional:
            h, v = layer(h, v, edges)
        return self._channels(h, v, layers, lattice, predicted)

    def properties(self, layers: Layers, t: Tensor, slot_elements: Tensor | None = None) -> Heads:
        """What the heads say of the noised batch at times t [B]; the condition is never seen.

        Args:
            slot_elements: [B, S, TOKENS] weights of the elements in each slot, in place of the atomic
                numbers: a relaxed one-hot, which the heads can be differentiated in.
        """
        h, v, edges, _ = self._embed(layers, t, slot_elements)
        for layer in self.trunk:
            h, v = layer(h, v, edges)
        return self._properties(h, layers.mask)

    def _embed(
        self, layers: Layers, t: Tensor, slot_elements: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Edges, Tensor]:
        """h [B, N, C], v [B, N, V, 3] of zeros, the edges, and the embedded time [B, C]."""
        index, vectors, weight = neighbours(layers, self.hparams["neighbours"])
        distance = (vectors**2).sum(-1).add(SOFTENING).sqrt()  # [B, N, K]
        radial = torch.exp(-(((distance[..., None] - self.centres) / self.widths) ** 2))  # [B, N, K, R]
        frequencies = torch.arange(1, TIME_WAVES + 1, device=t.device) * torch.pi / 2
        angles = t[:, None] * frequencies  # [B, TIME_WAVES]
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))  # [B, C]
        if slot_elements is None:
            element = self.element(layers.atomic_numbers)  # [B, N, C]
        else:
            of_slot = slot_elements @ self.element.weight  # [B, S, C]
            element = torch.gather(of_slot, 1, layers.slots[..., None].expand(-1, -1, of_slot.shape[-1]))
        h = element + time[:, None]  # [B, N, C]
        v = h.new_zeros(*h.shape[:2], self.hparams["vectors"], 3)
        return h, v, Edges(index, vectors / distance[..., None], radial, weight), time

    def _properties(self, h: Tensor, mask: Tensor) -> Heads:
        keep = mask[..., None]  # [B, N, 1]
        share = self.attention(h).masked_fill(~keep, -torch.inf).softmax(1)  # [B, N, ATTENTION]
        pooled = torch.einsum("bna,bnc->bac", share, h).flatten(1)  # [B, ATTENTION · C]
        mean = (h * keep).sum(1) / keep.sum(1)  # [B, C]: a supercell has the properties of its cell
        pooled = torch.cat([pooled, mean], -1)
        spread = nn.functional.softplus(self.uncertainty(pooled)).squeeze(-1)  # [B]
        return Heads(*self.heads(pooled).unbind(-1), spread)

    def _channels(self, h: Tensor, v: Tensor, layers: Layers, lattice: Tensor, predicted) -> Denoised:
        keep = layers.mask[..., None].to(h.dtype)  # [B, N, 1]
        count = keep.sum(1)  # [B, 1]
        for_plane, for_z, for_lattice = self.vector_gates(h).chunk(3, -1)  # [B, N, V] each

        # the layer as a whole does not move: score and z less their means
        score = (for_plane[..., None] * v).sum(2)[..., :2] * keep  # [B, N, 2]
        score = (score - score.sum(1, keepdim=True) / count[:, None]) * keep
        z = ((for_z[..., None] * v).sum(2)[..., 2:] * keep).squeeze(-1)  # [B, N]
        z = (z - z.sum(1, keepdim=True) / count) * keep[..., 0]

        # the lattice: what the invariants say of its size, and a strain out of the vectors
        plane = v[..., :2]  # [B, N, V, 2]
        strain = torch.einsum("bnv,bnvd,bnve->bde", for_lattice * keep, plane, plane) / count[..., None]
        mean = (h * keep).sum(1) / count  # [B, C]
        top = h.masked_fill(~layers.mask[..., None], -torch.inf).amax(1)  # [B, C]
        features = torch.cat([mean, top, lattice, count.log()], -1)  # [B, 2C + 4]
        lattice = self.lattice(features) + in_lattice_frame(strain, layers.cell)  # [B, 3]
        return Denoised(score, z, lattice, self._slot_logits(h, layers), predicted)

    def _slot_logits(self, h: Tensor, layers: Layers) -> Tensor:
        """[B, S, TOKENS] from the mean over the atoms of each slot; never the padding or the mask."""
        slots = int(layers.slots.max()) + 1
        member = nn.functional.one_hot(layers.slots, slots).to(h.dtype) * layers.mask[..., None]  # [B, N, S]
        pooled = torch.einsum("bns,bnc->bsc", member, h) / member.sum(1).clamp(min=1)[..., None]
        logits = self.slot(pooled)
        logits[..., 0] = logits[..., MASK] = -1e4
        return logits


def in_lattice_frame(tensor: Tensor, cell: Tensor) -> Tensor:
    """Components [B, 3] (11, 22, 12) of a symmetric Cartesian tensor [B, 2, 2] in the frame where cell =
    exp(S).
    """
    left, _, right = torch.linalg.svd(cell.detach())
    rotation = left @ right  # [B, 2, 2], cell = exp(S) @ rotation
    turned = rotation @ tensor @ rotation.transpose(-1, -2)
    return torch.stack([turned[:, 0, 0], turned[:, 1, 1], turned[:, 0, 1]], -1)
