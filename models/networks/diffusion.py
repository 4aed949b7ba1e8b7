"""The forward process of a layer and the joint loss.

One noise level σ(t) in Å drives all channels, ᾱ_t = 1 / (1 + σ_t²):
  in-plane coordinates  Cartesian Gaussian of width σ_t wrapped onto the torus of the current cell (variance
  exploding) z                     √ᾱ_t z + √(1 − ᾱ_t) ε, mean-free, Å (variance preserving; its
  noise-to-signal is σ_t Å too) lattice               the same update on S = ½ log(L Lᵀ), less ½ log N,
  standardised over the training set slot elements         masked (absorbing), at a rate drawn apart from t
The in-plane noise lives in the metric of the noised cell, so it is isotropic in Å in every cell, skewed or
not.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.egnn import CONDITIONS, Denoised, DenoisingEGNN, Heads
from models.networks.layers import MASK, Labels, Layers

MAX_E_HULL = 1.0  # eV/atom; how bad beyond that a structure is, no guide needs to know
EMPHASIS = 0.6  # of the middle times in training, 0 for none
# Å, standard deviation of z over C2DB: a loss that forgets it learns how thick layers are, and little else
Z_SPREAD = 1.9
SHOWN = 0.5  # share of the graphs in training that show all their elements
IMAGES = (10, 2)  # terms along the short and the long direction in the sums of the wrapped normal


class Diffusion(nn.Module):
    """Schedule, lattice scale and forward noise.

    Args:
        steps: T, number of discrete times.
        sigma_min, sigma_max: noise level in Å at t = 1 and t = T.
        lattice_mean, lattice_std: [3] statistics of the unscaled lattice over the training set.
    """

    def __init__(
        self, steps=1000, sigma_min=0.01, sigma_max=8.0, lattice_mean=(0.0,) * 3, lattice_std=(1.0,) * 3
    ):
        super().__init__()
        self.hparams = dict(steps=steps, sigma_min=sigma_min, sigma_max=sigma_max)
        sigmas = torch.exp(torch.linspace(math.log(sigma_min), math.log(sigma_max), steps))
        self.register_buffer("sigmas", torch.cat([torch.zeros(1), sigmas]), persistent=False)
        self.register_buffer("alphas_cumprod", 1 / (1 + self.sigmas**2), persistent=False)
        self.register_buffer(
            "betas", 1 - self.alphas_cumprod[1:] / self.alphas_cumprod[:-1], persistent=False
        )
        self.register_buffer("lattice_mean", torch.as_tensor(lattice_mean, dtype=torch.float32))
        self.register_buffer("lattice_std", torch.as_tensor(lattice_std, dtype=torch.float32))

    @property
    def steps(self):
        return self.hparams["steps"]

    def time(self, t):
        """Network time in [0, 1] of the integer time t."""
        return t / self.steps

    def random_times(self, count, generator=None):
        """Integer times [count] in 1 … T, in random order: one from each of `count` parts that are narrow
        where the crystal is decided.

        The density is 1 / (1 − EMPHASIS) in the middle, where σ is tenths of an Å, and 1 / (1 + EMPHASIS) at
        either end.
        """
        part = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        warped = part + EMPHASIS * torch.sin(2 * torch.pi * part) / (2 * torch.pi)
        return 1 + (warped * self.steps).long().clamp(0, self.steps - 1)

    def z_spread(self, t):
        """Standard deviation [B] Å of the v-target of z at integer times t [B]."""
        abar = self.alphas_cumprod[t]
        return (abar + (1 - abar) * Z_SPREAD**2).sqrt()

    def encode_lattice(self, cell, count):
        """Standardised lattice [B, 3] of in-plane cells [B, 2, 2] Å with `count` [B] atoms."""
        return (raw_lattice(cell, count) - self.lattice_mean) / self.lattice_std

    def decode_lattice(self, lattice, count):
        """In-plane cells [B, 2, 2] Å, symmetric, of standardised lattices [B, 3]."""
        s = lattice * self.lattice_std + self.lattice_mean
        size = 0.5 * count.to(s.dtype).log()
        matrix = torch.stack(
            [torch.stack([s[:, 0] + size, s[:, 2]], -1), torch.stack([s[:, 2], s[:, 1] + size], -1)], -2
        )
        return torch.linalg.matrix_exp(matrix)

    def noise(self, layers: Layers, t, generator=None):
        """Noised structure at integer times t [B].

        Returns:
            layers_t, lattice_t [B, 3], and the targets: σ·score [B, N, 2], v of z [B, N], v of the lattice
            [B, 3].
        """
        keep = layers.mask.to(layers.z.dtype)
        count = keep.sum(1)
        sigma, abar = self.sigmas[t], self.alphas_cumprod[t]
        normal = lambda like: torch.randn(like.shape, generator=generator).to(like)
        a, b = abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]

        lattice = self.encode_lattice(layers.cell, count)
        eps_l = normal(lattice)
        lattice_t = a * lattice + b * eps_l
        cell = self.decode_lattice(lattice_t, count)

        z = mean_free(layers.z, keep)
        eps_z = mean_free(normal(z), keep)
        z_t = a * z + b * eps_z

        displacement = sigma[:, None, None] * normal(layers.frac_coords) * keep[..., None]
        frac = (layers.frac_coords + displacement @ torch.linalg.inv(cell)) % 1.0
        score = wrapped_normal_score(displacement, sigma, cell) * keep[..., None]
        score = (score - score.sum(1, keepdim=True) / count[:, None, None]) * keep[..., None]
        noised = layers.replace(frac_coords=frac, z=z_t, cell=cell)
        return noised, lattice_t, score, a * eps_z - b * z, a * eps_l - b * lattice

    def epsilon(self, v, x_t, t):
        """Noise ε of a variance-preserving channel from its v-prediction."""
        shape = (-1,) + (1,) * (x_t.dim() - 1)
        abar = self.alphas_cumprod[t].view(shape)
        return abar.sqrt() * v + (1 - abar).sqrt() * x_t


def raw_lattice(cell, count):
    """S = ½ log(L Lᵀ) as (11, 22, 12), less ½ log N on the diagonal: [B, 3] from [B, 2, 2] Å and [B]."""
    values, vectors = torch.linalg.eigh(cell @ cell.transpose(-1, -2))
    s = 0.5 * torch.einsum("bij,bj,bkj->bik", vectors, values.log(), vectors)
    size = 0.5 * count.to(s.dtype).log()
    return torch.stack([s[:, 0, 0] - size, s[:, 1, 1] - size, s[:, 0, 1]], -1)


def mean_free(x, keep):
    """x [B, N] less its mean over the atoms; 0 on padding (keep [B, N])."""
    return (x - (x * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)) * keep


def reduced(cell):
    """Gauss-reduced rows [B, 2, 2] of the same lattices: a the shortest, |a·b| <= a·a / 2."""
    a, b = cell[:, :1], cell[:, 1:]
    for _ in range(16):
        longer = a.norm(dim=-1, keepdim=True) > b.norm(dim=-1, keepdim=True)
        a, b = torch.where(longer, b, a), torch.where(longer, a, b)
        b = b - torch.round((a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True)) * a
    return torch.cat([a, b], 1)


def wrapped_normal_score(displacement, sigma, cell):
    """σ ∇ log p of a normal of width σ wrapped onto the torus of a cell.

    Sums over lattice images while σ is small against the cell, over reciprocal vectors otherwise; either sum
    runs far along its own short direction, so that together they hold in cells up to about 12 times as long
    as wide.

    Args:
        displacement: [B, N, 2] Å from the centre; any image.
        sigma: [B] Å.
        cell: [B, 2, 2] Å, any basis.

    Returns:
        [B, N, 2], dimensionless.
    """
    far, near = (torch.arange(-n, n + 1, device=cell.device, dtype=cell.dtype) for n in IMAGES)
    cell = reduced(cell)
    inverse = torch.linalg.inv(cell)
    frac = displacement @ inverse
    home = (frac - torch.round(frac)) @ cell
    images = home[:, :, None] + (torch.cartesian_prod(far, near) @ cell)[:, None]  # [B, N, M, 2]
    width = sigma[:, None, None]
    share = torch.softmax(-(images**2).sum(-1) / (2 * width**2), -1)
    direct = -(share[..., None] * images).sum(2) / width

    reciprocal = 2 * torch.pi * torch.cartesian_prod(near, far) @ inverse.transpose(-1, -2)  # [B, M, 2]
    decay = torch.exp(-(reciprocal**2).sum(-1) * sigma[:, None] ** 2 / 2)[:, None]
    phase = home @ reciprocal.transpose(-1, -2)
    density = (decay * phase.cos()).sum(-1, keepdim=True).clamp(min=1e-6)
    dual = -width * torch.einsum("bnm,bmd->bnd", decay * phase.sin(), reciprocal) / density

    heights = 1 / inverse.norm(dim=1)  # spacing of the lattice lines, Å
    missing = (
        (heights * heights.new_tensor([n + 0.5 for n in IMAGES])).min(-1).values
    )  # Å to the first image left out
    return torch.where((sigma > missing / 6)[:, None, None], dual, direct)


def mask_slots(layers: Layers, generator=None) -> Layers:
    """Shows all elements of a share SHOWN of the graphs; hides the slots of the others at a rate drawn
    uniformly for each graph.
    """
    rate = torch.rand(len(layers), 1, generator=generator) * (
        torch.rand(len(layers), 1, generator=generator) >= SHOWN
    )
    hidden = torch.rand(layers.slots.shape, generator=generator) < rate
    hidden = torch.gather(hidden.to(layers.slots.device), 1, layers.slots) & layers.mask
    return layers.replace(atomic_numbers=torch.where(hidden, MASK, layers.atomic_numbers))


LOSS_WEIGHTS = {
    "coordinates": 1.0,
    "z": 1.0,
    "lattice": 0.5,
    "elements": 0.3,  # the diffusion term, channel by channel
    "delta_g_h": 0.5,
    "e_hull": 10.0,
    "synthesizable": 0.2,  # λ1, λ2, λ3
    "delta_g_h_std": 0.5,
    "off_equilibrium": 0.5,
}


def joint_loss(
    model: DenoisingEGNN,
    diffusion: Diffusion,
    layers: Layers,
    labels: Labels,
    weights=LOSS_WEIGHTS,
    drop=0.15,
    generator=None,
    drop_all=0.0,
):
    """L_total = E‖ε − ε_θ(x_t, t)‖² + λ1 ‖ΔG_H − ΔG_H*‖₁ + λ2 ‖E_hull − E_hull*‖² + λ3 BCE(P_synth, y_synth).

    Args:
        labels: of the batch; NaN is unknown and masked.
        weights: of the four diffusion channels, λ1, λ2, λ3, and of the head of the standard deviation.
        drop: probability with which each condition is replaced by its learned null.
        drop_all: probability with which all conditions of a graph are, together.

    Returns:
        total loss, and its unweighted terms by name.
    """
    t = diffusion.random_times(len(layers), generator).to(layers.z.device)
    noised, lattice_t, score, v_z, v_lattice = diffusion.noise(layers, t, generator)
    noised = mask_slots(noised, generator)
    targets = torch.stack([getattr(labels, name) for name in CONDITIONS], -1).detach()  # [B, 3]
    dropped = torch.rand(targets.shape, generator=generator) < drop
    dropped = (dropped | (torch.rand(len(layers), 1, generator=generator) < drop_all)).to(targets.device)
    out = model(noised, diffusion.time(t), lattice_t, targets.masked_fill(dropped, torch.nan))
    terms = channel_losses(
        out, layers, noised, score, v_z, v_lattice, diffusion.z_spread(t)
    ) | property_losses(out.properties, labels)
    return sum(weights[name] * value for name, value in terms.items()), terms


def off_equilibrium_loss(
    model: DenoisingEGNN, diffusion: Diffusion, layers: Layers, e_hull: Tensor, generator=None
):
    """Error of E_hull of structures that are no sample of the data: each its own x_0, noised, its denoising
    not learned.

    Huber's loss, not the square: a few structures far from any crystal would else set the direction of every
    step.

    Args:
        e_hull: [B] eV/atom, clamped to MAX_E_HULL.
    """
    t = diffusion.random_times(len(layers), generator).to(layers.z.device)
    noised = diffusion.noise(layers, t, generator)[0]
    predicted = model.properties(noised, diffusion.time(t)).e_hull
    return F.smooth_l1_loss(predicted, e_hull.clamp(max=MAX_E_HULL), beta=0.1)


def channel_losses(out: Denoised, layers: Layers, noised: Layers, score, v_z, v_lattice, z_spread):
    """Mean squared errors of the continuous channels, that of z in units of z_spread [B] Å, and the
    cross-entropy of the hidden slots.
    """
    atoms = layers.mask.sum()
    hidden = (noised.atomic_numbers == MASK) & layers.mask
    logits = torch.gather(
        out.slot_logits, 1, layers.slots[..., None].expand(-1, -1, out.slot_logits.shape[-1])
    )
    surprise = F.cross_entropy(
        logits[hidden], layers.atomic_numbers[hidden], reduction="sum"
    ) / hidden.sum().clamp(min=1)
    return {
        "coordinates": ((out.score - score) ** 2).sum() / (2 * atoms),
        "z": (((out.z - v_z) / z_spread[:, None]) ** 2).sum() / atoms,
        "lattice": ((out.lattice - v_lattice) ** 2).mean(),
        "elements": surprise,
    }


def property_losses(predicted: Heads, labels: Labels) -> dict[str, Tensor]:
    """L1 on ΔG_H and its spread, squared error on E_hull, cross-entropy on synthesizability; unknown labels
    count for nothing.
    """
    return {
        "delta_g_h": _known_mean(F.l1_loss, predicted.delta_g_h, labels.delta_g_h),
        "e_hull": _known_mean(F.mse_loss, predicted.e_hull, labels.e_hull),
        "synthesizable": _known_mean(
            F.binary_cross_entropy_with_logits, predicted.synth_logit, labels.synthesizable
        ),
        "delta_g_h_std": _known_mean(F.l1_loss, predicted.delta_g_h_std, labels.delta_g_h_std),
    }


def _known_mean(loss, predicted: Tensor, label: Tensor) -> Tensor:
    """Mean of an elementwise loss over the graphs whose label [B] is known; 0 where none is."""
    known = ~torch.isnan(label)
    values = loss(predicted, torch.nan_to_num(label), reduction="none")
    return torch.where(known, values, 0).sum() / known.sum().clamp(min=1)
