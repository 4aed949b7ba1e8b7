"""The gates of the evaluator: is a structure a free-standing two-dimensional crystal, and is it chemically
possible?
"""

from ase import Atoms
from smact.screening import smact_validity

from models.crystals.layer import NotALayer, dimension, extract_layer, min_distance_ratio, reduced_formula
from models.crystals.matching import layer_group
from models.crystals.thresholds import MAX_THICKNESS, MIN_VACUUM, OVERLAP_SCALE

VERDICTS = ("2D", "layer too thick", "layers too close", "several layers", "chain", "molecule", "3D network")


def verdict(atoms: Atoms) -> tuple[str, Atoms | None, dict]:
    """What a structure is, one of VERDICTS.

    Returns:
        the verdict, the layer in the convention (None unless "2D"), and the measures behind both.
    """
    components, directions = dimension(atoms)
    measures = {"components": components, "periodic_directions": directions}
    try:
        layer = extract_layer(atoms)
    except NotALayer:
        kinds = {0: "molecule", 1: "chain", 2: "several layers", 3: "3D network"}
        return kinds[directions], None, measures
    measures |= {
        "vacuum_A": layer.vacuum,
        "thickness_A": layer.thickness,
        "layer_group": layer_group(layer.atoms),
    }
    if layer.vacuum < MIN_VACUUM:
        return "layers too close", None, measures
    if layer.thickness > MAX_THICKNESS:
        return "layer too thick", None, measures
    return "2D", layer.atoms, measures


def reason(name: str, measures: dict) -> str:
    """A verdict in words with its numbers; empty for "2D"."""
    if name == "2D":
        return ""
    if name == "layers too close":
        return f"not 2D: {measures['vacuum_A']:.1f} Å between the layers, less than {MIN_VACUUM:g}"
    if name == "layer too thick":
        return f"not 2D: {measures['thickness_A']:.1f} Å thick, more than {MAX_THICKNESS:g}"
    return f"not 2D: {name} ({measures['components']} component(s), periodic in {measures['periodic_directions']} direction(s))"


def gates(atoms: Atoms) -> tuple[dict, Atoms | None, str]:
    """Dimensionality and validity of a structure as submitted.

    Returns:
        columns of its row, the layer in the convention (None if it is not 2D), and why it is not.
    """
    name, layer, measures = verdict(atoms)
    formula, ratio = reduced_formula(atoms), min_distance_ratio(atoms)
    smact = bool(smact_validity(formula))
    row = {
        "formula": formula,
        "n_atoms": len(atoms),
        "min_dist_ratio": ratio,
        "smact_valid": smact,
        "valid": ratio >= OVERLAP_SCALE and smact,
        "two_d": layer is not None,
        "verdict": name,
    }
    return row | measures, layer, reason(name, measures)
