"""Formation energy and energy above the convex hull, from reference phases of one potential.

E_form = (E − Σ n_i μ_i) / N with μ_i the lowest elemental phase; E_stable^ref is the formation energy of the
hull at the structure's composition, so E_form − E_stable^ref = E_hull. The hull holds bulk phases, the layers
of the database, and points: compositions at which C2DB says where DFT's hull lies (`hform − ehull`, CC-BY
4.0).

Potentials that learned the Materials Project's calculations speak of two energy scales: PBE+U where V, Cr,
Mn, Fe, Co, Ni, Mo or W meets oxygen or fluorine, plain PBE elsewhere. Their energies are brought to the PBE
scale of C2DB by the published mixing corrections (Wang et al., Sci. Rep. 11, 15496 (2021)), which pymatgen
ships. What a potential then still errs by in a systematic way is taken off by an energy an element
(`read_offsets`), fitted to formation energies of C2DB's training formulas (data/build/offsets.py). Both reach
all compounds with the potential's energies, the structure and its competitors alike; points are DFT already.
"""

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from tqdm import tqdm

from models.crystals.ase_database import metadata, number, readable_rows
from models.crystals.layer import pack_atoms
from models.crystals.thresholds import BELOW_HULL, STABLE
from models.infra.files import ROOT, digest, read_rows
from models.infra.shards import Shard
from models.physics.potentials import relax_layer

PLUS_U = (
    "SevenNet",
    "MatterSim",
)  # potentials trained on uncorrected Materials Project energies; CHGNet's were corrected
MAX_ENERGY = 50.0  # eV/atom; a relaxation that ends lower has fallen into a hole of the potential
PBE = ("SevenNet", "MatterSim", "CHGNet")  # potentials whose formation energies meet those of PBE
RELAX_FMAX, RELAX_STEPS = 0.05, 120  # eV/Å
RELAXATION = f" fmax {RELAX_FMAX} steps {RELAX_STEPS}"  # part of the key of what is remembered
DEFAULT = ROOT / "data" / "reference_phases.db"
POINTS = ROOT / "data" / "hull_points.csv"
OFFSETS = ROOT / "data" / "energy_offsets.csv"
WATER = {"O", "H"}
ON_THE_LINE = 1e-4  # eV/atom below the elements; less is no compound


@dataclass(frozen=True)
class Stability:
    """Where a structure stands against its competing phases, eV/atom.

    Attributes:
        e_form: formation energy.
        e_stable: formation energy of the hull at the composition.
        phases: how many phases compete: compounds inside its chemical system; of a pure element, its other
            forms. 0 means that only the elements were known, and E_hull is a lower bound.
    """

    e_form: float
    e_stable: float
    phases: int

    @property
    def e_hull(self) -> float:
        return self.e_form - self.e_stable

    @property
    def competes(self) -> bool:
        return competing_phase_known(self.e_hull, self.phases)

    @property
    def stable(self) -> bool:
        return is_stable(self.e_hull, self.phases)


def competing_phase_known(e_hull: float, phases: int) -> bool:
    """Whether E_hull means anything: something competes, and the structure does not lie so far below the hull
    that what it decomposes to must be missing. False is to be shown as "no competing phase known".

    Args:
        e_hull: eV/atom.
        phases: as in Stability.
    """
    return phases > 0 and e_hull >= BELOW_HULL


def is_stable(e_hull: float, phases: int) -> bool:
    """Less than STABLE above the hull of known competing phases."""
    return competing_phase_known(e_hull, phases) and e_hull < STABLE


@cache
def _mixing_corrections() -> dict[str, dict[str, float]]:
    """anion -> metal -> eV per metal atom."""
    return MaterialsProject2020Compatibility().u_corrections


def plus_u_metals(composition: Composition) -> dict[str, float]:
    """Metals for which the Materials Project sets U in this compound -> eV that it adds an atom of each;
    empty for what is no oxide or fluoride.
    """
    if len(composition) == 1:
        return {}
    anion = max(composition.elements, key=lambda element: element.X).symbol
    corrections = _mixing_corrections().get(anion, {})
    return {el.symbol: corrections[el.symbol] for el in composition if el.symbol in corrections}


