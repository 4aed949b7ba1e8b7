"""What the rows of the builder's shards hold, checked when a shard is read: a broken one is said in one line
that names file, row and field, before hours of work.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.crystals.layer import unpack_atoms
from models.infra.files import UnreadableFile, file_text
from models.infra.shards import Shard


def text(value: Any) -> bool:
    return isinstance(value, str)


def number(value: Any) -> bool:
    """One finite number."""
    return numbers(value) and np.ndim(value) == 0


def numbers(value: Any) -> bool:
    """Finite numbers in a regular array of any shape."""
    array = np.asarray(value)
    return array.dtype.kind in "iuf" and bool(np.isfinite(array).all())


def structure(value: Any) -> bool:
    """Atoms as pack_atoms writes them."""
    regular = numbers(value["positions"]) and numbers(value["cell"])
    found = unpack_atoms({name: value[name] for name in ("numbers", "positions", "cell", "pbc")})
    return regular and len(found) > 0 and 0 < found.numbers.min() and found.numbers.max() <= 118


def sites(value: Any) -> bool:
    """Where hydrogen went, a rigid or a relaxed site each."""
    for site in value:
        plain = text(site["kind"]) and text(site["flag"]) and isinstance(site["converged"], bool)
        placed = site["face"] in (1, -1) and numbers(site["start"]) and numbers(site["end"])
        if not (plain and placed and number(site["delta_e"])):
            return False
    return isinstance(value, list)


def rigid_sites(value: Any) -> bool:
    """As `sites`; the slab stands with the first."""
    return sites(value) and (not value or structure(value[0]["slab"]))


def variants(value: Any) -> bool:
    """Off-equilibrium structures with their energies."""
    return all(structure(one) and number(one["energy"]) and text(one["kind"]) for one in value)


def phases(value: Any) -> bool:
    """Competing phases of one chemical system."""
    return all(structure(one["atoms"]) and number(one["energy"]) and text(one["name"]) for one in value)


# shard -> field -> its check; rows with a reason (why there is no result) need no more than that
FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "references": {"atoms": structure, "energy": number},
    "layers": {"atoms": structure, "energy": number, "prototype": text},
    "adsorption": {"sites": rigid_sites, "host": structure, "energy": number},
    "perturbed": {"variants": variants},
    "relaxed": {"sites": sites, "slab": structure, "host": structure, "energy": number},
    "competitors": {"phases": phases, "budget": number},
}


def checked(path: Path) -> Shard:
    """The shard of a level, `shards/LEVEL.jsonl`, its rows checked.

    Raises:
        UnreadableFile: a row is not as this version writes it.
    """
    shard = Shard(path)
    for key, row in shard.rows.items():
        if path.stem != "competitors" and not _fits(row, "reason", text):
            _refuse(path, key, "reason")
        for name, check in FIELDS[path.stem].items():
            if not row.get("reason") and not _fits(row, name, check):
                _refuse(path, key, name)
    return shard


def _fits(row: dict, name: str, check: Callable[[Any], bool]) -> bool:
    try:
        return check(row[name])
    except Exception:  # whatever foreign content makes a check stumble over is no row of ours
        return False


def _refuse(path: Path, key: str, name: str) -> None:
    raise UnreadableFile(
        f"{file_text(path)}: the row {key[:80]!r} has no {name!r} as this version writes it: take the row "
        "out and start again, and it is computed anew"
    )
