"""What the builder computes: lists of work items, each with its key; adding a metal, a phase or a
perturbation is one line.
"""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bcc100, bcc110, fcc100, fcc111, fcc211, hcp0001, molecule
from ase.data import atomic_numbers, covalent_radii

from data.build.prototypes import (
    ALKALI,
    ALKALINE_EARTH,
    CHALCOGENS,
    HALOGENS,
    PNICTOGENS,
    PROTOTYPES,
    TETRELS,
    TRANSITION,
    TRIELS,
)
from models.crystals.bulk import aflow, balanced
from models.crystals.charges import smact_valid
from models.crystals.layer import layer_atoms, pack_atoms, unpack_atoms
from models.crystals.split import split_of
from models.crystals.templates import substitute
from models.datasets.graphs import LayerGraphs, graph_atoms
from models.infra.files import digest

METALS = ALKALI + ALKALINE_EARTH + TRANSITION + TRIELS + ["Si", "Ge", "Sn", "Pb", "Sb", "Bi"]
NONMETALS = TETRELS[:3] + PNICTOGENS + CHALCOGENS + HALOGENS + ["B"]

# AFLOW prototype tags of the elemental phases tried; the lowest energy is the element's reference.
CLOSE_PACKED = ["A_cF4_225_a", "A_cI2_229_a", "A_hP2_194_c"]
ELEMENTAL = {
    "B": ["A_hR12_166_2h"], "C": ["A_hP4_194_bc"], "N": ["A_cP8_205_c"], "O": ["A_hR2_166_c", "A_mC4_12_i"],
    "F": ["A_mC4_12_i", "A_oC8_64_f"], "Si": ["A_cF8_227_a"], "P": ["A_oC8_64_f"], "S": ["A_hP3_152_a"],
    "Cl": ["A_oC8_64_f"], "Ga": ["A_oC8_64_f"], "Ge": ["A_cF8_227_a"], "As": ["A_hR2_166_c"],
    "Se": ["A_hP3_152_a"],
    "Br": ["A_oC8_64_f"], "In": ["A_tI2_139_a"], "Sn": ["A_cF8_227_a", "A_tI4_141_a"], "Sb": ["A_hR2_166_c"],
    "Te": ["A_hP3_152_a"], "I": ["A_oC8_64_f"], "Bi": ["A_hR2_166_c"],
}  # fmt: skip
# Competing binaries, one prototype after the other: AFLOW tag, the element that the metal replaces.
# Tried for every metal with every nonmetal: rock salt, fluorite.
ANY_BINARY = [("AB_cF8_225_a_b", "Na"), ("AB2_cF12_225_a_c", "Ca")]
# Tried where common oxidation states balance: antifluorite, zincblende, CsCl, rutile, ReO3, BiF3 and its
# inverse, Na3As, La2O3,
# corundum, Nb2O5 (as B2Pd5).
BALANCED_BINARY = [
    ("AB2_cF12_225_a_c", "F"),
    ("AB_cF8_216_c_a", "Zn"),
    ("AB_cP2_221_b_a", "Cs"),
    ("A2B_tP6_136_f_a", "Ti"),
    ("A3B_cP4_221_d_a", "Re"),
    ("AB3_cF16_225_a_bc", "Bi"),
    ("AB3_cF16_225_a_bc", "F"),
    ("AB3_hP8_194_c_bf", "Na"),
    # fmt: skip
    ("A3B2_hP5_164_ad_d", "Ni"),
    ("A2B3_hR10_167_c_e", "Al"),
    ("A2B5_mC28_15_f_e2f", "B"),
]
QUARTZ = [("Si", "O"), ("Ge", "O"), ("Be", "F"), ("Be", "Cl"), ("Si", "S"), ("Ti", "O"), ("Zn", "Cl")]
# Competing ternaries, tried where common oxidation states balance: perovskite, caswellsilverite, BPO4; AFLOW
# tag, its elements ->
# candidates.
TERNARY = {
    "AB3C_cP5_221_a_c_b": dict(Ca=["Na", "K", "Rb", "Cs", "Ca", "Sr", "Ba", "Y"],
                               Ti=TRANSITION + ["Mg", "Al", "Ge", "Sn", "Pb"],
                               O=HALOGENS + ["O"]),
    "ABC2_hR4_166_a_b_c": dict(Na=["Li", "Na", "K", "Cu", "Ag"],
                               Cr=TRANSITION + TRIELS + ["Sb", "Bi"], S=CHALCOGENS),
    "AB4C_tI12_82_c_g_a": dict(B=TRANSITION + TRIELS + ["B", "Sb", "Bi"], P=["P", "As", "V"], O=["O"]),
}  # fmt: skip
# Molecules stand for molecular crystals, whose cohesion is small: ASE's G2 set, and shapes: ligand
# directions, centres, ligands.
G2 = (
    "H2O NH3 N2H4 CH4 C2H6 SiH4 PH3 SH2 HF HCl CO2 SO2 N2O NF3 F2O CS2 OCS COF2 ClF ClF3 HCN C2F4 HCF3 H2O2"
).split()
HALF, TALL = 0.5, np.sqrt(0.75)
PLANAR = [(1, 0, 0), (-HALF, TALL, 0), (-HALF, -TALL, 0)]
MOLECULES = {
    "planar": (PLANAR, [("B Al Ga", "F Cl Br I"), ("S Se", "O")]),
    "pyramid": ([(x, y, 0.5) for x, y, _ in PLANAR], [("P As Sb Bi", "F Cl Br I")]),
    "tetrahedron": ([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)],
                    [("C Si Ge Sn Ti Zr Hf V", "F Cl Br I")]),
    "bipyramid": ([*PLANAR, (0, 0, 1), (0, 0, -1)], [("P As Sb V Nb Ta Mo W", "F Cl")]),
    "octahedron": ([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)],
                   [("S Se Te Mo W Re Os Ir Pt", "F"), ("Mo W", "Cl")]),
}  # fmt: skip
CAGES = [
    ("P As Sb", "O S Se", False),
    ("P As", "O S", True),
]  # P4O6, and P4O10 with a ligand more on each centre
SURFACES = {  # Å, PBE lattice constants, rounded; the potential relaxes them
    fcc111: dict(Pt=3.97, Pd=3.95, Ni=3.52, Cu=3.64, Ag=4.15, Au=4.16, Rh=3.84, Ir=3.87, Al=4.04),
    hcp0001: dict(
        Co=2.50,
        Ru=2.72,
        Re=2.77,
        Os=2.76,
        Ti=2.94,
        Zr=3.23,
        Sc=3.32,
        Zn=2.66,
        Cd=3.03,
        Mg=3.20,
        Hf=3.20,
        Tc=2.75,
    ),
    bcc110: dict(Mo=3.16, W=3.19, Nb=3.31, V=3.00, Fe=2.83, Cr=2.85, Ta=3.31),
    fcc100: dict(Pt=3.97, Pd=3.95, Ni=3.52, Cu=3.64, Ag=4.15, Au=4.16, Rh=3.84, Ir=3.87, Al=4.04),
    bcc100: dict(Mo=3.16, W=3.19, Nb=3.31, V=3.00, Fe=2.83, Cr=2.85, Ta=3.31),
}
STEPPED = dict(Pt=3.97, Pd=3.95, Ni=3.52, Cu=3.64, Ag=4.15, Au=4.16, Rh=3.84, Ir=3.87)
ALLOYED = [
    "Pt",
    "Pd",
    "Ni",
    "Cu",
    "Ag",
    "Au",
    "Rh",
    "Ir",
    "Co",
    "Ru",
]  # one as the skin or the second layer of the other
PERTURBATIONS = {"strained": 2, "rattled": 2, "noised": 2, "substituted": 2}  # variants of each layer
HOST_SITES = 3  # of a layer from elsewhere, lowest height scan first: hosts teach, sites do not
RELAXED_HOSTS = {
    "train": 260,
    "val": 60,
    "test": 100,
}  # more of the held-out ones than their share, for the sake of the errors


