"""Structures of known kind, and what the 2D gate calls them."""

import argparse
from collections import Counter
from pathlib import Path

import ase.db
import numpy as np
from ase import Atoms
from ase.build import fcc111, graphene_nanoribbon, molecule, nanotube
from ase.collections import g2
from ase.data import atomic_numbers, covalent_radii
from ase.data.vdw_alvarez import vdw_radii

from models.crystals.gates import VERDICTS, verdict
from models.crystals.layer import (
    NotALayer,
    extract_layer,
    layer_atoms,
)
from models.infra.files import markdown_table

BOX = 12.0  # Å of empty space around molecules and chains
RATTLE = 0.05  # Å, so that no known structure is too perfect to fail
WIRES = "C Si Ge Sn P As S Se Te Al Ga In Cu Ag Au Pt Pd Ni Fe Mo W".split()


def bilayer(layer: Atoms) -> Atoms:
    """A layer on itself, outermost nuclei apart by the sum of their van der Waals radii (Alvarez 2013)."""
    z = layer.positions[:, 2]
    gap = vdw_radii[layer.numbers[z.argmax()]] + vdw_radii[layer.numbers[z.argmin()]]
    upper = layer.positions + [0, 0, np.ptp(z) + gap]
    return layer_atoms(
        np.tile(layer.numbers, 2), np.vstack([layer.positions, upper]), layer.cell.array[:2, :2]
    )


def wire(symbol: str) -> Atoms:
    """A zigzag chain of an element with bonds of twice its covalent radius."""
    bond = 2 * covalent_radii[atomic_numbers[symbol]]
    rise, run = bond * np.sin(np.radians(40)), bond * np.cos(np.radians(40))
    return Atoms([symbol] * 2, [(0, 0, 0), (0, rise, run)], cell=[BOX, BOX + rise, 2 * run], pbc=True)


def chains() -> list[Atoms]:
    """Zigzag wires, carbon and h-BN nanotubes, graphene ribbons with H at their rims."""
    tubes = [nanotube(n, m, vacuum=BOX / 2) for n, m in ((3, 3), (4, 4), (5, 0), (6, 0), (8, 0), (4, 2))]
    ribbons = [
        graphene_nanoribbon(n, 1, kind, saturated=True, vacuum=BOX / 2)
        for n in (2, 3, 4)
        for kind in ("armchair", "zigzag")
    ]
    found = [*map(wire, WIRES), *tubes, *ribbons]
    for atoms in found:
        atoms.pbc = True
    return found


def molecules() -> list[Atoms]:
    """The G2 set of ASE in boxes."""
    found = [molecule(name, vacuum=BOX / 2, pbc=True) for name in g2.names]
    for atoms in found:
        atoms.set_initial_magnetic_moments(None)
    return found


def bulk_crystals() -> list[Atoms]:
    """AFLOW's prototypes as shipped with pymatgen, layered and molecular crystals among them."""
    from pymatgen.analysis.prototypes._data import AFLOW_PROTOTYPE_LIBRARY
    from pymatgen.io.ase import AseAtomsAdaptor

    structures = [entry["snl"].structure.get_primitive_structure() for entry in AFLOW_PROTOTYPE_LIBRARY]
    return [
        AseAtomsAdaptor.get_atoms(structure, msonable=False)
        for structure in structures
        if structure.is_ordered
    ]


def slabs() -> list[Atoms]:
    """fcc (111) slabs thicker than a layer may be."""
    return [
        fcc111(metal, (1, 1, 8), vacuum=8.0, periodic=True)
        for metal in ("Cu", "Ag", "Au", "Pt", "Pd", "Ni", "Al")
    ]


def labelled_structures(db: Path, count: int, rng: np.random.Generator) -> dict[str, list[Atoms]]:
    """Structures by what they are, all periodic in three directions and rattled by RATTLE.

    Args:
        db: ASE database of monolayers.
        count: at most so many of each kind.
    """
    rows = [row.toatoms() for row in ase.db.connect(db).select()]
    monolayers = [rows[k] for k in rng.permutation(len(rows))[:count]]
    extracted = []
    for atoms in monolayers:
        try:
            extracted.append(extract_layer(atoms).atoms)
        except NotALayer:
            continue
    found = {
        "monolayer": monolayers,
        "bilayer": [bilayer(layer) for layer in extracted],
        "thick slab": slabs(),
        "molecule": molecules(),
        "chain": chains(),
        "bulk": bulk_crystals(),
    }
    shaken = {}
    for kind, structures in found.items():
        chosen = [structures[k].copy() for k in sorted(rng.permutation(len(structures))[:count])]
        for atoms in chosen:
            atoms.pbc = True
            atoms.rattle(RATTLE, rng=rng)
        shaken[kind] = chosen
    return shaken


def confusion(labelled: dict[str, list[Atoms]]) -> dict[str, Counter]:
    """How often each kind of structure gets each verdict."""
    return {kind: Counter(verdict(atoms)[0] for atoms in structures) for kind, structures in labelled.items()}


def confusion_table(counts: dict[str, Counter]) -> str:
    """Markdown: what structures are, by what the gate says they are."""
    rows = []
    for kind, found in counts.items():
        rows.append([kind, found.total(), *(found[name] or "·" for name in VERDICTS)])
    return markdown_table(["is \\ is called", "n", *VERDICTS], rows)


def run(args: argparse.Namespace) -> None:
    """The study; args are the parsed flags."""
    print(
        confusion_table(confusion(labelled_structures(args.db, args.count, np.random.default_rng(args.seed))))
    )
