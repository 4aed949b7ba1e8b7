"""DenoisingEGNN: a periodic E(3)-equivariant network for layers, in the padded layout [B, N].

Edges are Cartesian vectors x_j − x_i + S·L over in-plane images. Every atom sees its K nearest images through
an envelope that falls to zero at the distance of the (K+1)-th: density-adaptive, and exact under ties,
supercells and any choice of basis. Scalars travel with vector channels (Satorras et al. 2021,
arXiv:2102.09844; Schütt et al. 2021, arXiv:2102.03150 for the vector channels).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.layers import MASK, TOKENS, Layers, TensorFields, reduction

IMAGES = 3  # in-plane images searched for neighbours: −3 … 3 along the rows of the reduced basis
SHORTEST_BOND, FINE_WIDTH = 1.0, 0.1  # Å
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
    with torch.no_grad():
        # Images are searched in the reduced basis: in a skewed one the nearest may lie at b + 4a.
        basis = reduction(layers.cell)  # [B, 2, 2] integers
        cell = basis @ layers.cell
        frac = layers.frac_coords @ torch.linalg.inv(basis)
        span = torch.arange(-IMAGES, IMAGES + 1, device=layers.z.device)
        shifts = torch.cartesian_prod(span, span).to(layers.z.dtype)  # [S, 2]
        delta = frac[:, None] - frac[:, :, None]  # [B, N, N, 2]
        home = torch.round(delta)
        base = (delta - home) @ cell[:, None]
        offsets = shifts @ cell  # [B, S, 2]
        height = (layers.z[:, None] - layers.z[:, :, None]) ** 2
        square = ((base[..., None, :] + offsets[:, None, None]) ** 2).sum(-1) + height[..., None]
        padded = ~(layers.mask[:, None, :, None] & layers.mask[:, :, None, None])
        square = square.masked_fill(padded, torch.inf)
        atoms = torch.arange(square.shape[1], device=square.device)
        square[:, atoms, atoms, len(shifts) // 2] = torch.inf
        b, n, _, s = square.shape
        nearest = square.view(b, n, n * s).topk(k + 1, largest=False).indices
        index, image = nearest // s, nearest % s
        flat = index.view(b, n * (k + 1))
        shift = shifts[image] - torch.gather(home, 2, index[..., None].expand(-1, -1, -1, 2))
        shift = shift @ basis[:, None]  # [B, N, k + 1, 2] in the given basis
    coords = torch.cat([layers.frac_coords, layers.z[..., None]], -1)
    other = torch.gather(coords, 1, flat[..., None].expand(-1, -1, 3)).view(b, n, k + 1, 3)
    plane = (other[..., :2] + shift - coords[:, :, None, :2]) @ layers.cell[:, None]
    vectors = torch.cat([plane, other[..., 2:] - coords[:, :, None, 2:]], -1)
    distance = (vectors**2).sum(-1).add(1e-6).sqrt()
    ratio = (distance[..., :k] / distance[..., k:]).clamp(max=1.0)
    weight = 0.5 * (torch.cos(torch.pi * ratio) + 1) * layers.mask[..., None]
    return index[..., :k], vectors[..., :k, :], weight


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

    def forward(self, h, v, index, unit, radial, weight):
        """Edge tensors: index [B, N, K], unit [B, N, K, 3], radial [B, N, K, R], weight [B, N, K]."""
        b, n, k = index.shape
        flat = index.reshape(b, n * k, 1)
        x = self.norm(h)
        sender = torch.gather(self.sender(x), 1, flat.expand(-1, -1, h.shape[-1])).view(b, n, k, -1)
        v_other = torch.gather(v.flatten(2), 1, flat.expand(-1, -1, 3 * self.vectors)).view(
            b, n, k, self.vectors, 3
        )
        along = torch.cat(
            [(v_other * unit[..., None, :]).sum(-1), torch.einsum("bnvd,bnkd->bnkv", v, unit)], -1
        )
        message = nn.functional.silu(
            self.receiver(x)[:, :, None] + sender + self.edge(torch.cat([radial, along], -1))
        )
        message = message * weight[..., None]
        radial_part, vector_part = self.coordinate(message).mul(weight[..., None]).chunk(2, -1)
        pulled = torch.einsum("bnkv,bnkd->bnvd", radial_part, unit) + (vector_part[..., None] * v_other).sum(
            2
        )
        left, right = self.mix((v + pulled / k**0.5).transpose(-1, -2)).transpose(-1, -2).chunk(2, 2)
        change = self.update(torch.cat([x, message.sum(2) / k**0.5, (left * right).sum(-1)], -1))
        scalars, gate = change.split([h.shape[-1], self.vectors], -1)
        return h + scalars, v + pulled / k**0.5 + torch.tanh(gate)[..., None] * left


class Condition(nn.Module):
    """Embedding of one target value; NaN stands for "not given" and has a learned embedding of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(1, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.null = nn.Parameter(torch.randn(channels) * 0.1)

    def forward(self, target):
        known = ~torch.isnan(target)
        embedded = self.value(torch.nan_to_num(target)[:, None])
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
        fine: further ones, FINE_WIDTH Å apart over the lengths of bonds: late in denoising an atom moves by
            hundredths of an Å.
    """

    def __init__(
        self, channels=128, vectors=16, trunk=3, conditional=2, neighbours=20, radial=24, fine=40, reach=9.0
    ):
        super().__init__()
        self.hparams = dict(
            channels=channels,
            vectors=vectors,
            trunk=trunk,
            conditional=conditional,
            neighbours=neighbours,
            radial=radial,
            fine=fine,
            reach=reach,
        )
        coarse = torch.linspace(0, reach**0.5, radial) ** 2
        widths = torch.diff(coarse, append=coarse[-1:] + 1.0).clamp(min=0.2)
        bonds = SHORTEST_BOND + FINE_WIDTH * torch.arange(fine)
        self.register_buffer("centres", torch.cat([coarse, bonds]), persistent=False)
        self.register_buffer(
            "widths", torch.cat([widths, torch.full_like(bonds, FINE_WIDTH)]), persistent=False
        )
        self.element = nn.Embedding(TOKENS, channels)
        self.time = nn.Sequential(nn.Linear(32, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.conditions = nn.ModuleList(Condition(channels) for _ in CONDITIONS)
        make = lambda count: nn.ModuleList(
            EquivariantLayer(channels, vectors, radial + fine) for _ in range(count)
        )
        self.trunk, self.conditional = make(trunk), make(conditional)
        self.attention = nn.Linear(channels, 8)
        head = lambda count: nn.Sequential(
            nn.Linear(9 * channels, channels), nn.SiLU(), nn.Linear(channels, count)
        )
        self.heads, self.uncertainty = head(3), head(1)
        self.vector_gates = nn.Linear(channels, 3 * vectors)
        self.lattice = nn.Sequential(nn.Linear(2 * channels + 4, channels), nn.SiLU(), nn.Linear(channels, 3))
        self.slot = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, TOKENS))

    def forward(self, layers: Layers, t, lattice, conditions=None, properties=True) -> Denoised:
        """Everything the sampler and the loss need.

        Args:
            layers: noised batch.
            t: [B] time in [0, 1].
            lattice: [B, 3] the noised standardised lattice that `layers.cell` was made of.
            conditions: [B, 3] targets in the order of CONDITIONS, NaN where not given; None for none at all.
            properties: whether to evaluate the property heads.
        """
        h, v, edges, time = self._embed(layers, t)
        for layer in self.trunk:
            h, v = layer(h, v, *edges)
        predicted = self._properties(h, layers.mask) if properties else None
        if conditions is None:
            conditions = lattice.new_full((len(layers), len(CONDITIONS)), torch.nan)
        given = sum(embed(conditions[:, k]) for k, embed in enumerate(self.conditions))
        h = h + (given + time)[:, None]
        for layer in self.conditional:
            h, v = layer(h, v, *edges)
        return self._channels(h, v, layers, lattice, predicted)

    def properties(self, layers: Layers, t: Tensor) -> Heads:
        """What the heads say of the noised batch at times t [B]; the condition is never seen."""
        h, v, edges, _ = self._embed(layers, t)
        for layer in self.trunk:
            h, v = layer(h, v, *edges)
        return self._properties(h, layers.mask)

    def _embed(self, layers, t):
        index, vectors, weight = neighbours(layers, self.hparams["neighbours"])
        distance = (vectors**2).sum(-1).add(1e-6).sqrt()
        radial = torch.exp(-(((distance[..., None] - self.centres) / self.widths) ** 2))
        frequencies = torch.arange(1, 17, device=t.device) * torch.pi / 2
        angles = t[:, None] * frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        h = self.element(layers.atomic_numbers) + time[:, None]
        v = h.new_zeros(*h.shape[:2], self.hparams["vectors"], 3)
        return h, v, (index, vectors / distance[..., None], radial, weight), time

    def _properties(self, h, mask):
        keep = mask[..., None]
        share = self.attention(h).masked_fill(~keep, -torch.inf).softmax(1)  # [B, N, 8]
        pooled = torch.einsum("bna,bnc->bac", share, h).flatten(1)
        mean = (h * keep).sum(1) / keep.sum(1)
        pooled = torch.cat([pooled, mean], -1)
        spread = nn.functional.softplus(self.uncertainty(pooled)).squeeze(-1)  # [B]
        return Heads(*self.heads(pooled).unbind(-1), spread)

    def _channels(self, h, v, layers, lattice, predicted):
        keep = layers.mask[..., None].to(h.dtype)
        count = keep.sum(1)
        for_plane, for_z, for_lattice = self.vector_gates(h).chunk(3, -1)
        score = (for_plane[..., None] * v).sum(2)[..., :2] * keep
        score = (score - score.sum(1, keepdim=True) / count[:, None]) * keep
        z = ((for_z[..., None] * v).sum(2)[..., 2:] * keep).squeeze(-1)
        z = (z - z.sum(1, keepdim=True) / count) * keep[..., 0]
        strain = (
            torch.einsum("bnv,bnvd,bnve->bde", for_lattice * keep, v[..., :2], v[..., :2]) / count[..., None]
        )
        mean = (h * keep).sum(1) / count
        top = h.masked_fill(~layers.mask[..., None], -torch.inf).amax(1)
        features = torch.cat([mean, top, lattice, count.log()], -1)
        lattice = self.lattice(features) + in_lattice_frame(strain, layers.cell)
        return Denoised(score, z, lattice, self._slot_logits(h, layers), predicted)

    def _slot_logits(self, h, layers):
        slots = int(layers.slots.max()) + 1
        member = nn.functional.one_hot(layers.slots, slots).to(h.dtype) * layers.mask[..., None]
        pooled = torch.einsum("bns,bnc->bsc", member, h) / member.sum(1).clamp(min=1)[..., None]
        logits = self.slot(pooled)
        logits[..., 0] = logits[..., MASK] = -1e4
        return logits


def in_lattice_frame(tensor, cell):
    """Components [B, 3] (11, 22, 12) of a symmetric Cartesian tensor [B, 2, 2] in the frame where cell =
    exp(S).
    """
    left, _, right = torch.linalg.svd(cell.detach())
    rotation = left @ right  # cell = exp(S) @ rotation
    turned = rotation @ tensor @ rotation.transpose(-1, -2)
    return torch.stack([turned[:, 0, 0], turned[:, 1, 1], turned[:, 0, 1]], -1)
