"""CIF as people and programs write it, to atoms: gemmi parses, this module says what a file means.

The order of trust: the file's own symmetry operations; a Hall symbol; a Hermann-Mauguin name or a number,
whose origin choice is the one that agrees with the file's formula; without any of these P1. What comes out is
held against `_chemical_formula_sum`: a contradiction is an error, never a row of another material.
"""

import math
import re
from dataclasses import dataclass

import gemmi
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry import cellpar_to_cell

SAME_SITE = (
    0.1  # Å; images of one site closer than this are one atom: special positions rounded to 2-4 digits
)
TOO_CLOSE = 0.5  # Å; no two nuclei are closer, so two sites that are hold one atom written twice or a mistake
FULL = (
    0.999  # an occupancy below it is disorder, above 2 - FULL more than one atom; in between it is rounding
)
MAX_ATOMS = 500  # of a cell: larger ones take hours with a potential
MAX_OPERATIONS = 192  # of a space group, F m -3 m; more are no group
FORMULA_TOLERANCE = 0.02  # relative: a formula sum written with two decimals

TAGS = {
    "operations": (
        "_space_group_symop_operation_xyz",
        "_space_group_symop.operation_xyz",
        "_symmetry_equiv_pos_as_xyz",
        "_symmetry_equiv.pos_as_xyz",
    ),
    "hall": (
        "_space_group_name_Hall",
        "_space_group.name_Hall",
        "_symmetry_space_group_name_Hall",
        "_symmetry.space_group_name_Hall",
    ),
    "name": (
        "_space_group_name_H-M_alt",
        "_space_group.name_H-M_alt",
        "_space_group_name_H-M_full",
        "_space_group_name_H-M",
        "_symmetry_space_group_name_H-M",
        "_symmetry.space_group_name_H-M",
    ),
    "number": (
        "_space_group_IT_number",
        "_space_group.IT_number",
        "_symmetry_Int_Tables_number",
        "_symmetry.Int_Tables_number",
    ),
    "formula": ("_chemical_formula_sum", "_chemical_formula.sum"),
}


class CifError(ValueError):
    """A CIF is no structure; the message says why, in words for the person who wrote it."""


@dataclass(frozen=True)
class Site:
    """An atom site as the file lists it.

    Attributes:
        label: as written.
        element: chemical symbol.
        position: [3] fractional.
        occupancy: atoms on it.
    """

    label: str
    element: str
    position: np.ndarray
    occupancy: float


def read_cif(text: str) -> list[tuple[str, Atoms | str]]:
    """Structures of a CIF, a block each: (name of the block, atoms or why it is none).

    Blocks without atom sites are left out, unless no block has any.

    Raises:
        CifError: the text is no CIF, or holds no atom sites at all.
    """
    text = text.lstrip("\ufeff \t\r\n").replace("\r\n", "\n").replace("\r", "\n")
    numbers = iter(range(1_000_000))
    unique = re.sub(r"(?mi)^data_(\S*)", lambda found: f"data_{next(numbers)}:{found[1]}", text)
    try:  # the numbers, because gemmi refuses blocks of the same name
        document = gemmi.cif.read_string(unique)
    except (ValueError, RuntimeError) as error:
        raise CifError(f"no readable CIF: {_plain(str(error))}") from None
    found = []
    for block in document:
        if len(_column(block, "label", "type_symbol")) == 0:
            continue
        try:
            structure = block_atoms(block)
        except CifError as error:
            structure = str(error)
        found.append((block.name.partition(":")[2], structure))
    if not found:
        raise CifError("no atom sites in this CIF")
    return found


def _plain(message: str) -> str:
    """gemmi's complaint without the name that it gives to a string."""
    found = re.match(r"string(?::(\d+))?\S*(?: in \S+)?\s*(.*)", message)
    return f"line {found[1]}: {found[2]}" if found and found[1] else message