def _phase(prototypes: dict, tag: str, fill: dict[str, str]):
    """(key, structure) of an AFLOW prototype filled with other elements."""
    symbols = list(prototypes[tag].symbols)
    rarest_first = sorted(fill, key=symbols.count)
    return f"{'-'.join(fill[symbol] for symbol in rarest_first)}:{tag}", substitute(prototypes[tag], fill)


def _is_balanced(atoms: Atoms) -> bool:
    return balanced(atoms.symbols.formula.count())


def _binaries(prototypes: dict):
    pairs = sorted(
        (p for p in itertools.product(METALS, NONMETALS) if p[0] != p[1]),
        key=lambda pair: digest("".join(pair)),
    )
    for (tag, replaced), (metal, nonmetal) in itertools.product([*ANY_BINARY, *BALANCED_BINARY], pairs):
        (other,) = set(prototypes[tag].symbols) - {replaced}
        fill = {replaced: metal, other: nonmetal}
        key, atoms = _phase(prototypes, tag, fill)
        if (tag, replaced) in ANY_BINARY or _is_balanced(atoms):
            yield key, atoms
    for metal, nonmetal in QUARTZ:
        yield _phase(prototypes, "A2B_hP9_152_c_a", dict(Si=metal, O=nonmetal))


def _ternaries(prototypes: dict):
    for tag, candidates in TERNARY.items():
        for choice in itertools.product(*candidates.values()):
            if len(set(choice)) == len(choice):
                key, atoms = _phase(prototypes, tag, dict(zip(candidates, choice)))
                if _is_balanced(atoms):
                    yield key, atoms


