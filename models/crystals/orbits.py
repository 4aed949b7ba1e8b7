"""Layer groups and occupations of their orbits, drawn from the statistics of a database: prototypes that need
not be in it.

A layer of the database gives the layer group with its operations in a reduced cell, and how many atoms each
element has. The Wyckoff positions that these atoms occupy are drawn anew, element by element, from those that
so many atoms of one element occupy in the layers of this group; only pairs of positions that occur together
in some layer of the group are combined, so that no atom is put straight above another that never lies there.
Positions of different layers meet in the standard setting of spglib (International Tables E).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from ase import Atoms

from models.crystals.layer import coincident, layer_atoms
from models.crystals.symmetry import Operations, layer_operations
from models.crystals.templates import prototype_name
from models.crystals.thresholds import SYMPREC

OCCUPATIONS = 50  # draws of an occupation whose positions go together, before another layer gives the group
COORDINATES = 20  # draws of the free coordinates, of which some put two atoms on one place
CHOICES = 3  # that do not, of which one is taken
HOSTS = 100  # layers that may give the group before the database is said to hold none


@dataclass(frozen=True)
class Site:
    """An example of a Wyckoff position.

    Attributes:
        point: [2] of one atom on it, in the standard setting.
        flat: whether an operation that turns the layer over keeps the atom, so that its height is 0.
    """

    point: np.ndarray
    flat: bool


@dataclass
class GroupStatistics:
    """What the layers of one layer group say.

    Attributes:
        sites: letter of a Wyckoff position -> examples.
        fillings: number of atoms of one element -> how often they occupy which positions (sorted letters, one
            an orbit).
        together: pairs of letters that are occupied in one layer.
    """

    sites: dict[str, list[Site]] = field(default_factory=lambda: defaultdict(list))
    fillings: dict[int, Counter] = field(default_factory=lambda: defaultdict(Counter))
    together: set[tuple[str, str]] = field(default_factory=set)

    def add(self, atoms: Atoms, operations: Operations) -> None:
        """Counts one layer of the group."""
        orbits = occupied(atoms, operations)
        for letter, first, _ in orbits:
            stays = operations.images[:, first] == first
            flat = bool((operations.signs[stays] < 0).any())
            frac = atoms.get_scaled_positions()[first, :2]
            point = operations.basis @ frac + operations.origin
            self.sites[letter].append(Site(point, flat))
        letters, counts = defaultdict(list), Counter(atoms.numbers)
        for letter, first, _ in orbits:
            letters[atoms.numbers[first]].append(letter)
        for number, own in letters.items():
            self.fillings[counts[number]][tuple(sorted(own))] += 1
        self.together |= set(combinations(sorted(letter for letter, _, _ in orbits), 2))

    def occupation(self, counts: Sequence[int], rng: np.random.Generator) -> list[tuple[str, ...]] | None:
        """Letters for each element of so many atoms; None if no layer of the group has so many of one, or if
        OCCUPATIONS draws hold pairs that do not go together.
        """
        if any(count not in self.fillings for count in counts):
            return None
        for _ in range(OCCUPATIONS):
            drawn = []
            for count in counts:
                choices = sorted(self.fillings[count])
                weights = np.array([self.fillings[count][letters] for letters in choices], float)
                drawn.append(choices[rng.choice(len(choices), p=weights / weights.sum())])
            every = sorted(letter for letters in drawn for letter in letters)
            if set(combinations(every, 2)) <= self.together:
                return drawn
        return None


def occupied(atoms: Atoms, operations: Operations) -> list[tuple[str, int, int]]:
    """(letter, first atom, number of atoms) of each orbit of a layer."""
    orbits, seen = [], set()
    for k in range(len(atoms)):
        if k not in seen:
            members = set(operations.images[:, k].tolist())
            orbits.append((operations.wyckoff[k], k, len(members)))
            seen |= members
    return orbits


def is_primitive(operations: Operations) -> bool:
    """Whether no operation is a translation by part of the cell, and spglib knows the positions."""
    same = (operations.rotations == np.eye(2, dtype=int)).all((1, 2)) & (operations.signs > 0)
    return bool(same.sum() == 1 and operations.wyckoff)


class Orbits:
    """Statistics of the layer groups of a database, and prototypes drawn from them.

    Args:
        structures: (name, layer in the convention) of the database.
    """

    def __init__(self, structures: list[tuple[str, Atoms]]):
        self.groups = defaultdict(GroupStatistics)
        for _, atoms in structures:
            operations = layer_operations(atoms)
            if is_primitive(operations):
                self.groups[operations.number].add(atoms, operations)

    def draw(self, hosts: list[tuple[str, Atoms]], rng: np.random.Generator) -> tuple[str, Atoms]:
        """A prototype: (its name, a layer with the elements of a host and random free coordinates).

        Args:
            hosts: layers of the database, any of which may give layer group, cell and numbers of atoms.

        Raises:
            ValueError: no host has a layer group in which its numbers of atoms can be placed.
        """
        for _ in range(HOSTS):
            _, host = hosts[rng.integers(len(hosts))]
            operations = layer_operations(host)
            if not is_primitive(operations):
                continue
            atoms = self._placed(host, operations, rng)
            if atoms is not None:
                return prototype_name(atoms), atoms
        raise ValueError(
            f"none of {HOSTS} layers of the database gives orbits to draw: lower the demands on templates"
        )

    def _placed(self, host: Atoms, operations: Operations, rng: np.random.Generator) -> Atoms | None:
        """The elements of a host on positions drawn anew; None where they find no place.

        Of a few draws of the free coordinates the one of least symmetry: an atom that lies by chance within
        the tolerance of a mirror plane would stay on it.
        """
        elements, counts = np.unique(host.numbers, return_counts=True)
        occupation = self.groups[operations.number].occupation(counts.tolist(), rng)
        drawn = []  # (number of operations, layer)
        for _ in range(COORDINATES if occupation else 0):
            atoms = self._layer(dict(zip(elements, occupation)), host, operations, rng)
            if len(atoms) == len(host) and not coincident(atoms):
                drawn.append((len(layer_operations(atoms)), atoms))
            if len(drawn) == CHOICES:
                break
        drawn = [pair for pair in drawn if pair[0] >= len(operations)]
        return min(drawn, key=lambda pair: pair[0])[1] if drawn else None

    def _layer(
        self, occupation: dict, host: Atoms, operations: Operations, rng: np.random.Generator
    ) -> Atoms:
        """A layer with the positions (letters) of each element occupied.

        It has fewer atoms where the example of a position lies so near to a more special one that it counts
        as that.
        """
        sites, numbers, positions = self.groups[operations.number].sites, [], []
        for element, letters in occupation.items():
            for letter in letters:
                site = sites[letter][rng.integers(len(sites[letter]))]
                orbit = orbit_of(site, host, operations, rng)
                numbers += [element] * len(orbit)
                positions.extend(orbit)
        return layer_atoms(numbers, np.array(positions), host.cell.array[:2, :2])


def orbit_of(site: Site, host: Atoms, operations: Operations, rng: np.random.Generator) -> np.ndarray:
    """Positions [n, 3] Å of an orbit on a Wyckoff position, with random free coordinates, in a host's cell.

    The operations that keep the example of the site are its site symmetry; the mean of their rotations
    projects onto the free directions.

    Args:
        operations: of the host.
    """
    plane = host.cell.array[:2, :2]
    frac = np.linalg.solve(operations.basis, site.point - operations.origin)  # [2] in the host's own cell
    sent = operations.rotations @ frac + operations.translations  # [G, 2]
    away = sent - frac - np.round(sent - frac)
    keeps = np.linalg.norm(away @ plane, axis=1) < SYMPREC
    keeps &= (operations.signs > 0) | site.flat
    free = operations.rotations[keeps].mean(0)  # [2, 2], a projection
    frac = frac + away[keeps].mean(0) + free @ rng.random(2)
    height = 0.0 if site.flat else rng.standard_normal()  # Å, as the noise from which it is denoised
    sent = operations.rotations @ frac + operations.translations  # [G, 2]
    points = np.column_stack([sent, operations.signs * height])  # [G, 3]
    kept = []
    for point in points:
        steps = np.array(kept).reshape(-1, 3) - point
        steps[:, :2] -= np.round(steps[:, :2])
        if not (abs(steps) < 1e-6).all(1).any():  # fractional and Å: images of one point agree to rounding
            kept.append(point)
    orbit = np.array(kept)
    return np.column_stack([orbit[:, :2] @ plane, orbit[:, 2]])
