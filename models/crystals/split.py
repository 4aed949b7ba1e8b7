"""One train/val/test split for all stages: a stable hash of the reduced formula of the host."""

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b

import numpy as np
from ase.symbols import Symbols

ADSORBATE = 2  # OC20's tag of adsorbate atoms


def hash_fraction(text: str) -> float:
    """Number in [0, 1) that depends on the text alone, on every machine and in every Python."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


@cache
def split_of(formula: str) -> str:
    """Split that a material belongs to.

    Args:
        formula: Any chemical formula; `MoS2`, `Mo2S4` and `S2Mo` are one material.

    Returns:
        "train" (80 %), "val" (10 %) or "test" (10 %).
    """
    from pymatgen.core import Composition  # late, for --help

    fraction = hash_fraction(Composition(formula).reduced_formula)
    return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"


def host_formula(atomic_numbers: Sequence[int], tags: Sequence[int]) -> str:
    """Formula of what the adsorbate sits on.

    Args:
        atomic_numbers: [N].
        tags: [N], 2 on adsorbate atoms.

    Returns:
        Formula without the adsorbate atoms; of all atoms where none, or all, are tagged 2.
    """
    numbers = np.asarray(atomic_numbers, dtype=int)
    host = numbers[np.asarray(tags) != ADSORBATE]
    return Symbols(host if len(host) else numbers).get_chemical_formula(mode="hill")