def _molecules():
    yield "H:molecule", Atoms("H2", [(0, 0, 0), (0, 0, 0.75)])  # its molecular crystal collapses in SevenNet
    for name in G2:
        yield f"{name}:molecule", molecule(name)
    for shape, (directions, families) in MOLECULES.items():
        for centres, ligands in families:
            for centre, ligand in itertools.product(centres.split(), ligands.split()):
                yield f"{centre}-{ligand}:{shape}", _cluster(centre, ligand, np.array(directions, float))
    for centres, ligands, capped in CAGES:
        for centre, ligand in itertools.product(centres.split(), ligands.split()):
            yield f"{centre}-{ligand}:{'capped ' * capped}cage", _cage(centre, ligand, capped)


def _bond(centre: str, ligand: str) -> float:
    return covalent_radii[atomic_numbers[centre]] + covalent_radii[atomic_numbers[ligand]]


def _cluster(centre: str, ligand: str, directions: np.ndarray) -> Atoms:
    ends = directions / np.linalg.norm(directions, axis=1)[:, None] * _bond(centre, ligand)
    return Atoms([centre] + [ligand] * len(ends), [np.zeros(3), *ends])


def _cage(centre: str, ligand: str, capped: bool) -> Atoms:
    """Four centres on a tetrahedron, a ligand over each edge; with `capped` one more outside each centre."""
    bond = _bond(centre, ligand)
    corners = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) * bond / np.sqrt(3)
    edges = [(a + b) / 2 * 1.9 for a, b in itertools.combinations(corners, 2)]
    caps = list(corners * (1 + 0.9 * bond / np.linalg.norm(corners[0]))) if capped else []
    return Atoms([centre] * 4 + [ligand] * (6 + len(caps)), [*corners, *edges, *caps])


def _boxed(atoms: Atoms) -> Atoms:
    atoms.set_cell([15.0] * 3)
    atoms.set_initial_magnetic_moments(None)
    return atoms


def reference_items() -> list[dict]:
    """Elemental phases and molecules, then binaries of metals with nonmetals, then ternaries."""
    prototypes = aflow()
    elements = sorted({*METALS, *NONMETALS}, key=atomic_numbers.get)
    pure = [_phase(prototypes, tag, dict.fromkeys(prototypes[tag].symbols, element))
            for element in elements for tag in ELEMENTAL.get(element, CLOSE_PACKED)]  # fmt: skip
    molecules = [(key, _boxed(atoms)) for key, atoms in _molecules()]
    found = dict([*molecules, *pure, *_binaries(prototypes), *_ternaries(prototypes)])
    return [{"key": key, "atoms": pack_atoms(atoms)} for key, atoms in found.items()]


def sensible_fills(prototype) -> list[dict]:
    """Decorations of a prototype, slot -> element, that SMACT calls sensible; the reference is always one."""
    fills = []
    slots = list(prototype.decorations)
    for choice in itertools.product(*prototype.decorations.values()):
        if len(set(choice)) < len(choice) and len(slots) == len(set(prototype.reference.values())):
            continue
        fill = dict(zip(slots, choice))
        elements = {prototype.reference[slot]: element for slot, element in fill.items()}
        formula = substitute(prototype.atoms(), elements).get_chemical_formula(empirical=True)
        if all(a == b for a, b in elements.items()) or smact_valid(formula):
            fills.append(fill)
    return fills


def layer_items() -> list[dict]:
    """Every sensible decoration of every prototype."""
    items = {}
    for prototype in PROTOTYPES:
        for fill in sensible_fills(prototype):
            key = f"{prototype.name}:{'-'.join(fill.values())}"
            atoms = substitute(
                prototype.atoms(), {prototype.reference[slot]: element for slot, element in fill.items()}
            )
            items[key] = {"key": key, "prototype": prototype.name, "atoms": pack_atoms(atoms)}
    return sorted(items.values(), key=lambda item: digest(item["key"]))


