"""Layer prototypes and the elements that may fill them; adding a prototype or an element is one line.

A prototype is a known layer: in-plane lattice (a, b in Å, γ in degrees) and, for each slot, fractional x, y
    and
height z in Å. Geometries are rounded from the known material named in `reference`; every decoration is scaled
to its own bond lengths and relaxed.
"""

from dataclasses import dataclass

import numpy as np
from ase import Atoms

from models.crystals.layer import layer_atoms

ALKALI = "Li Na K Rb Cs".split()
ALKALINE_EARTH = "Be Mg Ca Sr Ba".split()
EARLY = "Sc Y Ti Zr Hf V Nb Ta Cr Mo W".split()
LATE = "Mn Re Fe Ru Os Co Rh Ir Ni Pd Pt Cu Ag Au Zn Cd".split()
TRANSITION = EARLY + LATE
TRIELS = "Al Ga In Tl".split()
TETRELS = "C Si Ge Sn Pb".split()
PNICTOGENS = "N P As Sb Bi".split()
CHALCOGENS = "O S Se Te".split()
HALOGENS = "F Cl Br I".split()


@dataclass(frozen=True)
class Prototype:
    """A layer prototype.

    Attributes:
        name: as in `prototype` of the database.
        lattice: a Å, b Å, γ degrees.
        reference: the known material, as slot -> element.
        sites: slot -> list of (x, y fractional, z Å).
        decorations: slot -> elements to try.
    """

    name: str
    lattice: tuple
    reference: dict
    sites: dict
    decorations: dict

    def atoms(self) -> Atoms:
        """The reference material in the project's 2D convention."""
        a, b, gamma = self.lattice
        plane = np.array([[a, 0], [b * np.cos(np.radians(gamma)), b * np.sin(np.radians(gamma))]])
        rows = [(self.reference[slot], *site) for slot, sites in self.sites.items() for site in sites]
        symbols, x, y, z = zip(*rows)
        positions = np.column_stack([np.column_stack([x, y]) @ plane, z])
        return layer_atoms(Atoms(symbols).numbers, positions, plane)


A, B, C = (0, 0), (1 / 3, 2 / 3), (2 / 3, 1 / 3)


def _at(place, *heights):
    return [(*place, z) for z in heights]


def _ring(x, z):
    """Six ligands around the honeycomb's metals, three above and three below (layer group p-31m)."""
    return [(x, 0, z), (0, x, z), (-x, -x, z), (-x, 0, -z), (0, -x, -z), (x, x, -z)]


HEX = 120
METALS_2D = TRANSITION + ALKALINE_EARTH + TRIELS + ["Ge", "Sn", "Pb"]
MXENE_METALS = EARLY

