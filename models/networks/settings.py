"""How the generator learns (LOSS_WEIGHTS) and draws, in one place: what it steers towards (Guide) and how it
gets there (GeneratorSettings).

The defaults are those of optimization.py and structure_generator.py; the study (results/published/study.csv)
chose those of drawing on seeds of its own. Torch is imported where tensors are made: flags need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ase.data import atomic_numbers as ase_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from models.networks.egnn import Heads

# Weights of the terms of the joint loss, set by hand and not swept: a property term is to be a tenth of the
# diffusion term or less late in training, when L1 is 0.2 eV, the square 0.05² (eV/atom)², the cross-entropy
# 0.5.
LOSS_WEIGHTS = {
    "coordinates": 1.0,  # the diffusion term, channel by channel; σ·score is of order 1
    "z": 1.0,  # in units of its spread, so of order 1
    "lattice": 0.5,  # three numbers a graph beside 3 N: less, or they drown the atoms
    "elements": 0.3,  # cross-entropies start at log 90
    "delta_g_h": 0.5,  # λ1
    "e_hull": 10.0,  # λ2
    "synthesizable": 0.2,  # λ3: labels are few and positive-unlabelled
    "delta_g_h_std": 0.5,  # as λ1, the same unit
    "off_equilibrium": 0.5,  # as λ2 by Huber's loss
}

METHODS = ("diffusion", "random", "substitution", "held-out")
SYMMETRIES = ("template", "subgroup", "none")
ORBITS = ("template", "drawn")


@dataclass(frozen=True)
class Guide:
    """What to steer towards.

    Attributes:
        cfg_scale: s in ε = ε_∅ + s (ε_c − ε_∅); 0 is unconditional. In the study 2 took the rate of hits from
            0.02 to 0.11.
        gradient_scale: η of ∇L_target on coordinates, z and lattice; 0 is no gradient. 10 to 100 had no
            effect on the rate of hits, so none is the default.
        delta_g_h: target of ΔG_H, eV.
        e_hull: bound of E_hull in L_target, eV/atom; half of what counts as stable, because the head errs by
            0.04.
        wanted_e_hull: E_hull that the network is asked for as a condition, eV/atom: a wish, not a bound. A
            bound of 1 means "I do not mind", not "draw me layers at 1 eV/atom".
        synthesizable: whether to condition on P_synth = 1.
        weight_e_hull: weight of max(0, E_hull − bound) beside |ΔG_H − target|; 4, as 0.05 eV/atom above the
            hull is as bad as 0.2 eV off the target.
        uncertainty_weight: factor on the standard deviation that |ΔG_H − target| is averaged over; 0 takes
            the prediction at its word, 1 prefers the well known to the active.
        cap: largest norm of ∇L_target, per atom in the plane and in z (eV/Å), per component of the lattice
            (eV): one bad gradient must not throw an atom out of the layer.
        elements: symbols that the model may choose, any where None.
        element_gradient: η of the gradient of L_target on the elements: at every reveal the network's
            p(element) is multiplied by exp(−η ∂L_target/∂onehot(element)); 0 is none. In 1/eV.
    """

    cfg_scale: float = 2.0
    gradient_scale: float = 0.0
    delta_g_h: float = 0.0
    e_hull: float = 0.05
    wanted_e_hull: float = 0.0
    synthesizable: bool = True
    weight_e_hull: float = 4.0
    uncertainty_weight: float = 0.5
    cap: float = 1.0
    elements: frozenset[str] | None = None
    element_gradient: float = 0.0

    def conditions(self, count: int, device) -> Tensor:
        """Targets [count, 3] in the order of CONDITIONS."""
        import torch

        from models.networks.egnn import CONDITIONS

        values = {
            "delta_g_h": self.delta_g_h,
            "e_hull": self.wanted_e_hull,
            "synthesizable": 1.0 if self.synthesizable else math.nan,
        }
        return torch.tensor([[values[name] for name in CONDITIONS]], device=device).repeat(count, 1)

    def may_choose(self, device) -> Tensor | None:
        """[TOKENS] which elements the model may choose; None for any."""
        import torch

        from models.networks.layers import TOKENS

        if self.elements is None:
            return None
        wanted = torch.zeros(TOKENS, dtype=torch.bool, device=device)
        wanted[[ase_numbers[symbol] for symbol in sorted(self.elements)]] = True
        return wanted

    def allows(self, atomic_numbers: Tensor) -> Tensor:
        """[B] whether graphs with these numbers [B, N] (0 on padding) hold nothing but `elements`."""
        import torch

        if self.elements is None:
            return atomic_numbers.new_ones(len(atomic_numbers), dtype=torch.bool)
        wanted = [0, *(ase_numbers[symbol] for symbol in sorted(self.elements))]
        return torch.isin(atomic_numbers, torch.tensor(wanted, device=atomic_numbers.device)).all(1)

    def loss(self, heads: Heads) -> Tensor:
        """L_target [B] (eV): the |ΔG_H − target| to expect, and what E_hull lies above its bound."""
        spread = self.uncertainty_weight * heads.delta_g_h_std
        above = (heads.e_hull - self.e_hull).clamp(min=0)
        return expected_distance(heads.delta_g_h - self.delta_g_h, spread) + self.weight_e_hull * above


MISSION = Guide(cfg_scale=0.0, e_hull=0.0, weight_e_hull=1.0, uncertainty_weight=0.0)
"""All guidance off, and the mission's own L_target = |ΔG_H| + max(0, E_hull)."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Everything that decides which structures are drawn, but for the database and the checkpoint.

    Attributes:
        method: diffusion, or without a model: random (elements in a random template), substitution (related
            elements in the nearest template), held-out (real layers of the test split).
        formula: composition to draw, e.g. MoS2; None draws it too.
        guide: what to steer towards.
        noise_level: t0 in (0, 1] that templates are noised to, 1 is pure noise. At 0.5, σ = 0.28 Å, the
            prototype survives and bonds still adapt to the elements.
        steps: denoising updates; 200 or 400 gained nothing over 50.
        noise_scale: factor on ζ of each update. 1 samples the model's distribution and lets its errors walk;
            0 stays at its modes.
        corrector: Langevin steps at the noise level that each update ends on (Song et al. 2021,
            arXiv:2011.13456).
        symmetry: layer group inside which a structure is diffused: that of its template; "subgroup": of half
            of the structures a random maximal subgroup of it, so that distorted phases can come out; "none".
            On 60 held-out formulas from t0 = 0.5 "template" finds as many as "none" (0.62), keeps the
            template's group in 0.92 against 0.26, and lies nearer to the true structure.
        orbits: from pure noise inside a layer group: which orbits are occupied, those of a template; or
            "drawn": group and occupation from the statistics of the database (models/crystals/orbits.py).
        temperature: of the element proposals.
        gibbs: slots of a structure that are masked and revealed again after the proposal, one at a time: more
            than one look at each element for the gradient on them.
        proposals: element proposals a structure, one taken by exp(−L_target/τ); 1 is unguided.
        templates: different templates that the proposals of a structure start from.
        tau: τ of that choice, eV: what L_target may differ by without mattering; not swept.
        best_of: structures drawn for each that is written.
        symprec: tolerance in Å within which a finished structure is written symmetrised.
        batch_size: structures at a time; part of the seed.
        seed: of everything random.
        device: cpu or cuda.
    """

    method: str = "diffusion"
    formula: str | None = None
    guide: Guide = field(default_factory=Guide)
    noise_level: float = 0.5
    steps: int = 50
    noise_scale: float = 0.0
    corrector: int = 0
    symmetry: str = "template"
    orbits: str = "template"
    temperature: float = 1.0
    gibbs: int = 0
    proposals: int = 32
    templates: int = 32
    tau: float = 0.05
    best_of: int = 3
    symprec: float = 0.1
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"


def expected_distance(mean: Tensor, std: Tensor) -> Tensor:
    """E|x| of a normal x, [B]; |mean| where std is 0."""
    width = std.clamp(min=1e-6)
    ratio = mean / (width * 2**0.5)
    return width * (2 / math.pi) ** 0.5 * (-(ratio**2)).exp() + mean * ratio.erf()