def _surfaces():
    for build, metals in SURFACES.items():
        for metal, a in metals.items():
            yield f"{build.__name__}:{metal}", build(metal, (1, 1, 4), a=a, vacuum=8.0)
    for metal, a in STEPPED.items():
        yield f"fcc211:{metal}", fcc211(metal, (3, 1, 3), a=a, vacuum=8.0)
    lattice = {**SURFACES[hcp0001], **{metal: a / np.sqrt(2) for metal, a in SURFACES[fcc111].items()}}
    for (host, guest), (place, layer) in itertools.product(
        itertools.permutations(ALLOYED, 2), (("skin", 3), ("buried", 2))
    ):
        slab = fcc111(host, (1, 1, 4), a=lattice[host] * np.sqrt(2), vacuum=8.0)
        slab.symbols[layer] = guest
        yield f"{place}:{guest}/{host}", slab


def surface_items() -> list[dict]:
    """Close-packed, open and stepped metal surfaces, and those with one layer of another metal, as skin or
    buried below.
    """
    made = (
        (key, layer_atoms(slab.numbers, slab.positions, slab.cell.array[:2, :2])) for key, slab in _surfaces()
    )
    return [{"key": key, "atoms": pack_atoms(slab), "relax": True} for key, slab in made]


def adsorption_items(layers: list[dict]) -> list[dict]:
    """Pure metal surfaces, which literature knows; then alloys and the layers that were kept, mixed, so that
    a set cut short is a sample of the whole."""
    kept = [
        {"key": row["key"], "atoms": row["atoms"], "energy": row["energy"]}
        for row in layers
        if row["reason"] == ""
    ]
    is_alloy = lambda item: "/" in item["key"] or "relax" not in item
    return sorted([*surface_items(), *kept], key=lambda item: (is_alloy(item), digest(item["key"])))


def host_items(folder: Path) -> list[dict]:
    """The layers of a folder of stage 2, shuffled by hash: to be relaxed, and H to be tried at their best
    HOST_SITES only.
    """
    splits = [path.stem for path in sorted(Path(folder).glob("processed/*.pt"))]
    graphs = [graph for split in splits for graph in LayerGraphs(folder, split)]
    items = [
        {"key": graph.uid, "atoms": pack_atoms(graph_atoms(graph)), "relax": True, "top": HOST_SITES}
        for graph in graphs
    ]
    return sorted(items, key=lambda item: digest("host" + item["key"]))


def perturbed_items(layers: list[dict]) -> list[dict]:
    """The layers that were kept; PERTURBATIONS says what is done to each."""
    return [{"key": row["key"], "atoms": row["atoms"]} for row in layers if row["reason"] == ""]


def relaxed_items(hosts: list[dict]) -> list[dict]:
    """Rigid hosts that adsorb hydrogen somewhere: of each split, by a hash, the first RELAXED_HOSTS."""
    adsorbs = lambda row: any(site["converged"] and not site["flag"] for site in row.get("sites", []))
    found = sorted((row for row in hosts if adsorbs(row)), key=lambda row: digest("relaxed" + row["key"]))
    taken, items = Counter(), []
    for row in found:
        split = split_of(unpack_atoms(row["host"]).get_chemical_formula())
        taken[split] += 1
        if taken[split] <= RELAXED_HOSTS[split]:
            items.append({"key": row["key"], "row": row})
    return items


def perturbations(atoms: Atoms, key: str, elements: list[str]):
    """(kind, structure) of a layer's off-equilibrium variants, seeded by its key.

    Args:
        atoms: relaxed layer in the convention.
        elements: symbols that a bad substitution draws from.
    """
    rng = np.random.default_rng(int(digest(key), 16))
    for kind, count in PERTURBATIONS.items():
        for _ in range(count):
            yield kind, PERTURB[kind](atoms, rng, elements)


def _strained(atoms: Atoms, rng, elements, scale=0.06) -> Atoms:
    strain = rng.normal(0, scale, (2, 2))
    deformation = np.eye(3)
    deformation[:2, :2] += (strain + strain.T) / 2
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return copy


def _rattled(atoms: Atoms, rng, elements, low=0.02, high=0.3) -> Atoms:
    copy = atoms.copy()
    copy.positions += rng.normal(0, rng.uniform(low, high), copy.positions.shape)
    return copy


def _noised(atoms: Atoms, rng, elements) -> Atoms:
    """Cell and atoms together, up to where a layer is hardly one."""
    return _rattled(_strained(atoms, rng, elements, scale=0.1), rng, elements, low=0.1, high=0.8)


def _substituted(atoms: Atoms, rng, elements) -> Atoms:
    """Other elements on its sites, whatever their valence, at the new bond lengths, not relaxed."""
    old = sorted(set(atoms.symbols))
    return substitute(atoms, dict(zip(old, rng.choice(elements, len(old), replace=False))))


PERTURB = {"strained": _strained, "rattled": _rattled, "noised": _noised, "substituted": _substituted}
