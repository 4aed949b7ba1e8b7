"""Gradient-guided Langevin sampling of layers.

z and the lattice follow the mission's update literally,
    x_{t−1} = 1/√α_t (x_t − (1−α_t)/√(1−ᾱ_t) ε_θ) − η σ_t² ∇L_target + σ_t ζ ,  L_target = E|ΔG_H − target| +
    w max(0, E_hull − bound),
the expectation being over how far the members of DimeNet++ are apart;
in-plane coordinates its variance-exploding form on the torus; masked slot elements are revealed on the way.
"""

from dataclasses import dataclass

import torch
from ase.data import atomic_numbers as ase_numbers
from tqdm import tqdm

from models.infra.files import load_checkpoint
from models.networks.diffusion import Diffusion, mean_free
from models.networks.egnn import CONDITIONS, DenoisingEGNN, Heads
from models.networks.layers import MASK, Layers

# of the corrector, in units of the noise's variance; the variance it settles at is too large by half of this
LANGEVIN_STEP = 0.1


@dataclass(frozen=True)
class Guide:
    """What to steer towards.

    Attributes:
        cfg_scale: s in ε = ε_∅ + s (ε_c − ε_∅); 0 is unconditional.
        gradient_scale: η; 0 is no gradient.
        delta_g_h: target of ΔG_H, eV.
        e_hull: bound of E_hull, eV/atom.
        synthesizable: whether to condition on P_synth = 1.
        weight_e_hull: weight of max(0, E_hull − bound) beside |ΔG_H − target|.
        uncertainty_weight: factor on the standard deviation that |ΔG_H − target| is averaged over; 0 takes
            the prediction at its word.
        elements: symbols that a structure may hold, any where None; with another its L_target is infinite.
        cap: largest norm of ∇L_target, per atom in the plane and in z (eV/Å), per component of the lattice
            (eV).
    """

    cfg_scale: float = 0.0
    gradient_scale: float = 0.0
    delta_g_h: float = 0.0
    e_hull: float = 0.0
    synthesizable: bool = True
    weight_e_hull: float = 1.0
    uncertainty_weight: float = 0.0
    cap: float = 1.0
    elements: frozenset[str] | None = None

    def conditions(self, count: int, device) -> torch.Tensor:
        """Targets [count, 3] in the order of CONDITIONS."""
        values = dict(
            delta_g_h=self.delta_g_h,
            e_hull=self.e_hull,
            synthesizable=1.0 if self.synthesizable else torch.nan,
        )
        return torch.tensor([[values[name] for name in CONDITIONS]], device=device).repeat(count, 1)

    def allows(self, atomic_numbers: torch.Tensor) -> torch.Tensor:
        """[B] whether graphs with these numbers [B, N] (0 on padding) hold nothing but `elements`."""
        if self.elements is None:
            return atomic_numbers.new_ones(len(atomic_numbers), dtype=torch.bool)
        wanted = torch.tensor(
            [0, *(ase_numbers[symbol] for symbol in sorted(self.elements))], device=atomic_numbers.device
        )
        return torch.isin(atomic_numbers, wanted).all(1)

    def loss(self, heads: Heads) -> torch.Tensor:
        """L_target [B] (eV): the |ΔG_H − target| to expect, and what E_hull lies above its bound."""
        spread = self.uncertainty_weight * heads.delta_g_h_std
        above = (heads.e_hull - self.e_hull).clamp(min=0)
        return expected_distance(heads.delta_g_h - self.delta_g_h, spread) + self.weight_e_hull * above


def expected_distance(mean, std):
    """E|x| of a normal x, [B]; |mean| where std is 0."""
    width = std.clamp(min=1e-6)
    ratio = mean / (width * 2**0.5)
    return width * (2 / torch.pi) ** 0.5 * torch.exp(-(ratio**2)) + mean * torch.erf(ratio)


def kept_times(start: int, steps: int) -> list[int]:
    """Descending integer times from `start` to 0 in at most `steps` updates."""
    return sorted({round(x) for x in torch.linspace(0, start, steps + 1).tolist()}, reverse=True)