def block_atoms(block: gemmi.cif.Block) -> Atoms:
    """Atoms of a block, fully periodic, in the file's own cell.

    Raises:
        CifError: with the reason why the block is no ordered crystal.
    """
    cell = _cell(block)
    formula = _formula(block)
    sites = _sites(block, formula, cell)
    made, problems = [], []
    for operations in _groups(block, cell):
        try:
            made.append(_crystal(sites, operations, cell, formula))
        except CifError as error:
            problems.append(str(error))
    if not made:
        return _as_listed(sites, cell, formula, problems[0])
    if not all(_same_crystal(made[0], other) for other in made[1:]):
        names = " or ".join(sorted({atoms.get_chemical_formula() for atoms in made}))
        raise CifError(
            f"the space group has two origins or settings, and the atoms fit both ({names}): "
            "write the symmetry operations into the file"
        )
    return made[0]


def _value(block: gemmi.cif.Block, tags: tuple[str, ...]) -> str:
    """The first value among the tags that says anything; empty if none does."""
    for tag in tags:
        raw = block.find_value(tag)
        text = gemmi.cif.as_string(raw).strip() if raw else ""
        if text not in ("", ".", "?"):
            return text
    return ""


def _column(block: gemmi.cif.Block, *names: str) -> list[str]:
    """A column of the atom sites, by the first of the names that the file has."""
    for name in names:
        for separator in ("_", "."):
            found = block.find_values(f"_atom_site{separator}{name}")
            if len(found):
                return [gemmi.cif.as_string(raw).strip() for raw in found]
    return []


def _number(text: str, what: str) -> float:
    """A number as CIFs write it: with an uncertainty in brackets, or as a fraction.

    Raises:
        CifError: it is none, or is not finite; `what` names it.
    """
    bare = re.sub(r"\(\d*\)", "", text).replace(" ", "")
    try:
        above, slash, below = bare.partition("/")
        value = float(above) / float(below) if slash else float(bare)
    except (ValueError, ZeroDivisionError):
        raise CifError(f"{what} is {text!r}, no number") from None
    if not math.isfinite(value):
        raise CifError(f"{what} is {text}, not finite")
    return value


def _cell(block: gemmi.cif.Block) -> np.ndarray:
    """Lattice rows [3, 3], Å; the angles are 90° where the file is silent, as the CIF dictionary has it."""
    lengths, angles = [], []
    for name in "abc":
        text = _value(block, (f"_cell_length_{name}", f"_cell.length_{name}"))
        if not text:
            raise CifError(f"no cell length {name}")
        lengths.append(_number(text, f"cell length {name}"))
    for name in ("alpha", "beta", "gamma"):
        text = _value(block, (f"_cell_angle_{name}", f"_cell.angle_{name}"))
        angles.append(_number(text, f"cell angle {name}") if text else 90.0)
    return checked_cell(lengths, angles)


def checked_cell(lengths: list[float], angles: list[float]) -> np.ndarray:
    """Lattice rows [3, 3] in Å of a cell that exists.

    Args:
        lengths: a, b, c, Å.
        angles: α, β, γ, degrees.

    Raises:
        CifError: with the number that cannot be.
    """
    for name, length in zip("abc", lengths):
        if not 0.5 < length < 1000:
            raise CifError(f"cell length {name} is {length:g} Å: no crystal has it")
    cosines = np.cos(np.radians(angles))
    squared = 1 - (cosines**2).sum() + 2 * cosines.prod()  # of the volume over abc
    # A skewed basis of a good crystal has angles of a few degrees, so only what is flat is refused.
    if any(not 0 < angle < 180 for angle in angles) or squared < 1e-9:
        raise CifError(f"cell angles {', '.join(f'{angle:g}' for angle in angles)}° close no cell")
    return cellpar_to_cell([*lengths, *angles])


