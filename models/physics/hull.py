"""Formation energy and energy above the convex hull, from reference phases of one potential.

E_form = (E − Σ n_i μ_i) / N with μ_i the lowest elemental phase; E_stable^ref is the formation energy of the
hull at the structure's composition, so E_form − E_stable^ref = E_hull. The hull holds bulk phases and the
layers of the database.

Potentials that learned the Materials Project's calculations speak of two energy scales: PBE+U where V, Cr,
Mn, Fe, Co, Ni, Mo or W meets oxygen or fluorine, plain PBE elsewhere. Their energies are brought to the PBE
scale of C2DB by the published mixing corrections (Wang et al., Sci. Rep. 11, 15496 (2021)), which pymatgen
ships.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ase.db
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from tqdm import tqdm

from models.crystals.layer import pack_atoms
from models.crystals.thresholds import BELOW_HULL, STABLE
from models.infra.files import ROOT, digest
from models.infra.shards import Shard
from models.physics.potentials import relax_layer

PLUS_U = (
    "SevenNet",
    "MatterSim",
)  # potentials trained on uncorrected Materials Project energies; CHGNet's were corrected
MAX_ENERGY = 50.0  # eV/atom; a relaxation that ends lower has fallen into a hole of the potential
DEFAULT = ROOT / "data" / "reference_phases.db"


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


def to_pbe(composition: Composition, energy: float) -> float:
    """Energy in eV on the PBE scale, of one that is PBE+U where the Materials Project sets U: in oxides and
    fluorides.
    """
    if len(composition) == 1:
        return energy
    anion = max(composition.elements, key=lambda element: element.X).symbol
    corrections = _mixing_corrections().get(anion, {})
    return energy + sum(
        corrections.get(element.symbol, 0.0) * count for element, count in composition.items()
    )


class Hull:
    """Competing phases with energies of one potential.

    Args:
        phases: list of (formula, energy per formula unit cell in eV).
        potential: name of the potential that made the energies; those of PLUS_U are brought to the PBE scale,
            here and in `stability`.
    """

    def __init__(self, phases: list[tuple[str, float]], potential: str = ""):
        self.plus_u = potential.startswith(PLUS_U)
        self.entries = [self._entry(Composition(formula), energy) for formula, energy in phases]
        self.diagrams = {}

    def _entry(self, composition: Composition, energy: float) -> PDEntry:
        return PDEntry(composition, to_pbe(composition, energy) if self.plus_u else energy)

    @classmethod
    def read(cls, path: Path = DEFAULT) -> "Hull":
        """Phases and stored energies of a reference database (row key `energy_eV`)."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is missing: run python -m data.build")
        database = ase.db.connect(path)
        return cls(
            [(row.formula, row.energy_eV) for row in database.select()], database.metadata["potential"]
        )

    def diagram(self, elements: frozenset) -> PhaseDiagram:
        """Phase diagram of a chemical system, cached.

        Raises:
            ValueError: names the elements that have no reference phase.
        """
        if elements not in self.diagrams:
            inside = [entry for entry in self.entries if set(entry.composition.elements) <= elements]
            known = {entry.composition.elements[0] for entry in inside if entry.is_element}
            if known != set(elements):
                missing = sorted(element.symbol for element in elements - known)
                raise ValueError(f"no reference phase of {', '.join(missing)}")
            self.diagrams[elements] = PhaseDiagram(inside)
        return self.diagrams[elements]

    def stability(self, formula: str, energy: float) -> Stability:
        """Stability of a structure.

        Args:
            formula: of the cell.
            energy: of the cell, eV, by the same potential.
        """
        composition = Composition(formula)
        diagram = self.diagram(frozenset(composition.elements))
        entry = self._entry(composition, energy)
        e_form = diagram.get_form_energy_per_atom(entry)
        hull = diagram.get_hull_energy_per_atom(composition)
        elemental = sum(
            diagram.el_refs[el].energy_per_atom * composition.get_atomic_fraction(el) for el in composition
        )
        competing = sum(composition.is_element or not e.is_element for e in diagram.all_entries)
        return Stability(float(e_form), float(hull - elemental), competing)


def relax_phase(atoms: Atoms, calculator, steps: int = 120) -> tuple[Atoms, float, bool]:
    """Relaxes a reference phase: a bulk in all directions, a layer in its plane, a molecule in place; (atoms,
    eV, converged).
    """
    if not atoms.pbc.all():
        relaxed = relax_layer(atoms, calculator, steps=steps, cell=bool(atoms.pbc.any()))
        return relaxed.atoms, relaxed.energy, relaxed.converged
    atoms = atoms.copy()
    atoms.calc = calculator
    converged = BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=steps)
    return atoms, float(atoms.get_potential_energy()), bool(converged)


def hull_for(potential, formulas, path: Path, cache: Shard) -> Hull:
    """Hull of a potential over the chemical systems of some formulas.

    The stored energies serve the potential that made them; for any other potential the phases inside these
    chemical systems are relaxed with it, once (`cache`). A phase that fails or does not converge is left out.

    Raises:
        ValueError: the database does not say which potential made it.
    """
    database = ase.db.connect(path)
    if "potential" not in database.metadata:
        raise ValueError(
            f"{path} does not name its potential in its metadata: build it with python -m data.build"
        )
    if database.metadata["potential"] == potential.name:
        return Hull.read(path)
    systems = [{el.symbol for el in Composition(formula).elements} for formula in formulas]
    rows = [row for row in database.select() if any(set(row.symbols) <= system for system in systems)]
    phases = []
    for row in tqdm(rows, desc=f"competing phases by {potential.name}", mininterval=2):
        atoms = row.toatoms()
        key = f"{row.formula}:{digest(json.dumps(pack_atoms(atoms)) + potential.note)}"
        found = cache.rows.get(key) or cache.append(key, _phase_energy(atoms, potential.calculator))
        if found["energy"] is not None:
            phases.append((row.formula, found["energy"]))
    return Hull(phases, potential.name)


def _phase_energy(atoms: Atoms, calculator) -> dict:
    try:
        _, energy, converged = relax_phase(atoms, calculator)
    except Exception:  # an element that the potential does not know costs its phases, not the run
        return {"energy": None}
    return {"energy": energy if converged and abs(energy) < MAX_ENERGY * len(atoms) else None}
