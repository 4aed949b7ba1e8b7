"""From templates to drawn structures: what each one starts from, which elements it gets, and which are kept.

A template of the database loses its elements, is noised to t0, gets elements proposed by the model, takes the
size of their bonds, is noised again and denoised. Beside the model stand the model-free baselines: random
elements in a random template, substitution into the nearest prototype, and real layers of the test split.
"""

import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import Composition
from torch import Tensor
from tqdm import tqdm

from models.crystals.layer import (
    NotALayer,
    NotAStructure,
    coincident,
    extract_layer,
    pack_atoms,
    reduced_formula,
    unpack_atoms,
)
from models.crystals.orbits import Orbits
from models.crystals.symmetry import layer_operations, maximal_subgroups, symmetrized
from models.crystals.templates import Templates, by_substitution, spread, substitute
from models.infra.shards import Shard
from models.networks.diffusion import Diffusion
from models.networks.egnn import DenoisingEGNN, Heads
from models.networks.layers import MASK, Layers, layers_of, to_atoms
from models.networks.sampler import Sampler
from models.networks.settings import GeneratorSettings, Guide
from models.networks.symmetry import Symmetry

# Columns of generated.csv, in the order of head_properties.
HEADS = ["head_delta_g_h_eV", "head_e_hull_eV_per_atom", "head_p_synth", "head_delta_g_h_std_eV"]

# Å, of a cell's height and of its rows and thickness, that are still looked at
SMALLEST, LARGEST = 1.0, 100.0
SUBGROUP_SHARE = 0.5  # of the structures with --symmetry subgroup that lose part of their template's group
# Why a draw is no structure. Two atoms on one place are chance and are drawn again, REDRAWS times at most;
# what has diverged under too strong a guide would diverge again.
DIVERGED, COINCIDENT = "diverged", "two atoms on one place"
REDRAWS = 5

Start = tuple[str, Atoms]  # name of the prototype, and the layer


# --- what a structure starts from


def start_structures(
    templates: Templates,
    count: int,
    settings: GeneratorSettings,
    rng: np.random.Generator,
    orbits: Orbits | None = None,
) -> list[list[Start]]:
    """What each of `count` structures may start from: several templates where the model chooses.

    Args:
        orbits: where the occupation of orbits is drawn; the templates give layer groups and numbers of atoms.
    """
    if orbits is not None:
        found = [orbits.draw(templates.structures, rng) for _ in range(count)]
        if settings.formula:
            found = [(name, with_formula(atoms, settings.formula, rng)) for name, atoms in found]
    elif settings.method == "substitution":
        found = by_substitution(templates, count, rng, settings.formula, settings.guide.elements)
    elif settings.method == "held-out":
        found = templates.held_out(count, rng)
    elif settings.formula and settings.method == "diffusion":
        found = spread(templates, settings.formula, count)
    else:
        choices = min(settings.templates, settings.proposals) if settings.method == "diffusion" else 1
        return [[templates.draw(rng) for _ in range(choices)] for _ in range(count)]
    return [[start] for start in found]


def fitting(templates: Templates, elements: Collection[str] | None) -> Templates:
    """Those with no more slots than there are elements to choose from.

    Raises:
        ValueError: none is left.
    """
    if elements is None:
        return templates
    kept = [pair for pair in templates.structures if len(set(pair[1].symbols)) <= len(elements)]
    if not kept:
        raise ValueError(f"every template needs more elements than --elements leaves: {', '.join(elements)}")
    return Templates(kept)


def substituted(template: Atoms, symbols) -> Atoms:
    """The template with the elements `symbols` [N], scaled to the new bond lengths."""
    return substitute(template, dict(zip(template.symbols, symbols)))


def recipe(start: Start) -> tuple[str, str]:
    """What makes two starts the same: the name of the template and the reduced formula."""
    name, atoms = start
    return name, reduced_formula(atoms)


def random_elements(
    batch: list[list[Start]], elements: list[str], formula: str | None, rng: np.random.Generator
) -> Iterator[Atoms]:
    """Model-free baseline: every slot of a random template gets a random element, all different; those of
    `formula` in a random order that keeps its amounts, where one is given.

    Args:
        elements: symbols to draw from.
    """
    for ((_, atoms),) in batch:
        if formula:
            yield with_formula(atoms, formula, rng)
        else:
            old = sorted(set(atoms.symbols))
            yield substitute(atoms, dict(zip(old, rng.choice(elements, len(old), replace=False))))