class Sampler:
    """Draws layers from a trained model.

    Args:
        model, diffusion: as trained; the schedule is the diffusion's own.
        guide: targets and scales.
        generator: source of all randomness.
        noise_scale: factor on ζ of each update; 1 samples the model's distribution, less of it stays nearer
            to its modes.
        corrector: Langevin steps at the noise level that each update ends on (Song et al. 2021,
            arXiv:2011.13456).

    Attributes:
        nfe: function evaluations so far: of the network or its heads, a structure each; a gradient counts as
            three.
    """

    def __init__(
        self,
        model: DenoisingEGNN,
        diffusion: Diffusion,
        guide: Guide,
        generator: torch.Generator,
        noise_scale=1.0,
        corrector=0,
    ):
        self.model, self.diffusion, self.guide, self.generator = model, diffusion, guide, generator
        self.noise_scale, self.corrector, self.nfe = noise_scale, corrector, 0

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator).to(like)

    def prior(self, layers: Layers) -> tuple[Layers, torch.Tensor]:
        """Pure noise with the slots and atom counts of `layers`."""
        keep = layers.mask.to(layers.z.dtype)
        lattice = self.normal(layers.z.new_zeros(len(layers), 3))
        frac = torch.rand(layers.frac_coords.shape, generator=self.generator).to(layers.z) * keep[..., None]
        noise = mean_free(self.normal(layers.z), keep)
        cell = self.diffusion.decode_lattice(lattice, keep.sum(1))
        return layers.replace(frac_coords=frac, z=noise, cell=cell), lattice

    def noised(self, layers: Layers, start: int) -> tuple[Layers, torch.Tensor]:
        """Layers noised to the integer time `start`."""
        t = torch.full((len(layers),), start)
        return self.diffusion.noise(layers, t, self.generator)[:2]

    @torch.no_grad()
    def target_loss(self, layers: Layers) -> torch.Tensor:
        """L_target [B] (eV) of finished structures, by the heads at t = 0."""
        self.nfe += len(layers)
        loss = self.guide.loss(self.model.properties(layers, layers.z.new_zeros(len(layers))))
        return torch.where(self.guide.allows(layers.atomic_numbers), loss, torch.inf)

    @torch.no_grad()
    def propose_elements(self, layers: Layers, lattice, start: int, temperature: float = 1.0) -> Layers:
        """Reveals every masked slot, one a graph and round, at the noise level `start`."""
        time = self.diffusion.time(torch.full((len(layers),), start, device=layers.z.device))
        while (layers.atomic_numbers == MASK).any():
            out = self._denoise(layers, time, lattice)
            layers = self._reveal(layers, out.slot_logits / temperature, share=None)
        return layers

    @torch.no_grad()
    def denoise(self, layers: Layers, lattice, start: int, steps: int, progress: bool = False) -> Layers:
        """Runs the reverse process from the integer time `start` to 0.

        Args:
            layers: noised structures; MASK tokens are revealed on the way.
            lattice: [B, 3] their standardised lattices.
            steps: number of updates; ᾱ is kept at the kept times, α′ = ᾱ_t / ᾱ_s.
        """
        times = kept_times(start, steps)
        for t, s in tqdm(list(zip(times, times[1:])), desc="denoising", disable=not progress, mininterval=2):
            layers, lattice = self.step(layers, lattice, t, s)
            for _ in range(self.corrector if s else 0):
                layers, lattice = self.correct(layers, lattice, s)
        return layers

    def correct(self, layers: Layers, lattice, t: int):
        """One Langevin step x + δ (score − η ∇L_target) + √(2δ) ζ at time t, δ = LANGEVIN_STEP times the
        variance of the noise.
        """
        d, keep = self.diffusion, layers.mask.to(layers.z.dtype)
        index = torch.full((len(layers),), t, device=layers.z.device)
        out = self._denoise(layers, d.time(index), lattice)
        push_frac, push_z, push_lattice = self._gradient(layers, lattice, d.time(index))
        sigma, b = d.sigmas[t], (1 - d.alphas_cumprod[t]).sqrt()

        def langevin(score, push, width, noise):
            return (
                LANGEVIN_STEP * (width * score - width**2 * push) + (2 * LANGEVIN_STEP) ** 0.5 * width * noise
            )

        z = mean_free(
            layers.z
            + langevin(-d.epsilon(out.z, layers.z, index), push_z, b, mean_free(self.normal(layers.z), keep)),
            keep,
        )
        lattice = lattice + langevin(
            -d.epsilon(out.lattice, lattice, index), push_lattice, b, self.normal(lattice)
        )
        move = langevin(out.score, push_frac, sigma, self.normal(out.score))
        return self._moved(layers, move, z, lattice), lattice

    def _moved(self, layers: Layers, move, z, lattice) -> Layers:
        """Layers with in-plane positions moved [B, N, 2] Å, and z and lattice as given."""
        keep = layers.mask.to(layers.z.dtype)
        frac = (layers.frac_coords + move @ torch.linalg.inv(layers.cell)) % 1.0 * keep[..., None]
        return layers.replace(frac_coords=frac, z=z, cell=self.diffusion.decode_lattice(lattice, keep.sum(1)))

    def step(self, layers: Layers, lattice, t: int, s: int):
        """One update from time t to time s < t."""
        d, keep = self.diffusion, layers.mask.to(layers.z.dtype)
        index = torch.full((len(layers),), t, device=layers.z.device)
        out = self._denoise(layers, d.time(index), lattice)
        push_frac, push_z, push_lattice = self._gradient(layers, lattice, d.time(index))

        abar_t, abar_s = d.alphas_cumprod[t], d.alphas_cumprod[s]
        alpha = abar_t / abar_s
        variance = (1 - abar_s) / (1 - abar_t) * (1 - alpha)
        ancestral = lambda x, v: (
            (x - (1 - alpha) / (1 - abar_t).sqrt() * d.epsilon(v, x, index)) / alpha.sqrt()
        )
        width, zeta = self.noise_scale * variance.sqrt(), mean_free(self.normal(layers.z), keep)
        z = mean_free(ancestral(layers.z, out.z) - push_z * variance + width * zeta, keep)
        new_lattice = ancestral(lattice, out.lattice) - push_lattice * variance + width * self.normal(lattice)

        sigma_t, sigma_s = d.sigmas[t], d.sigmas[s]
        gap = sigma_t**2 - sigma_s**2
        spread = (gap * sigma_s**2 / sigma_t**2).sqrt()
        move = (
            gap / sigma_t * out.score
            - push_frac * spread**2
            + self.noise_scale * spread * self.normal(out.score)
        )
        layers = self._moved(layers, move, z, new_lattice)
        return self._reveal(layers, out.slot_logits, share=1 - s / t), new_lattice

    def _denoise(self, layers, time, lattice):
        """ε_∅ + s (ε_c − ε_∅) on every channel; the unconditional call alone where s = 0."""
        scale = self.guide.cfg_scale
        self.nfe += len(layers) * (1 if scale in (0, 1) else 2)
        if scale == 0:
            return self.model(layers, time, lattice, None, properties=False)
        out = self.model(
            layers, time, lattice, self.guide.conditions(len(layers), layers.z.device), properties=False
        )
        if scale != 1:
            null = self.model(layers, time, lattice, None, properties=False)
            for name in ("score", "z", "lattice", "slot_logits"):
                base = getattr(null, name)
                setattr(out, name, base + scale * (getattr(out, name) - base))
        return out

    def _gradient(self, layers, lattice, time):
        """η ∇ L_target with respect to in-plane positions [B, N, 2] Å, z [B, N] Å and lattice [B, 3], its
        norm capped.
        """
        if self.guide.gradient_scale == 0:
            return 0.0, 0.0, 0.0
        with torch.enable_grad():
            shift = torch.zeros_like(layers.frac_coords).requires_grad_()
            z, free = layers.z.clone().requires_grad_(), lattice.clone().requires_grad_()
            cell = self.diffusion.decode_lattice(free, layers.mask.sum(1))
            frac = layers.frac_coords + shift @ torch.linalg.inv(layers.cell)
            properties = self.model.properties(layers.replace(frac_coords=frac, z=z, cell=cell), time)
            gradients = torch.autograd.grad(self.guide.loss(properties).sum(), (shift, z, free))
        self.nfe += 3 * len(layers)
        return [self.guide.gradient_scale * capped(gradient, self.guide.cap) for gradient in gradients]

    def _reveal(self, layers: Layers, logits, share):
        """Fills masked slots from their logits: each with probability `share`, or one a graph (share None)."""
        hidden = _hidden_slots(layers, logits.shape[1])
        if not hidden.any():
            return layers
        taken = logits.new_zeros(len(layers), logits.shape[-1]).scatter(1, layers.atomic_numbers, 1.0) > 0
        taken[:, [0, MASK]] = False
        logits = logits.masked_fill(taken[:, None], -1e4)  # slots are distinct elements
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1).cpu(), 1, generator=self.generator)
        drawn = drawn.view(logits.shape[:2]).to(logits.device)
        luck = torch.rand(hidden.shape, generator=self.generator).to(logits.device).masked_fill(~hidden, -1.0)
        chosen = hidden & ((luck == luck.amax(1, keepdim=True)) if share is None else (luck >= 1 - share))
        numbers = torch.gather(torch.where(chosen, drawn, MASK), 1, layers.slots)
        take = (layers.atomic_numbers == MASK) & layers.mask
        return layers.replace(atomic_numbers=torch.where(take, numbers, layers.atomic_numbers))


