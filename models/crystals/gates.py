"""The gates of the evaluator: is a structure a free-standing two-dimensional crystal, and is it chemically
possible?

Ours, not a library's: pymatgen and ASE tell the dimension of a bond graph; nobody tells a free-standing layer
from a slab, a stack or a layer among molecules, with the measures behind the verdict.
"""

from ase import Atoms

from models.crystals.charges import smact_valid
from models.crystals.layer import (
    NotALayer,
    NotAStructure,
    check_geometry,
    components,
    extract_layer,
    min_distance_ratio,
    reduced_formula,
)
from models.crystals.matching import layer_group
from models.crystals.thresholds import (
    BOND_SCALE,
    BORDER_SCALES,
    COINCIDENT_SCALE,
    MAX_THICKNESS,
    MIN_VACUUM,
    OVERLAP_SCALE,
    VACUUM_TOLERANCE,
)

KINDS = {0: "molecule", 1: "chain", 2: "several layers", 3: "3D network"}  # by periodic directions
VERDICTS = (
    "2D",
    "layer too thick",
    "layers too close",
    "several layers",
    "layer and molecules",
    "chain",
    "molecule",
    "3D network",
    "impossible",
)


def verdict(atoms: Atoms) -> tuple[str, Atoms | None, dict]:
    """What a structure is, one of VERDICTS.

    Returns:
        the verdict, the layer in the convention (None unless "2D"), and the measures behind both.
    """
    kind, count, directions = bonded_kind(atoms, BOND_SCALE)
    measures = {
        "components": count,
        "periodic_directions": directions,
        "borderline": borderline(atoms, kind),
    }
    if kind != "layer":
        return kind, None, measures
    try:
        layer = extract_layer(atoms)
    except NotALayer:  # cannot be: the bond graph is one component periodic in two directions
        return KINDS[directions], None, measures
    measures |= {
        "vacuum_A": layer.vacuum,
        "thickness_A": layer.thickness,
        "layer_group": layer_group(layer.atoms),
    }
    if layer.vacuum < MIN_VACUUM - VACUUM_TOLERANCE:
        return "layers too close", None, measures
    if layer.thickness > MAX_THICKNESS:
        return "layer too thick", None, measures
    return "2D", layer.atoms, measures


def bonded_kind(atoms: Atoms, scale: float) -> tuple[str, int, int]:
    """What the bond graph is, with bonds up to `scale` sums of covalent radii.

    Returns:
        "layer" or one of VERDICTS, the number of components, and the most periodic directions of one of them.
    """
    parts = components(atoms, scale)
    count, directions = sum(part.copies for part in parts), max(part.rank for part in parts)
    layers = sum(part.copies for part in parts if part.rank == 2)
    if directions == 2 and layers == 1:
        return ("layer" if count == 1 else "layer and molecules"), count, directions
    return KINDS[directions], count, directions


def borderline(atoms: Atoms, kind: str) -> str:
    """What else a structure would be with slightly shorter or longer bonds, if only one of both is a layer.

    Args:
        kind: of the structure at BOND_SCALE, by bonded_kind.
    """
    for scale in BORDER_SCALES:
        other, _, _ = bonded_kind(atoms, scale)
        if (other == "layer") != (kind == "layer"):
            return f"{other} at a bond scale of {scale:g}"
    return ""


def reason(name: str, measures: dict) -> str:
    """A verdict in words with its numbers; empty for "2D"."""
    if name == "2D":
        return ""
    if name == "layers too close":
        return f"not 2D: {measures['vacuum_A']:.2f} Å between the layers, less than {MIN_VACUUM:g}"
    if name == "layer too thick":
        return f"not 2D: {measures['thickness_A']:.2f} Å thick, more than {MAX_THICKNESS:g}"
    count, directions = measures["components"], measures["periodic_directions"]
    text = f"not 2D: {name} ({count} component(s), periodic in {directions} direction(s))"
    return text + (f"; borderline: {measures['borderline']}" if measures["borderline"] else "")


def gates(atoms: Atoms) -> tuple[dict, Atoms | None, str]:
    """Dimensionality and validity of a structure as submitted.

    Returns:
        columns of its row, the layer in the convention (None if it is not 2D), and what is wrong with it.
    """
    row = {"formula": reduced_formula(atoms) if len(atoms) else "", "n_atoms": len(atoms)}
    try:
        check_geometry(atoms)
        ratio = min_distance_ratio(atoms)
        if ratio < COINCIDENT_SCALE:
            raise NotAStructure("two atoms on one site")
    except NotAStructure as error:
        return row | {"two_d": False, "valid": False, "verdict": "impossible"}, None, f"impossible: {error}"
    name, layer, measures = verdict(atoms)
    problems = [reason(name, measures)]
    if ratio < OVERLAP_SCALE:
        problems.append(f"atoms overlap as submitted: {ratio:.2f} of the sum of covalent radii")
    smact = smact_valid(row["formula"])
    row |= {
        "min_dist_ratio": ratio,
        "smact_valid": smact,
        "valid": ratio >= OVERLAP_SCALE and smact,
        "two_d": layer is not None,
        "verdict": name,
    }
    return row | measures, layer, "; ".join(filter(None, problems))
