"""Templates: real layers whose elements can be replaced, and the model-free baseline: what chemistry alone
would replace them by.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from pymatgen.core import Composition, Element

from models.crystals.ase_database import number, readable_rows
from models.crystals.layer import (
    NotALayer,
    NotAStructure,
    bond_ratios,
    extract_layer,
    layer_atoms,
    layer_group_of,
)
from models.crystals.split import split_of
from models.crystals.thresholds import BOND_SCALE, LAYER_VACUUM, SYMPREC


def size_ratio(atoms: Atoms, numbers: Sequence[int]) -> float:
    """Mean growth of the bonds when the atoms become `numbers` [N], by covalent radii."""
    i, j, _, _ = bond_ratios(atoms, BOND_SCALE)
    before, after = covalent_radii[atoms.numbers], covalent_radii[np.asarray(numbers)]
    return float(np.mean((after[i] + after[j]) / (before[i] + before[j]))) if len(i) else 1.0


def substitute(atoms: Atoms, elements: dict[str, str]) -> Atoms:
    """The structure with elements replaced and everything scaled to the new bond lengths.

    Args:
        atoms: a layer (pbc T, T, F: vacuum is kept) or a bulk crystal.
        elements: old symbol -> new symbol; symbols not named stay.
    """
    replaced = atoms.copy()
    replaced.symbols = [elements.get(s, s) for s in atoms.symbols]
    ratio = size_ratio(atoms, replaced.numbers)
    if atoms.pbc.all():
        replaced.set_cell(atoms.cell * ratio, scale_atoms=True)
        return replaced
    vacuum = atoms.cell[2, 2] - np.ptp(atoms.positions[:, 2])
    return layer_atoms(
        replaced.numbers, atoms.positions * ratio, atoms.cell.array[:2, :2] * ratio, vacuum or LAYER_VACUUM
    )


TRIES = 100  # draws of a formula that the templates do not hold yet


def prototype_name(atoms: Atoms, symprec: float = SYMPREC) -> str:
    """Name of a layer's prototype: anonymous formula, layer group, and how many atoms of a primitive cell
    each orbit of each element holds, e.g. "AB2 p-6m2 1|2".

    Args:
        symprec: tolerance in Å of the symmetry.
    """
    anonymous = Composition(atoms.get_chemical_formula()).anonymized_formula
    found = layer_group_of(atoms, symprec)
    if found is None:
        return f"{anonymous} {len(atoms)}"
    copies = int((found.rotations == np.eye(3, dtype=int)).all((1, 2)).sum())  # primitive cells in this one
    orbits = {}  # element -> sizes of its orbits; which element is which does not count
    for (element, _), size in Counter(zip(atoms.numbers, found.equivalent_atoms)).items():
        orbits.setdefault(element, []).append(size // copies)
    texts = []
    for sizes in sorted(sorted(sizes) for sizes in orbits.values()):
        texts.append(",".join(map(str, sizes)))
    return f"{anonymous} {found.international} {'|'.join(texts)}"


def amounts(composition: Composition) -> tuple[float, ...]:
    """What formulas of one type share, e.g. (1.0, 2.0) of MoS2."""
    return tuple(sorted(composition.values()))


class Templates:
    """The layers of a database, as recipes to start from.

    Each layer is one template, the stablest first; a prototype is drawn as often as the database holds it.

    Args:
        structures: list of (name, layer in the convention).
    """

    def __init__(self, structures: list[tuple[str, Atoms]]):
        self.structures = structures
        self.compositions, self.by_amounts = [], {}  # sorted amounts of a formula -> numbers of templates
        self._prototypes = {}  # anonymous formula -> prototypes, filled as they are asked for
        for _, atoms in structures:
            composition = Composition(atoms.get_chemical_formula()).reduced_composition
            self.by_amounts.setdefault(amounts(composition), []).append(len(self.compositions))
            self.compositions.append(composition)

    @classmethod
    def read(cls, path: Path, max_atoms: int = 20, max_e_hull: float = 0.3) -> "Templates":
        """Templates of an ASE database in C2DB's schema; rows that are no layer are left out."""
        structures, dropped = [], Counter()
        for row, submitted in readable_rows(path, dropped):
            e_hull = number(row, "ehull") if "ehull" in row else 0.0
            if e_hull is None:
                dropped["ehull that is no number"] += 1
            elif len(submitted) <= max_atoms and e_hull <= max_e_hull:
                with contextlib.suppress(NotALayer, NotAStructure):
                    atoms = extract_layer(submitted).atoms
                    name = row.get("prototype")
                    name = name if isinstance(name, str) and name else prototype_name(atoms)
                    structures.append((e_hull, name, atoms))
        for reason, count in dropped.items():
            print(f"{path}: {count} rows are no templates: {reason}")
        structures.sort(key=lambda entry: entry[0])
        return cls([(name, atoms) for _, name, atoms in structures])

    def select(
        self, formula: str | None = None, name: str | None = None, num_atoms: int | None = None
    ) -> "Templates":
        """Those that a formula fits (same anonymous formula), of a prototype, of a number of atoms.

        Raises:
            ValueError: none is left.
        """
        anonymous = Composition(formula).anonymized_formula if formula else None
        kept = []
        for (label, atoms), own in zip(self.structures, self.compositions):
            fits = anonymous is None or own.anonymized_formula == anonymous
            if fits and name in (None, label) and num_atoms in (None, len(atoms)):
                kept.append((label, atoms))
        if not kept:
            raise ValueError(f"no template fits formula={formula} template={name} num_atoms={num_atoms}")
        return Templates(kept)

    def elements(self) -> list[str]:
        """All elements of the templates, sorted."""
        return sorted({symbol for _, atoms in self.structures for symbol in atoms.symbols})

    def holds_prototype(self, atoms: Atoms) -> bool:
        """Whether a layer of the database has the same prototype (prototype_name) as this one."""
        anonymous = Composition(atoms.get_chemical_formula()).anonymized_formula
        if anonymous not in self._prototypes:
            names = set()
            for (_, own), composition in zip(self.structures, self.compositions):
                if composition.anonymized_formula == anonymous:
                    names.add(prototype_name(own))
            self._prototypes[anonymous] = names
        return prototype_name(atoms) in self._prototypes[anonymous]

    def draw(self, rng: np.random.Generator) -> tuple[str, Atoms]:
        """A random template: (name, layer)."""
        return self.structures[rng.integers(len(self.structures))]

    def held_out(self, count: int, rng: np.random.Generator) -> list[tuple[str, Atoms]]:
        """Different layers of the test split, which no stage has learned from; fewer than `count` is an
        error.

        Raises:
            ValueError: there are not so many.
        """
        unseen = []
        for pair, composition in zip(self.structures, self.compositions):
            if split_of(composition.reduced_formula) == "test":
                unseen.append(pair)
        if len(unseen) < count:
            raise ValueError(f"the test split holds {len(unseen)} layers, fewer than {count}: lower --num")
        return [unseen[k] for k in rng.permutation(len(unseen))[:count]]