def _hidden_slots(layers: Layers, slots: int):
    """[B, S] whether a slot exists and is masked."""
    hidden = torch.zeros(len(layers), slots, device=layers.z.device)
    return hidden.scatter_add(1, layers.slots, ((layers.atomic_numbers == MASK) & layers.mask).float()) > 0


def capped(gradient, cap: float):
    """Gradient [B, …] with its norm per row of the last axis at most `cap`."""
    rows = gradient if gradient.dim() > 2 else gradient.unsqueeze(-1)
    norm = rows.norm(dim=-1, keepdim=True)
    return (rows * (cap / norm.clamp(min=cap))).view_as(gradient)


def load_generator(path, device="cpu") -> tuple[DenoisingEGNN, Diffusion]:
    """Averaged weights and schedule of a checkpoint of stage 3.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    saved = load_checkpoint(path, device)
    if not isinstance(saved, dict) or not {"model", "diffusion", "hparams"} <= set(saved):
        held = sorted(map(str, saved))[:5] if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"{path} is no checkpoint of optimization.py: it holds {held}")
    model, diffusion = DenoisingEGNN(**saved["hparams"]), Diffusion(**saved["diffusion_hparams"])
    model.load_state_dict(saved["model"])
    diffusion.load_state_dict(saved["diffusion"])
    return model.to(device).eval(), diffusion.to(device)