PROTOTYPES = [
    Prototype(
        "graphene",
        (2.50, 2.50, HEX),
        dict(M="B", X="N"),
        dict(M=_at(B, 0), X=_at(C, 0)),
        dict(M=["B", "Al", "Ga", "In", "Be", "Zn", "Mg", "C", "Si"], X=["N", "P", "C", "O", "As"]),
    ),
    Prototype(
        "silicene",
        (3.95, 3.95, HEX),
        dict(M="Si", X="Ge"),
        dict(M=_at(B, 0.3), X=_at(C, -0.3)),
        dict(
            M=["Si", "Ge", "Sn", "Al", "Ga", "In", "Pb"],
            X=["Ge", "Sn", "P", "As", "Sb", "Bi", "S", "Se", "Te"],
        ),
    ),
    Prototype(
        "MoS2-2H",
        (3.18, 3.18, HEX),
        dict(M="Mo", X="S"),
        dict(M=_at(B, 0), X=_at(C, 1.56, -1.56)),
        dict(M=METALS_2D, X=CHALCOGENS + HALOGENS),
    ),
    Prototype(
        "CdI2-1T",
        (3.41, 3.41, HEX),
        dict(M="Ti", X="S"),
        dict(M=_at(A, 0), X=_at(B, 1.43) + _at(C, -1.43)),
        dict(M=METALS_2D, X=CHALCOGENS + HALOGENS),
    ),
    Prototype(
        "Janus-2H",
        (3.25, 3.25, HEX),
        dict(M="Mo", X="S", Y="Se"),
        dict(M=_at(B, 0), X=_at(C, 1.53), Y=_at(C, -1.70)),
        dict(M=EARLY, X=["S", "O"], Y=["Se", "Te"]),
    ),
    Prototype(
        "Janus-1T",
        (3.45, 3.45, HEX),
        dict(M="Zr", X="S", Y="Se"),
        dict(M=_at(A, 0), X=_at(B, 1.43), Y=_at(C, -1.6)),
        dict(M=TRANSITION + ["Sn", "Bi", "Sb"], X=CHALCOGENS, Y=["Se", "Te", "Cl", "Br", "I"]),
    ),
    Prototype(
        "GaSe",
        (3.82, 3.82, HEX),
        dict(M="Ga", X="Se"),
        dict(M=_at(B, 1.23, -1.23), X=_at(C, 2.41, -2.41)),
        dict(M=TRIELS + ["Si", "Ge", "Sn"], X=CHALCOGENS + ["N", "P", "As", "Sb"]),
    ),
    Prototype(
        "GaS-T",
        (3.63, 3.63, HEX),
        dict(M="Ga", X="S"),
        dict(M=_at(B, 1.23, -1.23), X=_at(C, 2.35) + _at(A, -2.35)),
        dict(M=TRIELS + ["Si", "Ge"], X=CHALCOGENS + ["N", "P", "As"]),
    ),
    Prototype(
        "CuI",
        (4.15, 4.15, HEX),
        dict(M="Cu", X="I"),
        dict(M=_at(C, -0.9) + _at(B, 0.9), X=_at(B, -1.7) + _at(C, 1.7)),
        dict(
            M=["Cu", "Ag", "Au", "Al", "Ga", "In", "Zn", "Cd", "Mg", "Be"],
            X=HALOGENS + CHALCOGENS + ["N", "P", "As"],
        ),
    ),
    Prototype(
        "FeSe",
        (3.77, 3.77, 90),
        dict(M="Fe", X="Se"),
        dict(
            M=_at((0.75, 0.25), 0) + _at((0.25, 0.75), 0),
            X=_at((0.25, 0.25), 1.47) + _at((0.75, 0.75), -1.47),
        ),
        dict(M=LATE + ["Cr", "Mg", "Sn", "Pb"], X=CHALCOGENS + ["P", "As", "Sb"]),
    ),
    Prototype(
        "ZnCl2-square",
        (3.9, 3.9, 90),
        dict(M="Zn", X="Cl"),
        dict(M=_at(A, 0), X=_at((0.5, 0), 1.3) + _at((0, 0.5), -1.3)),
        dict(M=["Zn", "Cd", "Be", "Mg", "Mn", "Si", "Ge", "Fe", "Co"], X=["O", "S", "Se", "Cl", "Br", "I"]),
    ),
    Prototype(
        "BiOCl",
        (3.88, 3.88, 90),
        dict(M="Bi", X="O", Y="Cl"),
        dict(
            X=_at(A, 0) + _at((0.5, 0.5), 0),
            M=_at((0, 0.5), 1.26) + _at((0.5, 0), -1.26),
            Y=_at((0.5, 0), 2.61) + _at((0, 0.5), -2.61),
        ),
        dict(M=["Bi", "Sc", "Y", "Sb", "In", "Ti", "Zr", "Ca", "Sr"], X=["O", "S", "N", "F"], Y=HALOGENS),
    ),
    Prototype(
        "CrI3",
        (6.87, 6.87, HEX),
        dict(M="Cr", X="I"),
        dict(M=_at(B, 0) + _at(C, 0), X=_ring(0.35, 1.57)),
        dict(
            M=[
                "Sc",
                "Y",
                "Ti",
                "Zr",
                "V",
                "Cr",
                "Mo",
                "Fe",
                "Ru",
                "Co",
                "Rh",
                "Ir",
                "Ni",
                "Al",
                "In",
                "Bi",
                "Sb",
            ],
            X=HALOGENS,
        ),
    ),
    Prototype(
        "CrGeTe3",
        (6.82, 6.82, HEX),
        dict(M="Cr", A="Ge", X="Te"),
        dict(M=_at(B, 0) + _at(C, 0), A=_at(A, 1.2, -1.2), X=_ring(0.35, 1.7)),
        dict(
            M=["Cr", "Mn", "Fe", "Co", "Ni", "Zn", "Cd", "V", "Sc", "In", "Mg"],
            A=["Si", "Ge", "Sn", "P"],
            X=["S", "Se", "Te"],
        ),
    ),
    Prototype(
        "FeOCl",
        (3.78, 3.30, 90),
        dict(M="Fe", X="O", Y="Cl"),
        dict(
            M=[(0, 0.5, 0.916), (0.5, 0, -0.916)],
            X=[(0, 0, -0.385), (0.5, 0.5, 0.385)],
            Y=[(0, 0, 2.61), (0.5, 0.5, -2.61)],
        ),
        dict(
            M=["Sc", "Ti", "Zr", "V", "Cr", "Fe", "Al", "In", "Bi", "Y"],
            X=["O", "S", "Se", "N"],
            Y=["Cl", "Br", "I"],
        ),
    ),
    Prototype(
        "SnS",
        (4.07, 4.30, 90),
        dict(M="Sn", X="S"),
        dict(M=[(0, 0.09, 1.35), (0.5, 0.59, -1.35)], X=[(0, -0.07, -1.15), (0.5, 0.43, 1.15)]),
        dict(M=["Si", "Ge", "Sn", "Pb", "P", "As", "Sb"], X=CHALCOGENS + ["P", "As", "N"]),
    ),
    Prototype(
        "PbSe-square",
        (4.25, 4.25, 90),
        dict(M="Sn", X="Se"),
        dict(M=[(0, 0, -1.4), (0.5, 0.5, 1.4)], X=[(0.5, 0.5, -1.4), (0, 0, 1.4)]),
        dict(M=["Ge", "Sn", "Pb", "Ca", "Sr", "Mg", "Mn", "Na", "K"], X=CHALCOGENS + ["F", "Cl", "Br"]),
    ),
    Prototype(
        "MXene-M2X",
        (3.04, 3.04, HEX),
        dict(M="Ti", X="C"),
        dict(M=_at(B, 1.15) + _at(C, -1.15), X=_at(A, 0)),
        dict(M=MXENE_METALS + ["Ca", "Sr", "Y"], X=["C", "N", "B"]),
    ),
    Prototype(
        "MXene-M2XT2",
        (3.04, 3.04, HEX),
        dict(M="Ti", X="C", T="O"),
        dict(M=_at(B, 1.1) + _at(C, -1.1), X=_at(A, 0), T=_at(C, 2.1) + _at(B, -2.1)),
        dict(M=MXENE_METALS, X=["C", "N"], T=["O", "F", "S", "Cl", "Se", "Br", "I", "Te"]),
    ),
    Prototype(
        "MXene-M2X(OH)2",
        (3.07, 3.07, HEX),
        dict(M="Ti", X="C", T="O", H="H"),
        dict(
            M=_at(B, 1.15) + _at(C, -1.15),
            X=_at(A, 0),
            T=_at(C, 2.15) + _at(B, -2.15),
            H=_at(C, 3.12) + _at(B, -3.12),
        ),
        dict(M=MXENE_METALS, X=["C", "N"], T=["O"], H=["H"]),
    ),
    Prototype(
        "MXene-M3X2",
        (3.08, 3.08, HEX),
        dict(M="Ti", X="C"),
        dict(M=_at(A, 0) + _at(C, 2.38) + _at(B, -2.38), X=_at(B, 1.28) + _at(C, -1.28)),
        dict(M=MXENE_METALS, X=["C", "N"]),
    ),
    Prototype(
        "MXene-M3X2T2",
        (3.05, 3.05, HEX),
        dict(M="Ti", X="C", T="O"),
        dict(M=_at(A, 0) + _at(C, 2.38) + _at(B, -2.38), X=_at(B, 1.28) + _at(C, -1.28), T=_at(A, 3.5, -3.5)),
        dict(M=MXENE_METALS, X=["C", "N"], T=["O", "F", "S", "Cl", "Br", "Se"]),
    ),
    Prototype(
        "MoSi2N4",
        (2.91, 2.91, HEX),
        dict(M="Mo", A="Si", X="N"),
        dict(M=_at(B, 0), X=_at(C, 1.25, -1.25) + _at(B, 3.5, -3.5), A=_at(C, 3.0, -3.0)),
        dict(M=EARLY, A=["Si", "Ge"], X=["N", "P", "As"]),
    ),
    Prototype(
        "PdSe2-penta",
        (5.74, 5.92, 90),
        dict(M="Pd", X="Se"),
        dict(
            M=[(0.5, 0, 0), (0, 0.5, 0)],
            X=[
                (0.112, 0.117, -0.715),
                (-0.112, -0.117, 0.715),
                (0.612, 0.383, 0.715),
                (0.388, 0.617, -0.715),
            ],
        ),
        dict(M=["Ni", "Pd", "Pt", "Zn", "Mn"], X=["S", "Se", "Te", "P", "As", "N", "O"]),
    ),
    Prototype(
        "Bi2Te3",
        (4.39, 4.39, HEX),
        dict(M="Bi", X="Te"),
        dict(M=_at(B, 2.03) + _at(C, -2.03), X=_at(A, 0) + _at(C, 3.76) + _at(B, -3.76)),
        dict(M=["Al", "Ga", "In", "As", "Sb", "Bi", "Sc", "Y", "Tl"], X=CHALCOGENS),
    ),
    Prototype(
        "MnBi2Te4",
        (4.33, 4.33, HEX),
        dict(M="Mn", A="Bi", X="Te"),
        dict(M=_at(A, 0), A=_at(C, 3.6) + _at(B, -3.6), X=_at(B, 1.6) + _at(C, -1.6) + _at(A, 5.4, -5.4)),
        dict(
            M=["Mn", "V", "Ni", "Ti", "Fe", "Ge", "Sn", "Mg", "Ca", "Zn"],
            A=["Sb", "Bi", "In", "As"],
            X=["S", "Se", "Te"],
        ),
    ),
    Prototype(
        "brucite",
        (3.14, 3.14, HEX),
        dict(M="Mg", T="O", H="H"),
        dict(M=_at(A, 0), T=_at(B, 1.0) + _at(C, -1.0), H=_at(B, 1.97) + _at(C, -1.97)),
        dict(M=["Mg", "Ca", "Mn", "Fe", "Co", "Ni", "Zn", "Cd", "Cu", "V", "Ti"], T=["O", "S"], H=["H"]),
    ),
    Prototype(
        "K2NiF4",
        (4.0, 4.0, 90),
        dict(A="K", M="Ni", X="F"),
        dict(
            A=_at((0.5, 0.5), 1.9, -1.9),
            M=_at(A, 0),
            X=_at(A, 2.0, -2.0) + _at((0.5, 0), 0) + _at((0, 0.5), 0),
        ),
        dict(
            A=ALKALI + ["Sr", "Ba", "Ca"],
            M=["Mg", "Mn", "Fe", "Co", "Ni", "Zn", "Cd", "Ti", "Zr", "Sn", "Pb", "Cu"],
            X=HALOGENS + ["O"],
        ),
    ),
    Prototype(
        "phosphorene",
        (3.31, 4.37, 90),
        dict(M="P"),
        dict(M=[(0, 0.0806, 1.066), (0, -0.0806, -1.066), (0.5, 0.4194, 1.066), (0.5, 0.5806, -1.066)]),
        dict(M=["P", "As", "Sb", "Bi", "N"]),
    ),
    Prototype(
        "honeycomb-A",
        (3.87, 3.87, HEX),
        dict(M="Si"),
        dict(M=_at(B, 0.23) + _at(C, -0.23)),
        dict(M=["C", "Si", "Ge", "Sn", "Pb", "P", "As", "Sb", "Bi", "B"]),
    ),
    Prototype(
        "MBene-M2B2",
        (2.95, 3.05, 90),
        dict(M="Mo", X="B"),
        dict(M=[(0, 0.5, 1.45), (0, 0, -1.45)], X=[(0.5, 0, 0.45), (0.5, 0.5, -0.45)]),
        dict(M=MXENE_METALS + ["Mn", "Fe", "Co", "Ni"], X=["B"]),
    ),
    Prototype(
        "WTe2-1T'",
        (3.48, 6.25, 90),
        dict(M="W", X="Te"),
        dict(
            M=[(0, 0.601, -0.105), (0.5, 0.960, 0.105)],
            X=[(0, 0.857, 2.07), (0, 0.207, -1.46), (0.5, 0.353, 1.45), (0.5, 0.701, -2.07)],
        ),
        dict(
            M=["Ti", "Zr", "V", "Nb", "Ta", "Cr", "Mo", "W", "Re", "Ru", "Os", "Rh", "Ir"],
            X=["S", "Se", "Te"],
        ),
    ),
    Prototype(
        "MoO3",
        (3.96, 3.70, 90),
        dict(M="Mo", X="O"),
        dict(
            M=[(0.087, 0.25, 1.41), (-0.087, 0.75, -1.41)],
            X=[
                (0.521, 0.25, 1.2),
                (0.479, 0.75, -1.2),
                (0.037, 0.25, 3.07),
                (-0.037, 0.75, -3.07),
                (0, 0.75, 0.9),
                (0, 0.25, -0.9),
            ],
        ),
        dict(M=["Mo", "W", "Cr", "Re", "Sc", "Al", "Fe", "Bi"], X=["O", "S", "F", "Cl"]),
    ),
    Prototype(
        "C3N",
        (4.86, 4.86, HEX),
        dict(M="C", X="N"),
        dict(
            M=[
                (1 / 6, 1 / 3, 0),
                (1 / 6, 5 / 6, 0),
                (2 / 3, 5 / 6, 0),
                (1 / 3, 1 / 6, 0),
                (5 / 6, 1 / 6, 0),
                (5 / 6, 2 / 3, 0),
            ],
            X=[(2 / 3, 1 / 3, 0), (1 / 3, 2 / 3, 0)],
        ),
        dict(M=["C", "Si", "Ge", "B"], X=["N", "B", "P", "As", "Al", "Ga"]),
    ),
]