def _formula(block: gemmi.cif.Block) -> dict[str, float]:
    """Amounts by element of the file's own formula sum; empty where it says none that can be read."""
    text = _value(block, TAGS["formula"]).replace(",", " ")
    amounts: dict[str, float] = {}
    for part in text.split():
        tokens = re.findall(r"([A-Z][a-z]?|[a-z]{1,2})(\d*\.?\d*)", part)
        if "".join(map("".join, tokens)) != part:
            return {}
        if _symbol(part.rstrip("0123456789.")):  # a token of its own may be upper case: MO, CL2
            tokens = [re.fullmatch(r"([A-Za-z]+)([\d.]*)", part).groups()]
        for letters, count in tokens:
            element = _symbol(letters)
            if not element:
                return {}
            amounts[element] = amounts.get(element, 0.0) + float(count or 1)
    return {element: amount for element, amount in amounts.items() if amount > 0}


def _symbol(letters: str) -> str:
    """Chemical symbol of letters of any case, deuterium and tritium as H; empty if there is none."""
    found = letters.capitalize()
    if found in ("D", "T"):
        return "H"
    return found if found in atomic_numbers and found != "X" else ""


def _element(kind: str, label: str, formula: dict[str, float]) -> str:
    """Element of a site from its type symbol (without charge), else from its label (without suffix).

    A label such as Ho1 may be holmium or a hydrogen of a hydroxide: an element of the formula wins.

    Raises:
        CifError: it names no element.
    """
    for text, is_label in ((kind, False), (label, True)):
        letters = re.match(r"[A-Za-z]*", text)[0]
        choices = [_symbol(letters[:2]) if len(letters) > 1 else "", _symbol(letters[:1])]
        if len(letters) > 2 and not is_label:
            continue  # no type symbol has three letters
        choices = [choice for choice in choices if choice]
        inside = [choice for choice in choices if choice in formula]
        if inside or choices:
            return (inside or choices)[0]
    raise CifError(f"atom site {label or kind or '?'} names no element")


def _sites(block: gemmi.cif.Block, formula: dict[str, float], cell: np.ndarray) -> list[Site]:
    """The sites as listed, dummies left out.

    Raises:
        CifError: a site lacks what it needs, or is disordered.
    """
    labels, kinds = _column(block, "label"), _column(block, "type_symbol")
    count = max(len(labels), len(kinds))
    if count > MAX_ATOMS:
        raise CifError(f"{count} atom sites, more than {MAX_ATOMS}: give a smaller cell")
    positions = _positions(block, labels or kinds, cell)
    occupancies, flags = _column(block, "occupancy"), _column(block, "calc_flag")
    sites = []
    for k in range(count):
        label = labels[k] if labels else kinds[k]
        if flags and flags[k] == "dum":
            continue
        element = _element(kinds[k] if kinds else "", label, formula)
        text = occupancies[k] if occupancies else "1"
        occupancy = 1.0 if text in ("", ".", "?") else _number(text, f"occupancy of {label}")
        sites.append(Site(label, element, positions[k], occupancy))
    _refuse_disorder(sites)
    return sites


