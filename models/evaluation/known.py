"""Which layers are known already: those of databases, and those that the generator has learned from.

The latter travel with the checkpoint as fingerprints, small enough for the repository: formula, layer group,
cell and atoms, rounded far below the tolerance of the comparison. They are made by

    python -m models.evaluation.known DATABASE … --out CHECKPOINT.known.json.gz

C2DB (Haastrup et al., 2D Mater. 5, 042002 (2018); Gjerding et al., 2D Mater. 8, 044002 (2021)) is CC-BY-4.0.
"""

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from ase import Atoms
from tqdm import tqdm

from models.crystals.ase_database import readable_rows, row_ids, uid_of
from models.crystals.layer import NotALayer, NotAStructure, extract_layer, layer_atoms, reduced_formula
from models.crystals.matching import Fingerprint, Register
from models.infra.files import UnreadableFile, atomic, file_text

STEP = 0.01  # Å to which lengths are rounded; layers within 0.3 Å are one material
MAX_ATOMS = 20  # of a cell; the generator learns no larger ones


class StoredFingerprint(Fingerprint):
    """A fingerprint whose layer group is known already.

    Args:
        atoms: the layer in the convention.
        group: its layer group, with the tolerance of the comparison.
    """

    def __init__(self, atoms: Atoms, group: str):
        super().__init__(atoms)
        self.group = group


def layers_of(path: Path, formulas: set[str] | None = None) -> Iterator[tuple[str, Atoms]]:
    """(uid, layer in the convention) of a database; rows that are no layer are left out, and rows that cannot
    be read are counted and said.

    Args:
        path: ASE database, e.g. C2DB's.
        formulas: reduced formulas that are wanted; None for all.
    """
    dropped = Counter()
    for row, atoms in readable_rows(path, dropped, "--novelty-db"):
        if formulas is not None and reduced_formula(atoms) not in formulas:
            continue
        try:
            yield uid_of(row), extract_layer(atoms).atoms
        except (NotALayer, NotAStructure):  # a row that is no layer cannot match one
            continue
    for reason, count in dropped.items():
        print(f"{path}: {count} rows left out of what is known: {reason}")


def pack(uid: str, atoms: Atoms) -> list:
    """[uid, formula, layer group, cell, numbers, positions] in multiples of STEP."""
    fingerprint = Fingerprint(atoms)
    (ax, ay), (bx, by) = atoms.cell.array[:2, :2]
    length = np.hypot(ax, ay)
    turn = np.array([[ax, -ay], [ay, ax]]) / length  # takes a to the x axis
    positions = atoms.positions - atoms.positions.mean(0)
    positions[:, :2] = positions[:, :2] @ turn
    cell = [length, *(np.array([bx, by]) @ turn)]
    rounded = [np.rint(np.ravel(values) / STEP).astype(int).tolist() for values in (cell, positions)]
    return [uid, fingerprint.formula, fingerprint.group, rounded[0], atoms.numbers.tolist(), rounded[1]]


def unpack(packed: list) -> tuple[str, StoredFingerprint]:
    """(uid, fingerprint) of what `pack` made."""
    uid, _, group, (length, bx, by), numbers, positions = packed
    plane = np.array([[length, 0], [bx, by]]) * STEP
    atoms = layer_atoms(numbers, np.reshape(positions, (-1, 3)) * STEP, plane)
    return uid, StoredFingerprint(atoms, group)


def write_known(path: Path, databases: Iterable[Path]) -> dict[str, int]:
    """Fingerprints of all layers of some databases as gzipped JSON, by rename.

    Returns:
        name of the database -> number of its layers.
    """
    sources = {}
    for database in databases:
        total = len(row_ids(database))
        found = tqdm(layers_of(database), total=total, desc=Path(database).name, mininterval=2)
        packed = [pack(uid, atoms) for uid, atoms in found if len(atoms) <= MAX_ATOMS]
        sources[Path(database).stem] = sorted(packed, key=lambda entry: (entry[1], entry[0]))
    text = json.dumps({"step_A": STEP, "sources": sources}, separators=(",", ":"))
    with atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same bytes each time
    return {name: len(packed) for name, packed in sources.items()}


def learned_layers(path: Path, formulas: set[str]) -> Iterator[tuple[str, StoredFingerprint]]:
    """("uid (source, learned)", fingerprint) of the layers with some reduced formulas.

    Raises:
        UnreadableFile: the file is not what `write_known` makes.
    """
    try:
        sources = json.loads(gzip.decompress(Path(path).read_bytes()))["sources"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(
            f"{file_text(path)} holds no fingerprints ({error}): python -m models.evaluation.known makes them"
        ) from None
    for source, packed in sources.items():
        for entry in packed:
            if entry[1] in formulas:
                uid, fingerprint = unpack(entry)
                yield f"{uid} ({source}, learned)", fingerprint


def known_register(databases: Iterable[Path], learned: Path | None, formulas: set[str]) -> Register:
    """All known layers with some reduced formulas; the name of each says where it is from.

    Args:
        databases: ASE databases: templates, and what novelty is judged against.
        learned: fingerprints of the generator's training set (write_known), None if there are none.
        formulas: of the structures that are compared.
    """
    register = Register()
    for database in dict.fromkeys(Path(path).resolve() for path in databases):
        for uid, atoms in layers_of(database, formulas):
            register.add(f"{uid} ({database.stem})", Fingerprint(atoms))
    if learned is not None:
        for name, fingerprint in learned_layers(learned, formulas):
            register.add(name, fingerprint)
    return register


def unique_of(fingerprints: Mapping[str, Fingerprint], e_hull: Mapping[str, float]) -> set[str]:
    """One structure of each material: the one of lowest E_hull, whatever the order of the files.

    What is the same as a third one is the same as each other: groups are connected components.

    Args:
        e_hull: eV/atom; a structure that it lacks comes last in its group.
    """
    names, group = sorted(fingerprints), {}
    for k, name in enumerate(names):
        same = [other for other in names[:k] if fingerprints[name].same(fingerprints[other])]
        merged = {group[other] for other in same}
        group[name] = min(merged, default=name)
        for other, root in group.items():
            if root in merged:
                group[other] = group[name]
    energy = np.nan_to_num([e_hull.get(name, np.inf) for name in names], nan=np.inf)
    best = {}
    for k in np.lexsort([np.arange(len(names)), energy]):
        best.setdefault(group[names[k]], names[k])
    return set(best.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fingerprints of the layers that a generator has learned from."
    )
    parser.add_argument("databases", type=Path, nargs="+", help="ASE databases that it was trained on")
    parser.add_argument("--out", type=Path, required=True, help="CHECKPOINT.known.json.gz")
    args = parser.parse_args()
    print(write_known(args.out, args.databases))


if __name__ == "__main__":
    main()
