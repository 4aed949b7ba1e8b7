"""Does a material survive water at the working point of hydrogen evolution? A Pourbaix hull.

All energies become Gibbs energies of formation at 298 K on the experimental scale, so that computed solids
meet measured ions:

- Solids: energies of the hull's potential on the PBE scale, moved to measured ones (`to_measured`), as
Persson et al. (Phys. Rev. B 85, 235438 (2012)) prescribe, who move the ions by the error of reference solids
instead. The move is the anion correction of the Materials Project (Wang et al., Sci. Rep. 11, 15496 (2021);
pymatgen ships it), scaled down where the bond is not ionic, and the zero-point energy of O-H. Then the
entropy that the gaseous elements lose (S° of CODATA); the solids' own entropies nearly cancel (0.06 eV for
TiO2).
- Ions and dissolved molecules: measured Gibbs energies of formation of SUPCRT92 (Johnson, Oelkers and
Helgeson, Comput. Geosci. 18, 899 (1992)), the table of ase.phasediagram; 1e-6 mol/l unless said otherwise.
- Water −2.4583 eV (measured), H+ and e− by pH and potential.

Every species is brought to the elements other than O and H by water, protons and electrons; the Pourbaix hull
is then the cheapest mix of species with the material's composition, a small linear programme. Molecules in a
box (CH4, SiH4, …) are no solids and take no part: reduction of carbon to methane is favourable by 0.5 eV an
atom on paper and blocked in a cell.

Of data/gibbs_energies.csv 97 solids are in the hull and come out with a MAE of 0.074 eV/atom (0.128 with the
correction as published, 0.241 without any); docs/hull.md.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase.phasediagram import parse_formula, solvated
from ase.units import J, kB, mol
from pymatgen.core import Composition
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from scipy.optimize import linprog

from models.physics.hull import Hull

TEMPERATURE = 298.15  # K
CONCENTRATION = 1e-6  # mol/l of dissolved species: Pourbaix's convention for "corrodes"
WATER = -2.4583  # eV, Gibbs energy of formation, ase.pourbaix
WORKING_POINTS = tuple((ph, potential) for ph in (0.0, 14.0) for potential in (0.0, -0.2))  # V against RHE

# Above it a solid decomposes even if it must corrode through its own oxide: Singh et al., Chem. Mater. 29,
# 10159 (2017), find materials up to 0.5 eV/atom that survive because electrons must cross a film.
METASTABLE = 0.5  # eV/atom
# Dissolving without electron transfer (a salt, an oxide in acid) meets no such barrier: what is left is the
# error of the energies, about that of the hull.
SOLUBLE = 0.15  # eV/atom

# S° of the elements that are gases (J/mol/K per mole of the molecule; CODATA), per atom times T in eV.
GAS_ENTROPY = {"H": 130.68, "N": 191.61, "O": 205.15, "F": 202.79, "Cl": 223.08}
ENTROPY = {element: TEMPERATURE * s / 2 * J / mol for element, s in GAS_ENTROPY.items()}

OXIDISED_BY = 2  # O and F atoms an atom: with so many S, Se, N or a halogen is a cation (sulfate), no anion
PERHAPS_ANIONS = ("S", "Se", "Te", "N", "F", "Cl", "Br", "I")
CORRECTED = ("CHGNet",)  # potentials whose training energies hold the anion corrections already
# Wang et al. fit one number an anion, for CaS and MoS2 alike. PBE needs it in the ionic one and not in the
# covalent one, so it is scaled from 0 to 1 between two differences of electronegativity (Pauling), read off
# the solids of data/gibbs_energies.csv; the optimum is flat (MAE 0.074 to 0.078 eV/atom within 0.1 of each).
COVALENT, IONIC = 0.4, 1.3
# eV for each H of an O-H group: mean over eight hydroxides M(OH)2 of the same table. About the zero-point
# energy that H gains from H2.
HYDROXIDE = 0.23


def anions(composition: Composition) -> set[str]:
    """Elements that Wang et al. correct, read off the composition, where pymatgen guesses oxidation states: O
    always; H, Si and Sb where nothing is more electronegative; the others there too, or if fewer than
    OXIDISED_BY O and F go with each.
    """
    most = max(composition.elements, key=lambda element: element.X).symbol
    amounts = composition.get_el_amt_dict()
    oxidisers = amounts.get("O", 0) + amounts.get("F", 0)
    found = {symbol for symbol in ("O", "H", "Si", "Sb") if symbol in amounts and symbol in ("O", most)}
    for symbol in PERHAPS_ANIONS:
        if symbol in amounts and (symbol == most or oxidisers < OXIDISED_BY * amounts[symbol]):
            found.add(symbol)
    return found


def ionicity(composition: Composition, negative: set[str]) -> float:
    """0 (covalent) to 1 (ionic): the mean electronegativity of the other elements, H left out, below that of
    the most electronegative one, between COVALENT and IONIC.
    """
    others = {el: n for el, n in composition.items() if el.symbol not in {*negative, "H"}}
    if not others:
        return 1.0
    mean = sum(element.X * n for element, n in others.items()) / sum(others.values())
    difference = max(element.X for element in composition) - mean
    return float(np.clip((difference - COVALENT) / (IONIC - COVALENT), 0.0, 1.0))


def to_measured(composition: Composition, corrected: bool = False) -> float:
    """Energy (eV per composition) to add to a solid's on the PBE scale to meet measured enthalpies.

    Args:
        corrected: the energies hold the anion corrections already.
    """
    if len(composition) == 1:
        return 0.0
    table = MaterialsProject2020Compatibility().comp_correction
    negative, amounts = anions(composition), composition.get_el_amt_dict()
    total = sum(table["oxide" if symbol == "O" else symbol] * amounts[symbol] for symbol in sorted(negative))
    total *= 0.0 if corrected else ionicity(composition, negative)
    if "O" in amounts and "H" not in negative:
        total += HYDROXIDE * amounts.get("H", 0)
    return total


@dataclass(frozen=True)
class Species:
    """A solid or dissolved species: name, atoms by element, charge, Gibbs energy of formation (eV)."""

    name: str
    amounts: dict
    charge: int
    energy: float
    solid: bool

    def potential_energy(self, ph: float, potential: float) -> float:
        """Energy (eV) that remains after O, H and charge were traded for water, H+ and e−, at a pH and a
        potential (V against RHE).
        """
        water = self.amounts.get("O", 0)
        protons = self.amounts.get("H", 0) - 2 * water
        electrons = protons - self.charge
        nernst = kB * TEMPERATURE * np.log(10)
        mu_proton, mu_electron = -nernst * ph, -(potential - nernst * ph)  # U(SHE) = U(RHE) − 0.059 pH
        return self.energy - water * WATER - protons * mu_proton - electrons * mu_electron

    def electrons(self) -> float:
        """Electrons that form it from elements, water and protons."""
        return self.amounts.get("H", 0) - 2 * self.amounts.get("O", 0) - self.charge


@dataclass(frozen=True)
class AqueousStability:
    """A material at one pH and potential.

    Attributes:
        e_pourbaix: energy above the Pourbaix hull, eV per atom of the material; None if not known.
        e_dissolution: what it gains by going wholly into solution without electron transfer, eV/atom (0: it
            gains nothing, or cannot); None if not known.
        products: what it decomposes to, e.g. "Ca++ + Pt"; its own formula where nothing is more stable.
        unknown: elements that have no dissolved species in the table.
    """

    e_pourbaix: float | None
    e_dissolution: float | None
    products: str
    unknown: tuple[str, ...] = ()

    def holds(self, metastable: float = METASTABLE, soluble: float = SOLUBLE) -> bool | None:
        """Whether the material is likely to survive; None if not known."""
        if self.e_pourbaix is None:
            return None
        return bool(self.e_pourbaix <= metastable and self.e_dissolution <= soluble)


class Pourbaix:
    """Aqueous stability against the phases of a hull and the table of dissolved species.

    Args:
        hull: competing solids, and the reference energies of the elements.
        concentration: of every dissolved species, mol/l.
    """

    def __init__(self, hull: Hull, concentration: float = CONCENTRATION):
        self.hull, self.concentration = hull, concentration
        self.systems = {}

    def solid(self, formula: str, energy: float) -> Species:
        """A solid of the hull's potential; `energy` of the cell (eV) as the potential gives it."""
        composition = Composition(formula)
        return self._solid(composition, self.hull.formation_energy(composition, energy))

    def _solid(self, composition: Composition, formation: float) -> Species:
        """Args: formation energy per composition on the PBE scale, eV.

        Without the hull's offsets: they were fitted to layers, `to_measured` to bulk solids as the potential
        has them (with both the solids of data/gibbs_energies.csv err by 0.087 eV/atom, not by 0.074).
        """
        amounts = composition.get_el_amt_dict()
        formation -= self.hull.offset(composition)
        energy = formation + to_measured(composition, self.hull.potential.startswith(CORRECTED))
        if len(composition) > 1:
            energy += sum(ENTROPY.get(symbol, 0.0) * count for symbol, count in amounts.items())
        return Species(composition.reduced_formula, amounts, 0, energy, solid=True)

    def species(self, elements: frozenset[str]) -> list[Species]:
        """All solids and dissolved species of some elements with O and H, water and hydrogen themselves left
        out.
        """
        if elements not in self.systems:
            found = self._dissolved(elements)
            for entry in self.hull.entries:
                symbols = set(entry.composition.as_dict())
                if (
                    entry.attribute.kind not in ("bulk", "layer")
                    or not symbols & elements
                    or symbols - elements - {"O", "H"}
                ):
                    continue
                found.append(self._solid(entry.composition, self.hull.entry_formation_energy(entry)))
            self.systems[elements] = found
        return self.systems[elements]

    def _dissolved(self, elements: frozenset[str]) -> list[Species]:
        found = []
        dilution = kB * TEMPERATURE * np.log(self.concentration)
        for name, energy in solvated("".join(sorted(elements))):
            amounts, charge, _ = parse_formula(name)
            if elements & set(amounts) and set(amounts) <= elements | {"O", "H"}:
                energy += dilution
                found.append(Species(name.removesuffix("(aq)"), dict(amounts), charge, energy, solid=False))
        return found

    def stability(self, formula: str, energy: float, ph: float, potential: float) -> AqueousStability:
        """Where a material stands at a pH and a potential (V against RHE).

        Args:
            formula: of the cell.
            energy: of the cell, eV, by the hull's potential.

        Raises:
            ValueError: an element has no reference phase in the hull.
        """
        material = self.solid(formula, energy)
        elements = frozenset(material.amounts) - {"O", "H"}
        species = self.species(elements)
        dissolved = [one for one in species if not one.solid]
        unknown = elements - {symbol for one in dissolved for symbol in one.amounts}
        if unknown or not elements:
            return AqueousStability(None, None, "not known", tuple(sorted(unknown)))
        atoms = sum(material.amounts.values())
        own = material.potential_energy(ph, potential)
        lowest, amounts = _cheapest([*species, material], material, ph, potential)
        soluble, _ = _cheapest(dissolved, material, ph, potential, redox=False)
        names = Counter()
        for one, amount in zip([*species, material], amounts):
            names[one.name] += amount if amount > 1e-6 * atoms else 0.0
        products = " + ".join(name for name, _ in names.most_common() if names[name] > 0)
        gain = float(max(0.0, own - soluble)) / atoms if soluble is not None else 0.0
        return AqueousStability(float(own - lowest) / atoms, gain, products)

    def working_points(self, formula: str, energy: float) -> dict[tuple[float, float], AqueousStability]:
        """(pH, V against RHE) -> stability at the WORKING_POINTS of hydrogen evolution."""
        return {point: self.stability(formula, energy, *point) for point in WORKING_POINTS}