def with_formula(atoms: Atoms, formula: str, rng: np.random.Generator) -> Atoms:
    """The layer with the elements of a formula, in a random order that keeps its amounts."""
    return substitute(atoms, random_assignment(atoms, formula, rng))


def random_assignment(atoms: Atoms, formula: str, rng: np.random.Generator) -> dict[str, str]:
    """Own symbol -> symbol of the formula, at random among those that keep the amounts."""
    own = Composition(atoms.get_chemical_formula()).reduced_composition
    wanted = Composition(formula).reduced_composition
    places = {}
    for element, amount in own.items():
        places.setdefault(amount, []).append(element.symbol)
    chosen = {}
    for amount, symbols in places.items():
        new = sorted(element.symbol for element, other in wanted.items() if other == amount)
        chosen |= dict(zip(sorted(symbols), rng.permutation(new).tolist()))
    return chosen


# --- from a start to a denoised layer


def hide(layers: Layers) -> Layers:
    """Layers without their elements."""
    return layers.replace(atomic_numbers=torch.where(layers.mask, MASK, 0))


def chosen_starts(batch: list[list[Start]], sampler: Sampler, taken: Collection = ()) -> list[Start]:
    """What each structure starts from, with the elements that the model proposes; from pure noise, and with a
    formula, the first that it may start from.

    Args:
        batch: for each structure what it may start from.
        taken: recipes that are not to be chosen again.
    """
    settings, start = sampler.settings, start_time(sampler)
    if start == sampler.diffusion.steps or settings.formula:
        return [starts[0] for starts in batch]
    return propose(batch, sampler, start, taken)


def start_time(sampler: Sampler) -> int:
    """The integer time that structures are noised to."""
    return round(sampler.settings.noise_level * sampler.diffusion.steps)


def denoised(starts: list[Start], sampler: Sampler) -> Layers:
    """The starts noised to the level and denoised; from pure noise without a formula their elements, too."""
    settings, start = sampler.settings, start_time(sampler)
    pure = start == sampler.diffusion.steps
    layers = layers_of([atoms for _, atoms in starts]).to(settings.device)
    if pure and not settings.formula:
        layers = hide(layers)
    symmetry = symmetry_of(starts, sampler)
    if pure and symmetry is None:
        noised, lattice = sampler.prior(layers)
    else:
        noised, lattice = sampler.noised(layers, start, symmetry)
    return sampler.denoise(noised, lattice, start, settings.steps, symmetry)


class Drawn(NamedTuple):
    """What became of a start.

    Attributes:
        atoms: the layer, None where it failed.
        failure: "", DIVERGED or COINCIDENT.
        redrawn: how often it was drawn again, because two atoms had come to lie on one place.
    """

    atoms: Atoms | None
    failure: str
    redrawn: int


def drawn(starts: list[Start], sampler: Sampler) -> list[Drawn]:
    """A layer from each start; one in which two atoms lie on one place is drawn again from other noise,
    REDRAWS times at most.
    """
    found, left = {}, list(range(len(starts)))
    for redrawn in range(1 + REDRAWS):
        layers = denoised([starts[k] for k in left], sampler).to("cpu")
        for row, k in enumerate(left):
            found[k] = Drawn(*_finished(layers[row : row + 1], sampler.settings.symprec), redrawn)
        left = [k for k in left if found[k].failure == COINCIDENT]
        if not left:
            break
    return [found[k] for k in range(len(starts))]


def _finished(layer: Layers, symprec: float) -> tuple[Atoms | None, str]:
    """The structure of a batch of one, and why it is none.

    Two atoms lie on one place inside a layer group where an orbit has come to lie on a more special position
    (the two S of 2H MoS2 on the mirror plane between them), or on another orbit. No energy forbids it in the
    sampler, and a network that has learned little is not repelled by it.
    """
    if not sensible(layer).item():
        return None, DIVERGED
    atoms = presentable(to_atoms(layer)[0], symprec)
    return (None, COINCIDENT) if coincident(atoms) else (atoms, "")


def symmetry_of(starts: list[Start], sampler: Sampler) -> Symmetry | None:
    """The operations that each structure of a batch is diffused under; None for --symmetry none."""
    kind, found = sampler.settings.symmetry, []
    if kind == "none":
        return None
    for _, atoms in starts:
        operations = layer_operations(atoms)
        if kind == "subgroup" and torch.rand(1, generator=sampler.generator).item() < SUBGROUP_SHARE:
            subgroups = maximal_subgroups(operations)
            if subgroups:
                which = torch.randint(len(subgroups), (1,), generator=sampler.generator).item()
                operations = operations.subset(subgroups[which])
        found.append(operations)
    return Symmetry.of(found, max(len(atoms) for _, atoms in starts)).to(sampler.settings.device)