def to_pbe(composition: Composition, energy: float) -> float:
    """Energy in eV on the PBE scale, of one that is PBE+U where the Materials Project sets U: in oxides and
    fluorides.
    """
    return energy + sum(shift * composition[symbol] for symbol, shift in plus_u_metals(composition).items())


class Phase(NamedTuple):
    """A competing phase.

    Attributes:
        formula: of its cell.
        energy: of the cell, eV.
        name: e.g. "Ca-Pt:A2B_cF24_227_d_a", elements and prototype.
        kind: "bulk"; "layer"; "molecule", in a box, which stands for a molecular crystal; or "point", a
            composition at which DFT's hull is known but not the phases that span it.
    """

    formula: str
    energy: float
    name: str = ""
    kind: str = "bulk"


class Hull:
    """Competing phases with energies of one potential.

    Args:
        phases: list of Phase, or of its first fields.
        potential: name of the potential that made the energies; those of PLUS_U are brought to the PBE scale,
            here and in `stability`.
        offsets: element -> eV per atom of it that the energy of a compound is moved by, here and in
            `stability`.

    Attributes:
        systems: set of elements -> its phases as pymatgen's entries, on the PBE scale; `attribute` is the
            Phase.
        failed: phases that were left out -> why.
        searched: chemical system, as "Ca-Pt" -> relaxations spent on its competitors (competitors.py).
    """

    def __init__(
        self, phases: list[Phase | tuple], potential: str = "", offsets: dict[str, float] | None = None
    ):
        self.plus_u, self.offsets = potential.startswith(PLUS_U), offsets or {}
        self.potential, self.failed, self.searched = potential, {}, {}
        self.systems, self.diagrams = {}, {}
        self.add(phases)

    @property
    def entries(self) -> list[PDEntry]:
        """All phases."""
        return [entry for entries in self.systems.values() for entry in entries]

    def copy(self) -> "Hull":
        """A hull of its own with the same phases."""
        other = Hull([], self.potential, self.offsets)
        other.systems = {elements: list(entries) for elements, entries in self.systems.items()}
        other.failed, other.searched = dict(self.failed), dict(self.searched)
        return other

    def add(self, phases: list[Phase | tuple]) -> None:
        """Takes in more phases of the same potential."""
        for phase in phases:
            phase = Phase(*phase)
            self._take(self._entry(Composition(phase.formula), phase.energy, phase))

    def add_points(self, points: dict[str, float]) -> None:
        """Takes in where DFT's hull lies: formula -> formation energy of the hull, eV/atom, plain PBE.

        Formation energies meet the potential's own because both count from the elements. A point on the line
        between the elements says that no compound is known there and is left out, as is one with an element
        that has no reference phase, and an element itself: it is where both count from.
        """
        for formula, e_stable in points.items():
            composition = Composition(formula)
            known = all(frozenset([element]) in self.systems for element in composition)
            if known and len(composition) > 1 and e_stable < -ON_THE_LINE:
                elemental = sum(self.reference(element) * n for element, n in composition.items())
                energy = e_stable * composition.num_atoms + elemental
                phase = Phase(formula, energy, f"{formula}: hull by DFT", "point")
                self._take(PDEntry(composition, energy, attribute=phase))

    def _take(self, entry: PDEntry) -> None:
        elements = frozenset(entry.composition.elements)
        self.systems.setdefault(elements, []).append(entry)
        for system in [system for system in self.diagrams if elements <= system]:
            del self.diagrams[system]

    def _entry(self, composition: Composition, energy: float, phase: Phase | None = None) -> PDEntry:
        energy = to_pbe(composition, energy) if self.plus_u else energy
        return PDEntry(composition, energy + self.offset(composition), attribute=phase)

    def offset(self, composition: Composition) -> float:
        """What `offsets` add to the energy of a compound, eV per composition; nothing to an element, where
        formation energies count from.
        """
        if len(composition) == 1:
            return 0.0
        return sum(self.offsets.get(element.symbol, 0.0) * count for element, count in composition.items())

    @classmethod
    def read(
        cls, path: Path = DEFAULT, points: Path | None = POINTS, offsets: Path | None = OFFSETS
    ) -> "Hull":
        """Phases and stored energies of a reference database (row key `energy_eV`).

        Args:
            points: the points of DFT's hull, for a potential that learned PBE (`read_points`); None for none.
            offsets: energies an element, for the potential that they were fitted for (`read_offsets`); None
                for none.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing: run python -m data.build")
        dropped, phases = Counter(), []
        for row, _ in readable_rows(path, dropped, "--references"):
            energy = number(row, "energy_eV")
            if energy is None:
                dropped["energy_eV that is no number"] += 1
            else:
                phases.append(_stored(row, energy))
        for reason, count in dropped.items():
            print(f"{path}: {count} rows are no reference phases: {reason}")
        known = metadata(path, "--references")
        potential = str(known.get("potential", ""))
        hull = cls(phases, potential, read_offsets(potential, offsets) if offsets else None)
        hull.searched = dict(known.get("searched", {}))
        if points and hull.potential.startswith(PBE):
            hull.add_points(read_points(points))
        return hull

    def compounds(self, symbols) -> int:
        """How many phases hold exactly these elements."""
        return len(self.systems.get(frozenset(Element(symbol) for symbol in symbols), []))

    def knows(self, formula: str) -> bool:
        """Whether a layer or a point of this reduced formula is part of the hull."""
        elements = frozenset(Composition(formula).elements)
        return any(_is_seen(entry, formula) for entry in self.systems.get(elements, []))

    def inside(self, elements: frozenset) -> list[PDEntry]:
        """The phases of a chemical system and of the systems inside it."""
        found = []
        for count in range(1, len(elements) + 1):
            for subset in itertools.combinations(sorted(elements), count):
                found += self.systems.get(frozenset(subset), [])
        return found

    def diagram(self, elements: frozenset, without: str | None = None) -> PhaseDiagram:
        """Phase diagram of a chemical system, cached.

        Args:
            without: a reduced formula whose layers and points are left out, to see how well the hull knows a
                formula that it has not seen; its bulk prototypes stay, for they are made for any formula.

        Raises:
            ValueError: names the elements that have no reference phase.
        """
        if without is None and elements in self.diagrams:
            return self.diagrams[elements]
        missing = sorted(el.symbol for el in elements if frozenset([el]) not in self.systems)
        if missing:
            raise ValueError(f"no reference phase of {', '.join(missing)}")
        entries = self.inside(elements)
        if without is not None:
            return PhaseDiagram([entry for entry in entries if not _is_seen(entry, without)])
        self.diagrams[elements] = PhaseDiagram(entries)
        return self.diagrams[elements]

    def formation_energy(self, composition: Composition, energy: float) -> float:
        """Formation energy (eV per composition) of a structure, on the PBE scale.

        Raises:
            ValueError: as `diagram`.
        """
        return self.entry_formation_energy(self._entry(composition, energy))

    def entry_formation_energy(self, entry: PDEntry) -> float:
        """The same of an entry."""
        return entry.energy - sum(self.reference(element) * n for element, n in entry.composition.items())

    def reference(self, element: Element) -> float:
        """Energy per atom (eV) of an element's lowest phase.

        Raises:
            ValueError: as `diagram`.
        """
        return self.diagram(frozenset([element])).el_refs[element].energy_per_atom

    def stability(self, formula: str, energy: float, without: str | None = None) -> Stability:
        """Stability of a structure.

        Args:
            formula: of the cell.
            energy: of the cell, eV, by the same potential.
            without: as in `diagram`.
        """
        composition = Composition(formula)
        diagram = self.diagram(frozenset(composition.elements), without)
        entry = self._entry(composition, energy)
        e_form = diagram.get_form_energy_per_atom(entry)
        hull = diagram.get_hull_energy_per_atom(composition)
        elemental = sum(
            diagram.el_refs[el].energy_per_atom * composition.get_atomic_fraction(el) for el in composition
        )
        competing = sum(composition.is_element or not e.is_element for e in diagram.all_entries)
        return Stability(float(e_form), float(hull - elemental), competing)


def _is_seen(entry: PDEntry, formula: str) -> bool:
    kind = entry.attribute.kind if entry.attribute else "bulk"
    return kind in ("layer", "point") and entry.composition.reduced_formula == formula


def _stored(row, energy: float) -> Phase:
    """A row of a reference database as a phase."""
    kind = "bulk" if row.pbc.all() else "layer" if row.pbc.any() else "molecule"
    return Phase(row.formula, energy, row.get("name", row.formula), kind)


def read_points(path: Path = POINTS) -> dict[str, float]:
    """formula -> formation energy of DFT's hull (eV/atom), of a CSV with these two columns."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: make it with python -m data.build.dft_hull --db c2db.db")
    return {row["formula"]: float(row["e_stable_eV_per_atom"]) for row in read_rows(path)}