def _cheapest(species: list[Species], material: Species, ph: float, potential: float, redox: bool = True):
    """(energy eV, amounts) of the cheapest mix of species with the material's elements other than O and H.

    Without `redox` the mix must also hold as many electrons; (None, None) where there is no such mix.
    """
    elements = sorted(set(material.amounts) - {"O", "H"})
    rows = [[one.amounts.get(element, 0) for one in species] for element in elements]
    totals = [material.amounts[element] for element in elements]
    if not redox:
        rows.append([one.electrons() for one in species])
        totals.append(material.electrons())
    cost = [one.potential_energy(ph, potential) for one in species]
    found = linprog(cost, A_eq=np.array(rows), b_eq=np.array(totals), method="highs")
    return (float(found.fun), found.x) if found.status == 0 else (None, None)


def aqueous_columns(
    pourbaix: Pourbaix, formula: str, energy: float, metastable: float = METASTABLE
) -> dict[str, float | str | bool | None]:
    """Columns of a row of metrics: the worst of U = 0 and −0.2 V in acid (pH 0) and in base (pH 14).

    Args:
        formula, energy: of the cell, as Pourbaix.stability takes them.
        metastable: e_pourbaix up to which a material survives, eV/atom.

    Returns:
        e_pourbaix_eV_per_atom, e_dissolution_eV_per_atom, aqueous_products and aqueous for acid, and the same
        with the suffix _base; None (products: "not known") where an element has no dissolved species.
    """
    found, columns = pourbaix.working_points(formula, energy), {}
    for ph, suffix in ((0.0, ""), (14.0, "_base")):
        points = [stability for (at, _), stability in found.items() if at == ph]
        known = points[0].e_pourbaix is not None
        worst = max(points, key=lambda one: one.e_pourbaix) if known else points[0]
        columns |= {
            f"e_pourbaix{suffix}_eV_per_atom": worst.e_pourbaix if known else None,
            f"e_dissolution{suffix}_eV_per_atom": max(p.e_dissolution for p in points) if known else None,
            f"aqueous{suffix}_products": worst.products,
            f"aqueous{suffix}": all(p.holds(metastable) for p in points) if known else None,
        }
    return columns