def propose(batch: list[list[Start]], sampler: Sampler, start: int, taken: Collection = ()) -> list[Start]:
    """Templates with elements proposed by the model; of `proposals` for each, one is drawn with weights
    exp(−L_target / τ).

    The k-th proposal starts from the k-th template of a structure, from the first again when they run out.
    A recipe that was taken before is passed over while another is left.

    Args:
        start: integer time at which the network is asked for elements.
    """
    settings = sampler.settings
    candidates = [_proposal(batch, k, sampler, start) for k in range(settings.proposals)]  # [K][B]
    if settings.proposals == 1:
        return candidates[0]
    losses = []
    for found in candidates:
        layers = layers_of([atoms for _, atoms in found])
        losses.append(sampler.target_loss(layers.to(settings.device)))
    losses = torch.stack(losses, 1).cpu()  # [B, K]
    # Gumbel's trick: the order of these keys is a draw without replacement by exp(−L_target / τ).
    gumbel = -torch.log(-torch.log(torch.rand(losses.shape, generator=sampler.generator)))
    orders = (gumbel - losses / settings.tau).argsort(1, descending=True)  # [B, K]
    chosen, taken = [], set(taken)
    for row, order in enumerate(orders.tolist()):
        ranked = [candidates[k][row] for k in order]
        pick = next((start for start in ranked if recipe(start) not in taken), ranked[0])
        taken.add(recipe(pick))
        chosen.append(pick)
    return chosen


def _proposal(batch: list[list[Start]], k: int, sampler: Sampler, start: int) -> list[Start]:
    """The k-th proposal of each structure of a batch."""
    templates = [starts[k % len(starts)] for starts in batch]
    hidden = hide(layers_of([atoms for _, atoms in templates]).to(sampler.settings.device))
    noised, lattice = sampler.noised(hidden, start, symmetry_of(templates, sampler))
    filled = sampler.propose_elements(noised, lattice, start, sampler.settings.temperature)
    proposed = to_atoms(filled.to("cpu"))
    return [(name, substituted(own, atoms.symbols)) for (name, own), atoms in zip(templates, proposed)]


def presentable(atoms: Atoms, symprec: float) -> Atoms:
    """The layer in the convention, symmetrised by the layer group that it has within `symprec` Å.

    What is no single layer is returned as it came: the evaluator says so.
    """
    try:
        layer = extract_layer(atoms).atoms
        return extract_layer(symmetrized(layer, layer_operations(layer, symprec))).atoms
    except (NotALayer, NotAStructure):
        return atoms


# --- what the heads say of finished structures, and which are kept


@torch.no_grad()
def head_properties(model: DenoisingEGNN, structures: list[Atoms], device="cpu") -> Tensor:
    """The guide's own opinion [n, 4] of finished structures, in the order of HEADS."""
    layers = layers_of(structures).to(device)
    heads = model.properties(layers, torch.zeros(len(layers), device=device)).to("cpu")
    return heads.replace(synth_logit=heads.synth_logit.sigmoid()).stacked()


def opinions(found: list[dict]) -> np.ndarray:
    """The heads' opinion [n, 4] of drawn structures, in the order of HEADS; NaN where no model made them."""
    return np.array([[float(x or "nan") for x in row["heads"]] for row in found])


def recipe_of(row: dict) -> tuple[str, str]:
    """The recipe of a drawn structure; of one that failed, its template and no formula."""
    if row["atoms"] is None:
        return row["template"], ""
    return recipe((row["template"], unpack_atoms(row["atoms"])))


def best(found: list[dict], count: int, guide: Guide) -> set[int]:
    """Which `count` structures have the lowest L_target by the heads; a recipe's second one after all first
    ones.
    """
    losses = guide.loss(Heads(*torch.tensor(opinions(found)).T))  # the loss does not look at P_synth
    for k, row in enumerate(found):
        if row["atoms"] is None or not guide.allows(torch.tensor([row["atoms"]["numbers"]])).item():
            losses[k] = torch.inf
    first, again, taken = [], [], set()
    for k in losses.argsort().tolist():
        (again if recipe_of(found[k]) in taken else first).append(k)
        taken.add(recipe_of(found[k]))
    return {k for k in [*first, *again][:count] if found[k]["atoms"] is not None}


