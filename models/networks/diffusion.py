"""The forward process of a layer and the joint loss.

One noise level σ(t) in Å drives all channels, ᾱ_t = 1 / (1 + σ_t²):

    in-plane coordinates   Cartesian Gaussian of width σ_t, wrapped onto the torus of the current cell
                           (variance exploding)
    z                      √ᾱ_t z + √(1 − ᾱ_t) ε, mean-free, Å (variance preserving; its noise-to-signal ratio
                           is σ_t Å too)
    lattice                the same on S = ½ log(L Lᵀ) less ½ log N, standardised over the training set
    slot elements          masked (absorbing), at a rate drawn apart from t

The in-plane noise lives in the metric of the noised cell, so it is isotropic in Å in every cell, skewed or
not.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.egnn import CONDITIONS, Denoised, DenoisingEGNN, Heads
from models.networks.layers import MASK, Labels, Layers
from models.networks.settings import LOSS_WEIGHTS
from models.networks.symmetry import Symmetry

# eV/atom: labels of E_hull above are clamped; how bad beyond that a structure is, no guide needs to know.
MAX_E_HULL = 1.0
# Density of the training times: 1 / (1 − EMPHASIS) in the middle, where σ is tenths of an Å and a crystal's
# prototype is decided, 1 / (1 + EMPHASIS) at either end; 0 for uniform times. 0.6 puts 58 % of the times at σ
# from 0.1 to 1.5 Å, uniform times 40 %.
EMPHASIS = 0.6
# Å, standard deviation of z over C2DB. The v-target of z is that wide at high noise; a loss that does not
# divide by it learns how thick layers are, and little else.
Z_SPREAD = 1.9
# Share of the training graphs that show all their elements, as in most of the denoising: by the first
# update of a template start all slots are filled.
SHOWN = 0.5
# Terms along the short and the long direction in the sums of the wrapped normal: exact to 2e-6 in cells up
# to 12 times as long as wide.
IMAGES = (10, 2)
# eV/atom, where Huber's loss of off-equilibrium layers turns from square to linear: about the error of the
# head.
HUBER = 0.1
# Below this no density of a wrapped normal lies where its dual sum is used; keeps the division finite.
TINY = 1e-6


class Noised(NamedTuple):
    """A noised batch and its targets.

    Attributes:
        layers: noised; its elements are as they were.
        lattice: [B, 3] standardised lattice that layers.cell was made of.
        score: [B, N, 2] σ·score in the plane, dimensionless.
        v_z: [B, N] v of z, Å.
        v_lattice: [B, 3] v of the standardised lattice.
    """

    layers: Layers
    lattice: Tensor
    score: Tensor
    v_z: Tensor
    v_lattice: Tensor


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
    def steps(self) -> int:
        """T."""
        return self.hparams["steps"]

    def time(self, t: Tensor) -> Tensor:
        """Network time in [0, 1] of the integer time t."""
        return t / self.steps

    def random_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Integer times [count] in 1 … T, in random order: one from each of `count` parts that are narrow
        where the crystal is decided (EMPHASIS).
        """
        part = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        warped = part + EMPHASIS * torch.sin(2 * torch.pi * part) / (2 * torch.pi)
        return 1 + (warped * self.steps).long().clamp(0, self.steps - 1)

    def z_spread(self, t: Tensor) -> Tensor:
        """Standard deviation [B] Å of the v-target of z at integer times t [B]."""
        abar = self.alphas_cumprod[t]
        return (abar + (1 - abar) * Z_SPREAD**2).sqrt()

    def encode_lattice(self, cell: Tensor, count: Tensor) -> Tensor:
        """Standardised lattice [B, 3] of in-plane cells [B, 2, 2] Å with `count` [B] atoms."""
        return (raw_lattice(cell, count) - self.lattice_mean) / self.lattice_std

    def decode_lattice(self, lattice: Tensor, count: Tensor) -> Tensor:
        """In-plane cells [B, 2, 2] Å, symmetric, of standardised lattices [B, 3]."""
        s = lattice * self.lattice_std.to(lattice) + self.lattice_mean.to(lattice)  # [B, 3]: 11, 22, 12
        size = 0.5 * count.to(s.dtype).log()  # [B]
        first = torch.stack([s[:, 0] + size, s[:, 2]], -1)  # [B, 2]
        second = torch.stack([s[:, 2], s[:, 1] + size], -1)
        return torch.linalg.matrix_exp(torch.stack([first, second], -2))

    def encode_metric(self, metric: Tensor, count: Tensor) -> Tensor:
        """Standardised lattice [B, 3] of metrics L Lᵀ [B, 2, 2] Å²."""
        raw = raw_lattice(torch.linalg.cholesky(metric), count)
        return (raw - self.lattice_mean.to(raw)) / self.lattice_std.to(raw)

    def decode_metric(self, lattice: Tensor, count: Tensor) -> Tensor:
        """Metric L Lᵀ [B, 2, 2] Å² of standardised lattices [B, 3]."""
        cell = self.decode_lattice(lattice, count)
        return cell @ cell.mT

    def noise(
        self,
        layers: Layers,
        t: Tensor,
        generator: torch.Generator | None = None,
        symmetry: Symmetry | None = None,
    ) -> Noised:
        """Layers noised to the integer times t [B], and what the network is to say of them.

        Args:
            symmetry: operations that the noise must not break; each layer must obey its own nearly.
        """
        if symmetry is not None:
            layers = symmetry.settled(layers)
        keep = layers.mask.to(layers.z.dtype)  # [B, N]
        count = keep.sum(1)  # [B]
        sigma, abar = self.sigmas[t], self.alphas_cumprod[t]  # [B]
        normal = lambda like: torch.randn(like.shape, generator=generator).to(like)
        a, b = abar.sqrt()[:, None], (1 - abar).sqrt()[:, None]  # [B, 1]

        # lattice: √ᾱ L + √(1 − ᾱ) ε
        lattice = self.encode_lattice(layers.cell, count)  # [B, 3]
        eps_l = normal(lattice)
        lattice_t = a * lattice + b * eps_l
        if symmetry is not None:
            lattice = symmetry.lattice(lattice, count, self)
            lattice_t = symmetry.lattice(lattice_t, count, self)
            eps_l = (lattice_t - a * lattice) / b.clamp(min=TINY)
        cell = self.decode_lattice(lattice_t, count)  # [B, 2, 2]

        # z: the same, mean-free
        z = mean_free(layers.z, keep)  # [B, N]
        eps_z = mean_free(normal(z), keep)
        if symmetry is not None:
            eps_z = symmetry.heights(eps_z)
        z_t = a * z + b * eps_z

        # in the plane: x + σ ε on the torus of the noised cell; the target is σ ∇ log p of the wrapped normal
        displacement = sigma[:, None, None] * normal(layers.frac_coords) * keep[..., None]  # [B, N, 2] Å
        if symmetry is not None:  # the operations are isometries of the noised cell
            displacement = symmetry.displacements(displacement @ torch.linalg.inv(cell)) @ cell
        frac = (layers.frac_coords + displacement @ torch.linalg.inv(cell)) % 1.0
        score = wrapped_normal_score(displacement, sigma, cell) * keep[..., None]
        score = (score - score.sum(1, keepdim=True) / count[:, None, None]) * keep[..., None]  # no drift
        noised = layers.replace(frac_coords=frac, z=z_t, cell=cell)
        return Noised(noised, lattice_t, score, v_z=a * eps_z - b * z, v_lattice=a * eps_l - b * lattice)

    def epsilon(self, v: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Noise ε of a variance-preserving channel from its v-prediction."""
        shape = (-1,) + (1,) * (x_t.dim() - 1)
        abar = self.alphas_cumprod[t].view(shape)
        return abar.sqrt() * v + (1 - abar).sqrt() * x_t


def raw_lattice(cell: Tensor, count: Tensor) -> Tensor:
    """S = ½ log(L Lᵀ) as (11, 22, 12), less ½ log N on the diagonal: [B, 3] from [B, 2, 2] Å and [B]."""
    values, vectors = torch.linalg.eigh(cell @ cell.transpose(-1, -2))
    s = 0.5 * torch.einsum("bij,bj,bkj->bik", vectors, values.log(), vectors)
    size = 0.5 * count.to(s.dtype).log()
    return torch.stack([s[:, 0, 0] - size, s[:, 1, 1] - size, s[:, 0, 1]], -1)


def mean_free(x: Tensor, keep: Tensor) -> Tensor:
    """x [B, N] less its mean over the atoms; 0 on padding (keep [B, N])."""
    return (x - (x * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)) * keep


def reduced(cell: Tensor) -> Tensor:
    """Gauss-reduced rows [B, 2, 2] of the same lattices: a the shortest, |a·b| <= a·a / 2."""
    a, b = cell[:, :1], cell[:, 1:]
    for _ in range(16):  # a reduced cell needs none, the most skewed here a few
        longer = a.norm(dim=-1, keepdim=True) > b.norm(dim=-1, keepdim=True)
        a, b = torch.where(longer, b, a), torch.where(longer, a, b)
        b = b - torch.round((a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True)) * a
    return torch.cat([a, b], 1)


def wrapped_normal_score(displacement: Tensor, sigma: Tensor, cell: Tensor) -> Tensor:
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
    frac = displacement @ inverse  # [B, N, 2]
    home = (frac - torch.round(frac)) @ cell  # Å, the image nearest to the centre

    # narrow against the cell: the mean pull of the images, −Σ w_R (d + R) / σ
    images = home[:, :, None] + (torch.cartesian_prod(far, near) @ cell)[:, None]  # [B, N, M, 2]
    width = sigma[:, None, None]
    share = torch.softmax(-(images**2).sum(-1) / (2 * width**2), -1)  # [B, N, M]
    direct = -(share[..., None] * images).sum(2) / width  # [B, N, 2]

    # wide: the gradient of the log of Poisson's sum, Σ_G exp(−G²σ²/2) cos(G·d)
    reciprocal = 2 * torch.pi * torch.cartesian_prod(near, far) @ inverse.transpose(-1, -2)  # [B, M, 2]
    decay = torch.exp(-(reciprocal**2).sum(-1) * sigma[:, None] ** 2 / 2)[:, None]  # [B, 1, M]
    phase = home @ reciprocal.transpose(-1, -2)  # [B, N, M]
    density = (decay * phase.cos()).sum(-1, keepdim=True).clamp(min=TINY)  # [B, N, 1]
    dual = -width * torch.einsum("bnm,bmd->bnd", decay * phase.sin(), reciprocal) / density

    # the direct sum holds while the first image that it leaves out lies 6 σ away
    heights = 1 / inverse.norm(dim=1)  # [B, 2] Å, spacing of the lattice lines
    missing = (heights * heights.new_tensor([n + 0.5 for n in IMAGES])).min(-1).values  # [B] Å
    return torch.where((sigma > missing / 6)[:, None, None], dual, direct)


def mask_slots(layers: Layers, generator: torch.Generator | None = None) -> Layers:
    """Shows all elements of a share SHOWN of the graphs; hides the slots of the others at a rate drawn
    uniformly for each graph.
    """
    rate = torch.rand(len(layers), 1, generator=generator)  # [B, 1]
    rate = rate * (torch.rand(len(layers), 1, generator=generator) >= SHOWN)
    hidden = torch.rand(layers.slots.shape, generator=generator) < rate  # [B, slots]
    hidden = torch.gather(hidden.to(layers.slots.device), 1, layers.slots) & layers.mask
    return layers.replace(atomic_numbers=torch.where(hidden, MASK, layers.atomic_numbers))


def joint_loss(
    model: DenoisingEGNN,
    diffusion: Diffusion,
    layers: Layers,
    labels: Labels,
    weights: dict[str, float] = LOSS_WEIGHTS,
    drop: float = 0.15,
    generator: torch.Generator | None = None,
    drop_all: float = 0.0,
    symmetry: Symmetry | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_total = E‖ε − ε_θ(x_t, t)‖² + λ1 ‖ΔG_H − ΔG_H*‖₁ + λ2 ‖E_hull − E_hull*‖² + λ3 BCE(P_synth, y_synth).

    Args:
        labels: of the batch; NaN is unknown and masked.
        weights: of the four diffusion channels, λ1, λ2, λ3, and of the head of the standard deviation.
        drop: probability with which each condition is replaced by its learned null.
        drop_all: probability with which all conditions of a graph are, together.
        symmetry: of the layers, where the noise is to keep it.

    Returns:
        total loss, and its unweighted terms by name.
    """
    t = diffusion.random_times(len(layers), generator).to(layers.z.device)  # [B]
    noised = diffusion.noise(layers, t, generator, symmetry)
    noised = noised._replace(layers=mask_slots(noised.layers, generator))
    targets = torch.stack([getattr(labels, name) for name in CONDITIONS], -1).detach()  # [B, 3]
    dropped = torch.rand(targets.shape, generator=generator) < drop  # [B, 3]
    dropped = (dropped | (torch.rand(len(layers), 1, generator=generator) < drop_all)).to(targets.device)
    conditions = targets.masked_fill(dropped, torch.nan)
    out = model(noised.layers, diffusion.time(t), noised.lattice, conditions)
    terms = channel_losses(out, layers, noised, diffusion.z_spread(t))
    terms |= property_losses(out.properties, labels)
    return sum(weights[name] * value for name, value in terms.items()), terms


def off_equilibrium_loss(
    model: DenoisingEGNN, diffusion: Diffusion, layers: Layers, e_hull: Tensor, generator=None
) -> Tensor:
    """Error of E_hull of structures that are no sample of the data: each its own x_0, noised, its denoising
    not learned.

    Huber's loss, not the square: a few structures far from any crystal would else set the direction of every
    step.

    Args:
        e_hull: [B] eV/atom, clamped to MAX_E_HULL.
    """
    t = diffusion.random_times(len(layers), generator).to(layers.z.device)
    noised = diffusion.noise(layers, t, generator).layers
    predicted = model.properties(noised, diffusion.time(t)).e_hull
    return F.smooth_l1_loss(predicted, e_hull.clamp(max=MAX_E_HULL), beta=HUBER)


def channel_losses(out: Denoised, clean: Layers, noised: Noised, z_spread: Tensor) -> dict[str, Tensor]:
    """Mean squared errors of the continuous channels, that of z in units of z_spread [B] Å, and the
    cross-entropy of the hidden slots; means over atoms, so that padding counts for nothing.
    """
    atoms = clean.mask.sum()
    hidden = (noised.layers.atomic_numbers == MASK) & clean.mask  # [B, N]
    of_slot = clean.slots[..., None].expand(-1, -1, out.slot_logits.shape[-1])  # [B, N, TOKENS]
    logits = torch.gather(out.slot_logits, 1, of_slot)[hidden]  # [hidden atoms, TOKENS]
    surprise = F.cross_entropy(logits, clean.atomic_numbers[hidden], reduction="sum")
    return {
        "coordinates": ((out.score - noised.score) ** 2).sum() / (2 * atoms),
        "z": (((out.z - noised.v_z) / z_spread[:, None]) ** 2).sum() / atoms,
        "lattice": ((out.lattice - noised.v_lattice) ** 2).mean(),
        "elements": surprise / hidden.sum().clamp(min=1),
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