@cache
def group_and_scale(symbol: str) -> tuple[int, int]:
    """Group of the periodic table, and place on Pettifor's chemical scale, on which neighbours form the same
    structures.
    """
    element = Element(symbol)
    return element.group, int(element.mendeleev_no)


def chemical_distance(one: str, other: str) -> int:
    """Steps between two elements on Pettifor's scale."""
    return abs(group_and_scale(one)[1] - group_and_scale(other)[1])


def relatives(symbol: str, elements: list[str]) -> list[str]:
    """The elements of the same group, itself among them."""
    return [other for other in elements if group_and_scale(other)[0] == group_and_scale(symbol)[0]]


def best_assignment(own: Composition, wanted: Composition) -> tuple[int, dict[str, str]] | None:
    """Elements of one reduced composition in the place of those of another, as alike as can be.

    Returns:
        (sum of chemical distances, own symbol -> wanted symbol), or None if the amounts differ.
    """
    if amounts(own) != amounts(wanted):
        return None
    old = sorted(element.symbol for element in own)
    best = None
    for order in itertools.permutations(sorted(element.symbol for element in wanted)):
        fit = dict(zip(old, order))
        if any(own[a] != wanted[b] for a, b in fit.items()):
            continue
        distance = sum(chemical_distance(a, b) for a, b in fit.items())
        if best is None or distance < best[0]:
            best = distance, fit
    return best


def nearest_prototypes(templates: Templates, formula: str) -> Iterator[tuple[str, Atoms]]:
    """The templates of other formulas with the elements of `formula` put in, the most alike in chemistry
    first.

    Of templates that are one prototype (same name) the most alike stands for all; where two are equally
    alike, the stabler.

    Raises:
        ValueError: no template of another formula has these amounts.
    """
    wanted, found = Composition(formula).reduced_composition, []
    for k in templates.by_amounts.get(amounts(wanted), []):
        own = templates.compositions[k]
        fit = None if own == wanted else best_assignment(own, wanted)
        if fit:
            found.append((fit[0], k, fit[1]))
    if not found:
        raise ValueError(f"no other layer of the database has the amounts of {formula}")
    seen = set()
    for _, k, elements in sorted(found, key=lambda item: item[:2]):
        name, atoms = templates.structures[k]
        if name not in seen:
            seen.add(name)
            yield name, substitute(atoms, elements)


def related_formula(
    templates: Templates, rng: np.random.Generator, allowed: Collection[str] | None = None
) -> str:
    """A formula by analogy: a random template with every element replaced by a random one of its group.

    One that the templates hold already is drawn again, TRIES times at most.

    Args:
        allowed: symbols that may be put in, those of the templates where None.

    Raises:
        ValueError: none of TRIES templates has relatives among the allowed symbols.
    """
    elements = [symbol for symbol in templates.elements() if allowed is None or symbol in allowed]
    known = {composition.reduced_formula for composition in templates.compositions}
    formula = None
    for _ in range(TRIES):
        composition = templates.compositions[rng.integers(len(templates.compositions))]
        choices = [(relatives(element.symbol, elements), amount) for element, amount in composition.items()]
        if not all(symbols for symbols, _ in choices):
            continue
        chosen = {}
        for symbols, amount in choices:
            chosen.setdefault(str(rng.choice(symbols)), amount)
        formula = Composition(chosen).reduced_formula
        if len(chosen) == len(composition) and formula not in known:
            break
    if formula is None:
        raise ValueError(f"no template has relatives of all its elements among {', '.join(elements)}")
    return formula


def by_substitution(
    templates: Templates,
    count: int,
    rng: np.random.Generator,
    formula: str | None = None,
    allowed: Collection[str] | None = None,
) -> list[tuple[str, Atoms]]:
    """The model-free baseline: (name of the prototype, layer) of `count` formulas, each in its nearest
    prototype.

    With a `formula` given, that formula in its nearest prototypes, one after the other; else of the `allowed`
    elements, any where None.
    """
    if formula:
        return spread(templates, formula, count)
    found = []
    for _ in range(count):
        found.append(next(nearest_prototypes(templates, related_formula(templates, rng, allowed))))
    return found


def spread(templates: Templates, formula: str, count: int) -> list[tuple[str, Atoms]]:
    """`count` starts for a formula: its nearest prototypes, one after the other, and from the first again
    when they run out.
    """
    different = itertools.islice(nearest_prototypes(templates, formula), count)
    return list(itertools.islice(itertools.cycle(different), count))
