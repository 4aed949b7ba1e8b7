"""Gradient-guided Langevin sampling of layers.

z and the lattice follow the mission's update literally,

    x_{t−1} = 1/√α_t (x_t − (1−α_t)/√(1−ᾱ_t) ε_θ) − η σ_t² ∇L_target + σ_t ζ
    L_target = E|ΔG_H − target| + w max(0, E_hull − bound)

the expectation being over how far the members of DimeNet++ are apart; in-plane coordinates follow its
variance-exploding form on the torus; masked slot elements are revealed on the way.
"""

import torch
from torch import Tensor

from models.infra.files import load_checkpoint
from models.networks.diffusion import Diffusion, mean_free
from models.networks.egnn import Denoised, DenoisingEGNN
from models.networks.layers import MASK, Layers
from models.networks.settings import GeneratorSettings
from models.networks.symmetry import Symmetry

# δ of the corrector in units of the noise's variance. The variance that it settles at is too large by half
# of this, and it takes 1/δ steps to forget where it began.
LANGEVIN_STEP = 0.1
FORBIDDEN = -1e9  # logit of an element that must not be drawn: far below any that a network gives


def kept_times(start: int, steps: int) -> list[int]:
    """Descending integer times from `start` to 0 in at most `steps` updates."""
    return sorted({round(x) for x in torch.linspace(0, start, steps + 1).tolist()}, reverse=True)