def _positions(block: gemmi.cif.Block, labels: list[str], cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates [N, 3]; Cartesian ones (Å) where the file has no others."""
    for kind in ("fract", "Cartn"):
        columns = [_column(block, f"{kind}_{axis}") for axis in "xyz"]
        if not all(columns):
            continue
        rows = [
            [_number(text, f"coordinate {axis} of {label}") for axis, text in zip("xyz", row)]
            for label, row in zip(labels, zip(*columns))
        ]
        positions = np.array(rows)
        if abs(positions).max() > 1e4:
            raise CifError(f"a coordinate of {abs(positions).max():g}: no atom is there")
        return positions if kind == "fract" else positions @ np.linalg.inv(cell)
    raise CifError("the atom sites have no coordinates")


def _refuse_disorder(sites: list[Site]) -> None:
    """Raises CifError for a site that is not exactly one atom."""
    if not sites:
        raise CifError("no atom sites in this CIF")
    for site in sites:
        if site.occupancy < FULL:
            raise CifError(
                f"partial occupancy: {site.label} holds {site.occupancy:g} atoms, so this is not one ordered "
                "structure: give an ordered one"
            )
        if site.occupancy > 2 - FULL:
            raise CifError(f"occupancy {site.occupancy:g} of {site.label}: a site holds one atom at most")


def _groups(block: gemmi.cif.Block, cell: np.ndarray) -> list[list[gemmi.Op]]:
    """The symmetry operations, as many sets as there are settings that the file leaves open.

    Raises:
        CifError: the file names a symmetry that does not exist.
    """
    for tag in TAGS["operations"]:
        texts = [gemmi.cif.as_string(raw).strip() for raw in block.find_values(tag)]
        if texts := [text for text in texts if text not in ("", ".", "?")]:
            return [_operations(texts)]
    hall, name = _value(block, TAGS["hall"]), _value(block, TAGS["name"])
    if hall:
        try:
            return [list(gemmi.symops_from_hall(hall))]
        except (ValueError, RuntimeError):
            raise CifError(f"no such Hall symbol: {hall}") from None
    number = _value(block, TAGS["number"])
    if not name and not number:
        return [[gemmi.Op()]]
    settings = _settings(name, number, cell)
    if not settings:
        raise CifError(
            f"unknown space group {name or number}, and no symmetry operations: write them into the file"
        )
    return [list(setting.operations()) for setting in settings]


def _operations(texts: list[str]) -> list[gemmi.Op]:
    """Operations as written, the identity among them.

    Raises:
        CifError: one of them is no symmetry operation.
    """
    if len(texts) > MAX_OPERATIONS:
        raise CifError(f"{len(texts)} symmetry operations, more than any space group has")
    operations = []
    for text in texts:
        bare = re.sub(r"^\s*\d+\s+|['\"]", "", text)  # "1 x,y,z" of old programs
        try:
            operation = gemmi.Op(bare)
        except (ValueError, RuntimeError):
            raise CifError(f"{text!r} is no symmetry operation") from None
        if abs(operation.det_rot()) != gemmi.Op.DEN**3:
            raise CifError(f"{text!r} is no symmetry operation: it changes volumes")
        operations.append(operation)
    if gemmi.Op() not in operations:
        operations.insert(0, gemmi.Op())
    return operations


def _settings(name: str, number: str, cell: np.ndarray) -> list[gemmi.SpaceGroup]:
    """Settings of a space group that a name, else a number, leaves open: origins 1 and 2; hexagonal or
    rhombohedral axes, as the cell has them.
    """
    lengths, angles = np.linalg.norm(cell, axis=1), _angles(cell)
    found = gemmi.find_spacegroup_by_name(name, angles[0], angles[2]) if name else None
    if found is None and re.fullmatch(r"\d{1,3}", number):
        found = gemmi.find_spacegroup_by_number(int(number))
    if found is None:
        return []
    if ":" in name:
        return [found]
    alike = [
        other
        for other in gemmi.spacegroup_table()
        if other.number == found.number and other.hm == found.hm and other.ext in "\0" + "12HR"
    ]
    if {other.ext for other in alike} == {"H", "R"}:
        equal = np.ptp(lengths) < 0.02 * lengths[0] and np.ptp(angles) < 0.5
        alike = [other for other in alike if other.ext == ("R" if equal else "H")]
    return alike


def _angles(cell: np.ndarray) -> np.ndarray:
    """α, β, γ in degrees."""
    unit = cell / np.linalg.norm(cell, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)))


def _crystal(
    sites: list[Site], operations: list[gemmi.Op], cell: np.ndarray, formula: dict[str, float]
) -> Atoms:
    """The sites under the operations.

    Raises:
        CifError: atoms overlap, are too many, or contradict the formula.
    """
    numbers, positions, origins = [], np.zeros((0, 3)), []
    rotations = np.array([operation.rot for operation in operations]) / gemmi.Op.DEN  # [G, 3, 3]
    shifts = np.array([operation.tran for operation in operations]) / gemmi.Op.DEN  # [G, 3]
    for k, site in enumerate(sites):
        orbit = _merged(rotations @ site.position + shifts, cell)
        alike = [j for j, number in enumerate(numbers) if number == atomic_numbers[site.element]]
        if len(operations) > 1 and alike and _gaps(orbit[0], positions[alike], cell).min() < SAME_SITE:
            continue  # the file lists symmetric images beside the site that makes them
        numbers += [atomic_numbers[site.element]] * len(orbit)
        origins += [k] * len(orbit)
        positions = np.vstack([positions, orbit])
        if len(numbers) > MAX_ATOMS:
            raise CifError(f"more than {MAX_ATOMS} atoms in the cell: give a smaller one")
    atoms = Atoms(numbers, scaled_positions=positions, cell=cell, pbc=True)
    refuse_overlaps(atoms, [sites[k].label for k in origins])
    refuse_other_formula(atoms, formula)
    return atoms


def _gaps(point: np.ndarray, points: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Distances [N] in Å of a fractional point to others, over the cell's borders."""
    difference = points - point
    return np.linalg.norm((difference - np.round(difference)) @ cell, axis=1)


def _merged(images: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Images [G, 3] of one site with those closer than SAME_SITE made one, at their centre."""
    orbit: list[list[np.ndarray]] = []
    for image in images:
        for cluster in orbit:
            if _gaps(cluster[0], image[None], cell)[0] < SAME_SITE:
                difference = image - cluster[0]
                cluster.append(cluster[0] + difference - np.round(difference))
                break
        else:
            orbit.append([image])
    return np.array([np.mean(cluster, axis=0) for cluster in orbit])


def _as_listed(sites: list[Site], cell: np.ndarray, formula: dict[str, float], problem: str) -> Atoms:
    """The sites as they stand, where two elements on one orbit contradict the group: a Janus layer under the
    group of its parent.

    Raises:
        CifError: they do not have the file's formula either; `problem` is what the group made of them.
    """
    if formula and problem.startswith("two atoms") and len({site.element for site in sites}) > 1:
        try:
            return _crystal(sites, [gemmi.Op()], cell, formula)
        except CifError:
            pass
    raise CifError(problem)


def _same_crystal(one: Atoms, other: Atoms) -> bool:
    """Whether two sets of atoms in one cell have the same elements and distances."""
    if one.get_chemical_formula() != other.get_chemical_formula():
        return False
    distances = [np.sort(atoms.get_all_distances(mic=True), axis=None) for atoms in (one, other)]
    return bool(np.allclose(*distances, atol=SAME_SITE / 10))


def refuse_overlaps(atoms: Atoms, labels: list[str] | None = None) -> None:
    """Raises CifError if two nuclei are within TOO_CLOSE; names them, by `labels` [N] where given."""
    fractional, cell = atoms.get_scaled_positions(wrap=False), atoms.cell.array
    for k in range(1, len(atoms)):
        gaps = _gaps(fractional[k], fractional[:k], cell)
        if gaps.min() < TOO_CLOSE:
            j = int(gaps.argmin())
            names = [labels[i] if labels else atoms.symbols[i] for i in (j, k)]
            raise CifError(
                f"two atoms, {names[0]} and {names[1]}, are {gaps[j]:.2f} Å apart: one of them is too many"
            )


def refuse_other_formula(atoms: Atoms, formula: dict[str, float]) -> None:
    """Raises CifError if the atoms do not have the formula of the file, up to a factor."""
    if not formula:
        return
    counts = atoms.symbols.formula.count()
    ratios = [counts.get(element, 0) / amount for element, amount in formula.items()]
    if set(counts) != set(formula) or max(ratios) > min(ratios) * (1 + FORMULA_TOLERANCE):
        said = "".join(f"{element}{amount:g}" for element, amount in formula.items())
        raise CifError(
            f"the atoms are {atoms.get_chemical_formula()}, but the file says {said}: atoms are missing, or "
            "the symmetry is not what the file says"
        )