def read_offsets(potential: str, path: Path = OFFSETS) -> dict[str, float]:
    """element -> eV per atom of it, of a CSV with the columns potential, element and offset_eV_per_atom;
    empty for a potential that none were fitted for.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing: make it with python -m data.build.offsets")
    rows = [row for row in read_rows(path) if row["potential"] == potential]
    return {row["element"]: float(row["offset_eV_per_atom"]) for row in rows}


def relax_phase(atoms: Atoms, calculator, steps: int = RELAX_STEPS) -> tuple[Atoms, float, bool]:
    """Relaxes a reference phase: a bulk in all directions, a layer in its plane, a molecule in place; (atoms,
    eV, converged).
    """
    if not atoms.pbc.all():
        relaxed = relax_layer(atoms, calculator, steps=steps, cell=bool(atoms.pbc.any()))
        return relaxed.atoms, relaxed.energy, relaxed.converged
    atoms = atoms.copy()
    atoms.calc = calculator
    converged = BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=RELAX_FMAX, steps=steps)
    return atoms, float(atoms.get_potential_energy()), bool(converged)


def hull_for(potential, formulas, path: Path, cache: Shard, points: Path | None = POINTS) -> Hull:
    """Hull of a potential over the chemical systems of some formulas, with O and H, for what water makes of
    them.

    The stored energies serve the potential that made them; for any other potential the phases inside these
    chemical systems are relaxed with it, once (`cache`). A phase that fails is left out and named in the
    hull's `failed`; it is not remembered, so that the next run tries it again.

    Args:
        potential: models.physics.potentials.Potential.
        points: where DFT's hull lies, for the potentials that learned PBE; None for none.

    Raises:
        ValueError: the database does not say which potential made it.
    """
    known = metadata(path, "--references")
    if "potential" not in known:
        raise ValueError(
            f"{path} does not name its potential in its metadata: build it with python -m data.build"
        )
    if known["potential"] == potential.name:
        return Hull.read(path, points)
    systems = [{el.symbol for el in Composition(formula).elements} | WATER for formula in formulas]
    inside = lambda symbols: any(set(symbols) <= system for system in systems)
    hull = Hull([], potential.name, read_offsets(potential.name))
    everything = readable_rows(path, Counter(), "--references")
    rows = [(row, atoms) for row, atoms in everything if inside(atoms.symbols)]
    for row, atoms in tqdm(rows, desc=f"competing phases by {potential.name}", mininterval=2):
        key = f"{row.formula}:{digest(json.dumps(pack_atoms(atoms)) + potential.note + RELAXATION)}"
        found = cache.rows.get(key)
        if found is None or found["energy"] is None:
            try:
                found = cache.append(key, {"energy": phase_energy(atoms, potential.calculator)})
            except Exception as error:  # an element that the potential does not know costs its phases only
                hull.failed[row.get("name", row.formula)] = f"{type(error).__name__}: {error}"[:200]
                continue
        hull.add([_stored(row, found["energy"])])
    if points and potential.name.startswith(PBE):
        computed = read_points(points).items()
        hull.add_points({formula: e for formula, e in computed if inside(Composition(formula).as_dict())})
    return hull


def phase_energy(atoms: Atoms, calculator) -> float:
    """Energy (eV) of a phase, relaxed.

    Raises:
        ValueError: the relaxation does not converge or falls into a hole of the potential. What the
            calculator raises passes through.
    """
    _, energy, converged = relax_phase(atoms, calculator)
    if not converged:
        raise ValueError(f"not converged in {RELAX_STEPS} steps")
    if abs(energy) > MAX_ENERGY * len(atoms):
        raise ValueError(f"a hole in the potential: {energy / len(atoms):.1f} eV/atom")
    return energy