class Sampler:
    """Draws layers from a trained model.

    Args:
        model, diffusion: as trained; the schedule is the diffusion's own.
        settings: its guide, noise_scale and corrector are used here.
        generator: source of all randomness.

    Attributes:
        nfe: function evaluations so far: of the network or its heads, a structure each; a gradient counts as
            three.
    """

    def __init__(
        self,
        model: DenoisingEGNN,
        diffusion: Diffusion,
        settings: GeneratorSettings,
        generator: torch.Generator,
    ):
        self.model, self.diffusion, self.settings, self.generator = model, diffusion, settings, generator
        self.guide, self.nfe = settings.guide, 0

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers, drawn on the CPU so that every device gets the same."""
        return torch.randn(like.shape, generator=self.generator).to(like)

    # --- where the reverse process starts

    def prior(self, layers: Layers) -> tuple[Layers, Tensor]:
        """Pure noise with the slots and atom counts of `layers`, and its standardised lattice [B, 3]."""
        keep = layers.mask.to(layers.z.dtype)  # [B, N]
        lattice = self.normal(layers.z.new_zeros(len(layers), 3))  # [B, 3]
        frac = torch.rand(layers.frac_coords.shape, generator=self.generator)  # [B, N, 2]
        frac = frac.to(layers.z) * keep[..., None]
        z = mean_free(self.normal(layers.z), keep)  # [B, N]
        cell = self.diffusion.decode_lattice(lattice, keep.sum(1))  # [B, 2, 2]
        return layers.replace(frac_coords=frac, z=z, cell=cell), lattice

    def noised(self, layers: Layers, start: int, symmetry: Symmetry | None = None) -> tuple[Layers, Tensor]:
        """Layers noised to the integer time `start`, and their standardised lattices [B, 3].

        With `symmetry` and the last time: pure noise in a layer group whose orbits are occupied as in
        `layers`.
        """
        t = torch.full((len(layers),), start)
        noised = self.diffusion.noise(layers, t, self.generator, symmetry)
        return noised.layers, noised.lattice

    # --- elements

    @torch.no_grad()
    def target_loss(self, layers: Layers) -> Tensor:
        """L_target [B] (eV) of finished structures, by the heads at t = 0."""
        self.nfe += len(layers)
        loss = self.guide.loss(self.model.properties(layers, layers.z.new_zeros(len(layers))))
        return torch.where(self.guide.allows(layers.atomic_numbers), loss, torch.inf)

    @torch.no_grad()
    def propose_elements(self, layers: Layers, lattice: Tensor, start: int, temperature=1.0) -> Layers:
        """Reveals every masked slot, one a graph and round, at the noise level `start`; then masks and
        reveals again one random slot a graph, `gibbs` times.
        """
        time = self.diffusion.time(torch.full((len(layers),), start, device=layers.z.device))
        free = layers.atomic_numbers == MASK  # [B, N], what the user gave is not among them
        layers = self._reveal_all(layers, lattice, time, temperature)
        for _ in range(self.settings.gibbs if free.any() else 0):
            layers = self._reveal_all(self._mask_one(layers, free), lattice, time, temperature)
        return layers

    def _reveal_all(self, layers: Layers, lattice: Tensor, time: Tensor, temperature: float) -> Layers:
        while (layers.atomic_numbers == MASK).any():
            out = self._denoise(layers, time, lattice)
            layers = self._reveal(layers, out.slot_logits / temperature, time, share=None)
        return layers

    def _mask_one(self, layers: Layers, free: Tensor) -> Layers:
        """One random slot a graph without its element, of those whose atoms are `free` [B, N]."""
        slots = int(layers.slots.max()) + 1
        luck = torch.rand((len(layers), slots), generator=self.generator).to(layers.z.device)  # [B, S]
        open_slots = _any_atom(free, layers, slots)  # [B, S]
        luck = luck.masked_fill(~open_slots, -1.0)
        chosen = open_slots & (luck == luck.amax(1, keepdim=True))
        hidden = torch.gather(chosen, 1, layers.slots) & free
        return layers.replace(atomic_numbers=torch.where(hidden, MASK, layers.atomic_numbers))

    def _reveal(self, layers: Layers, logits: Tensor, time: Tensor, share: float | None) -> Layers:
        """Fills masked slots from their logits [B, S, TOKENS]: each with probability `share`, or one a graph
        (None).

        Slots of a graph are distinct elements, also when they are filled together: AB2C never becomes A3C.
        """
        hidden = _any_atom((layers.atomic_numbers == MASK) & layers.mask, layers, logits.shape[1])  # [B, S]
        if not hidden.any():
            return layers
        logits = logits - self._element_push(layers, logits, time, hidden)
        taken = logits.new_zeros(len(layers), logits.shape[-1]).scatter(1, layers.atomic_numbers, 1.0) > 0
        taken[:, [0, MASK]] = False
        if (wanted := self.guide.may_choose(logits.device)) is not None:
            logits = logits.masked_fill(~wanted, FORBIDDEN)
        logits = logits.masked_fill(taken[:, None], FORBIDDEN)
        drawn = self._draw(logits)  # [B, S]
        luck = torch.rand(hidden.shape, generator=self.generator).to(logits.device)  # [B, S]
        luck = luck.masked_fill(~hidden, -1.0)
        if share is None:
            chosen = hidden & (luck == luck.amax(1, keepdim=True))
        else:
            chosen = hidden & (luck >= 1 - share)
        drawn = self._distinct(drawn, chosen, logits)
        numbers = torch.gather(torch.where(chosen, drawn, MASK), 1, layers.slots)  # [B, N]
        take = (layers.atomic_numbers == MASK) & layers.mask
        return layers.replace(atomic_numbers=torch.where(take, numbers, layers.atomic_numbers))

    def _draw(self, logits: Tensor) -> Tensor:
        """An element [B, S] for each slot from its logits [B, S, TOKENS]."""
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1).cpu(), 1, generator=self.generator)
        return drawn.view(logits.shape[:2]).to(logits.device)

    def _distinct(self, drawn: Tensor, chosen: Tensor, logits: Tensor) -> Tensor:
        """The elements [B, S] of the chosen slots, drawn again where an earlier slot of the graph has the
        same.
        """
        for slot in range(1, drawn.shape[1]):
            earlier = torch.where(chosen[:, :slot], drawn[:, :slot], 0)  # [B, slot], 0 is no element
            clash = chosen[:, slot] & (earlier == drawn[:, slot, None]).any(1)  # [B]
            if clash.any():
                gone = torch.zeros_like(logits[:, slot]).scatter(1, earlier, 1.0) > 0  # [B, TOKENS]
                again = self._draw(logits[:, slot].masked_fill(gone, FORBIDDEN)[:, None])[:, 0]
                drawn = drawn.clone()
                drawn[:, slot] = torch.where(clash, again, drawn[:, slot])
        return drawn

    def _element_push(self, layers: Layers, logits: Tensor, time: Tensor, hidden: Tensor) -> Tensor | float:
        """η ∂L_target/∂onehot [B, S, TOKENS]: the first-order change of L_target for every element in every
        masked slot, from one backward pass.

        The expansion is about the network's own expectation p_θ in the masked slots, not about the mask:
        between the mask and an element the heads are far from linear. (Discrete guidance as in DiGress,
        arXiv:2209.14734.)
        """
        if self.guide.element_gradient == 0:
            return 0.0
        # [B, N, TOKENS]
        known = torch.nn.functional.one_hot(layers.atomic_numbers, logits.shape[-1]).to(logits)
        member = (
            torch.nn.functional.one_hot(layers.slots, logits.shape[1]).to(logits) * layers.mask[..., None]
        )
        weights = torch.einsum("bns,bnt->bst", member, known) / member.sum(1).clamp(min=1)[..., None]
        weights = torch.where(hidden[..., None], logits.softmax(-1), weights)  # [B, S, TOKENS]
        with torch.enable_grad():
            weights = weights.detach().requires_grad_()
            loss = self.guide.loss(self.model.properties(layers, time, weights))
            (gradient,) = torch.autograd.grad(loss.sum(), weights)
        self.nfe += 3 * len(layers)
        centred = gradient - (gradient * weights).sum(-1, keepdim=True)  # a constant changes no probability
        return self.guide.element_gradient * centred.detach()

    # --- the reverse process

    @torch.no_grad()
    def denoise(
        self, layers: Layers, lattice: Tensor, start: int, steps: int, symmetry: Symmetry | None = None
    ) -> Layers:
        """Runs the reverse process from the integer time `start` to 0.

        Args:
            layers: noised structures; MASK tokens are revealed on the way.
            lattice: [B, 3] their standardised lattices.
            steps: number of updates; ᾱ is kept at the kept times, α′ = ᾱ_t / ᾱ_s.
            symmetry: operations that `layers` obey and keep.
        """
        times = kept_times(start, steps)
        for t, s in zip(times, times[1:]):
            layers, lattice = self.step(layers, lattice, t, s, symmetry)
            for _ in range(self.settings.corrector if s else 0):
                layers, lattice = self.correct(layers, lattice, s, symmetry)
        return layers

    def step(
        self, layers: Layers, lattice: Tensor, t: int, s: int, symmetry: Symmetry | None = None
    ) -> tuple[Layers, Tensor]:
        """One update from time t to time s < t."""
        d, keep = self.diffusion, layers.mask.to(layers.z.dtype)  # [B, N]
        index = torch.full((len(layers),), t, device=layers.z.device)  # [B]
        out = self._denoise(layers, d.time(index), lattice)
        push_frac, push_z, push_lattice = self._gradient(layers, lattice, d.time(index))

        # z and the lattice: 1/√α (x − (1−α)/√(1−ᾱ) ε) − η σ² ∇L + σ ζ, with α and σ of the jump from t to s
        abar_t, abar_s = d.alphas_cumprod[t], d.alphas_cumprod[s]
        alpha = abar_t / abar_s
        variance = (1 - abar_s) / (1 - abar_t) * (1 - alpha)
        width = self.settings.noise_scale * variance.sqrt()

        def ancestral(x, v):
            return (x - (1 - alpha) / (1 - abar_t).sqrt() * d.epsilon(v, x, index)) / alpha.sqrt()

        zeta = mean_free(self.normal(layers.z), keep)  # [B, N]
        z = mean_free(ancestral(layers.z, out.z) - push_z * variance + width * zeta, keep)  # [B, N]
        moved = ancestral(lattice, out.lattice) - push_lattice * variance  # [B, 3]
        new_lattice = moved + width * self.normal(lattice)

        # in the plane: the variance-exploding form of the same, in Å
        sigma_t, sigma_s = d.sigmas[t], d.sigmas[s]
        gap = sigma_t**2 - sigma_s**2
        spread = (gap * sigma_s**2 / sigma_t**2).sqrt()
        noise = self.settings.noise_scale * spread * self.normal(out.score)  # [B, N, 2]
        move = gap / sigma_t * out.score - push_frac * spread**2 + noise
        layers, lattice = self._moved(layers, move, z, new_lattice, symmetry)
        # absorbing diffusion: the share of slots still masked falls linearly in t
        return self._reveal(layers, out.slot_logits, d.time(index), share=1 - s / t), lattice

    def correct(
        self, layers: Layers, lattice: Tensor, t: int, symmetry: Symmetry | None = None
    ) -> tuple[Layers, Tensor]:
        """One Langevin step x + δ (score − η ∇L_target) + √(2δ) ζ at time t, δ = LANGEVIN_STEP times the
        variance of the noise.
        """
        d, keep = self.diffusion, layers.mask.to(layers.z.dtype)  # [B, N]
        index = torch.full((len(layers),), t, device=layers.z.device)  # [B]
        out = self._denoise(layers, d.time(index), lattice)
        push_frac, push_z, push_lattice = self._gradient(layers, lattice, d.time(index))
        sigma, b = d.sigmas[t], (1 - d.alphas_cumprod[t]).sqrt()

        def langevin(score, push, width, noise):
            drift = LANGEVIN_STEP * (width * score - width**2 * push)
            return drift + (2 * LANGEVIN_STEP) ** 0.5 * width * noise

        zeta = mean_free(self.normal(layers.z), keep)  # [B, N]
        z = layers.z + langevin(-d.epsilon(out.z, layers.z, index), push_z, b, zeta)
        eps_lattice = d.epsilon(out.lattice, lattice, index)  # [B, 3]
        lattice = lattice + langevin(-eps_lattice, push_lattice, b, self.normal(lattice))
        move = langevin(out.score, push_frac, sigma, self.normal(out.score))  # [B, N, 2] Å
        return self._moved(layers, move, mean_free(z, keep), lattice, symmetry)

    def _moved(
        self, layers: Layers, move: Tensor, z: Tensor, lattice: Tensor, symmetry: Symmetry | None
    ) -> tuple[Layers, Tensor]:
        """Layers with in-plane positions moved [B, N, 2] Å, and z and lattice as given, and that lattice; all
        of it projected onto the symmetric degrees of freedom. As the state before is symmetric, projecting
        the whole change projects noise, score and gradient alike.
        """
        keep = layers.mask.to(layers.z.dtype)  # [B, N]
        count = keep.sum(1)
        change = move @ torch.linalg.inv(layers.cell)  # [B, N, 2] fractional
        if symmetry is not None:
            change = symmetry.displacements(change)
            lattice = symmetry.lattice(lattice, count, self.diffusion)
        frac = (layers.frac_coords + change) % 1.0 * keep[..., None]
        cell = self.diffusion.decode_lattice(lattice, count)
        layers = layers.replace(frac_coords=frac, z=z, cell=cell)
        return (layers if symmetry is None else symmetry.settled(layers)), lattice  # rounding goes too

    # --- what drives it

    def _denoise(self, layers: Layers, time: Tensor, lattice: Tensor) -> Denoised:
        """ε_∅ + s (ε_c − ε_∅) on every channel; the unconditional call alone where s = 0."""
        scale = self.guide.cfg_scale
        self.nfe += len(layers) * (1 if scale in (0, 1) else 2)
        if scale == 0:
            return self.model(layers, time, lattice, None, properties=False)
        wanted = self.guide.conditions(len(layers), layers.z.device)  # [B, 3]
        out = self.model(layers, time, lattice, wanted, properties=False)
        if scale != 1:
            null = self.model(layers, time, lattice, None, properties=False)
            for name in ("score", "z", "lattice", "slot_logits"):
                base = getattr(null, name)
                setattr(out, name, base + scale * (getattr(out, name) - base))
        return out

    def _gradient(self, layers: Layers, lattice: Tensor, time: Tensor):
        """η ∇ L_target with respect to in-plane positions [B, N, 2] Å, z [B, N] Å and lattice [B, 3], its
        norm capped.
        """
        if self.guide.gradient_scale == 0:
            return 0.0, 0.0, 0.0
        with torch.enable_grad():
            shift = torch.zeros_like(layers.frac_coords).requires_grad_()  # Å
            z, free = layers.z.clone().requires_grad_(), lattice.clone().requires_grad_()
            cell = self.diffusion.decode_lattice(free, layers.mask.sum(1))
            frac = layers.frac_coords + shift @ torch.linalg.inv(layers.cell)
            heads = self.model.properties(layers.replace(frac_coords=frac, z=z, cell=cell), time)
            gradients = torch.autograd.grad(self.guide.loss(heads).sum(), (shift, z, free))
        self.nfe += 3 * len(layers)
        return [self.guide.gradient_scale * capped(gradient, self.guide.cap) for gradient in gradients]


def _any_atom(atoms: Tensor, layers: Layers, slots: int) -> Tensor:
    """[B, slots] whether a slot holds one of the `atoms` [B, N]."""
    found = torch.zeros(len(layers), slots, device=layers.z.device)
    return found.scatter_add(1, layers.slots, atoms.float()) > 0


def capped(gradient: Tensor, cap: float) -> Tensor:
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