class Generator:
    """Draws structures, a batch at a time.

    Args:
        settings: how.
        templates: what to start from, selected already.
        model, diffusion: as trained; None where settings.method needs no model.
        orbits: statistics to draw from where settings.orbits is "drawn".
    """

    def __init__(
        self,
        settings: GeneratorSettings,
        templates: Templates,
        model: DenoisingEGNN | None = None,
        diffusion: Diffusion | None = None,
        orbits: Orbits | None = None,
    ):
        self.settings, self.templates, self.orbits = settings, templates, orbits
        self.model, self.diffusion = model, diffusion

    def run(self, count: int, shard: Shard, identity: str) -> list[dict]:
        """`count` drawn structures; batches that the shard holds under `identity` are taken from there.

        Returns:
            {"atoms", "template", "heads", "failure", "redrawn", "nfe", "seconds"} each: the packed layer
            (None if it failed), the name of its template, HEADS as text, as in Drawn, and its share of the
            batch's function evaluations and of the seconds of one core.
        """
        size = self.settings.batch_size
        rng = np.random.default_rng(self.settings.seed)
        starts = start_structures(self.templates, count, self.settings, rng, self.orbits)
        taken = set()
        for first in tqdm(range(0, count, size), desc="batches"):
            keys = [f"{identity}:{k}" for k in range(first, min(first + size, count))]
            if keys[-1] not in shard.rows:
                for key, row in zip(keys, self.draw(starts[first : first + size], first, taken)):
                    shard.append(key, row)
            taken |= {recipe_of(shard.rows[key]) for key in keys}
        return [shard.rows[f"{identity}:{k}"] for k in range(count)]

    def draw(self, batch: list[list[Start]], first: int, taken: Collection = ()) -> list[dict]:
        """One batch; seeded by the number `first` of its first structure, so that an interruption changes
        nothing.
        """
        begin = time.process_time()
        draw = self._without_model if self.model is None else self._denoised
        names, found, heads, nfe = draw(batch, first, taken)
        cost = {"nfe": nfe, "seconds": round((time.process_time() - begin) / len(batch), 3)}
        rows = []
        for one, name, head in zip(found, names, heads):
            row = {"atoms": pack_atoms(one.atoms), "template": name, "heads": head}
            rows.append(row | {"failure": one.failure, "redrawn": one.redrawn} | cost)
        return rows

    def _without_model(self, batch, first, taken):
        names = [name for ((name, _),) in batch]
        structures = [atoms for ((_, atoms),) in batch]
        if self.settings.method == "random":
            rng = np.random.default_rng([self.settings.seed, first])
            allowed = self.settings.guide.elements
            elements = self.templates.elements() if allowed is None else sorted(allowed)
            structures = list(random_elements(batch, elements, self.settings.formula, rng))
        found = [Drawn(atoms, "", 0) for atoms in structures]
        return names, found, [[""] * len(HEADS)] * len(batch), 0

    def _denoised(self, batch, first, taken):
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + first)
        sampler = Sampler(self.model, self.diffusion, settings, generator)
        starts = chosen_starts(batch, sampler, taken)
        found, heads = drawn(starts, sampler), [[""] * len(HEADS)] * len(batch)
        kept = [k for k, one in enumerate(found) if one.atoms is not None]
        if kept:
            said = head_properties(self.model, [found[k].atoms for k in kept], settings.device).tolist()
            for k, row in zip(kept, said):
                heads[k] = [f"{x:.4f}" for x in row]
        return [name for name, _ in starts], found, heads, round(sampler.nfe / len(batch))


def sensible(layers: Layers) -> Tensor:
    """[B] whether a structure is finite and of a size that a layer can have; others have diverged under too
    strong a guide, and no neighbour list should be made of them.
    """
    finite = torch.isfinite(layers.frac_coords).all((1, 2)) & torch.isfinite(layers.z).all(1)
    finite &= torch.isfinite(layers.cell).all((1, 2))
    cell = torch.where(finite[:, None, None], layers.cell, torch.eye(2).to(layers.cell))
    rows = cell.norm(dim=-1)  # [B, 2] Å
    height = torch.linalg.det(cell).abs() / rows.amax(1)
    extent = torch.where(finite[:, None], layers.z, 0).abs().amax(1)
    return finite & (height > SMALLEST) & (rows.amax(1) < LARGEST) & (extent < LARGEST)
