"""What chemistry knows of an element and of a composition, as numbers for the models that learn from few
data.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols, covalent_radii
from pymatgen.core import Element

from models.crystals.charges import reachable_charges
from models.infra.files import ROOT, read_rows

PRICES = ROOT / "data" / "element_prices.csv"

ELEMENTAL = ("group", "row", "electronegativity", "covalent_radius", "valence_electrons")
STATISTICS = ("mean", "min", "max", "range", "std")
FAMILIES = {
    "chalcogen": "S Se Te",
    "oxygen": "O",
    "halogen": "F Cl Br I",
    "pnictogen": "N P As Sb Bi",
    "hydrogen": "H",
    "carbon_group": "B C Si Ge Sn Pb",
    "late_metal": "Co Ni Cu Zn Rh Pd Ag Cd Ir Pt Au Hg",
    "f_block": "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Ac Th Pa U Np Pu",
}
# Elements one would not build a catalyst from, each with its reason: the one list behind `--elements benign`,
# the evaluator's marks and the ranking. Sources: Annex VI of the EU's CLP regulation (harmonised
# classification) for what is toxic, the RoHS directive 2011/65/EU for Cd, Hg and Pb, NUBASE2020 (Kondev et
# al., Chin. Phys. C 45, 030001) for elements without a stable isotope; Bi (2e19 years) counts as stable.
AVOIDED = {
    "Be": "carcinogenic (inhaled dust), sensitises the lung",
    "As": "carcinogenic, toxic; forms arsine at HER potentials",
    "Cd": "carcinogenic, toxic to the kidney, restricted (RoHS)",
    "Hg": "neurotoxic, volatile, restricted (RoHS)",
    "Tl": "highly toxic, taken up in the place of potassium",
    "Pb": "neurotoxic, toxic to reproduction, restricted (RoHS)",
}
RADIOACTIVE = (
    "Tc Pm Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr "
    "Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
AVOIDED |= dict.fromkeys(RADIOACTIVE.split(), "radioactive: no stable isotope")
FAMILY_NUMBERS = {
    name: [atomic_numbers[symbol] for symbol in symbols.split()] for name, symbols in FAMILIES.items()
}
COMPOSITION_FEATURES = (
    *(f"{name}_{statistic}" for name in ELEMENTAL for statistic in STATISTICS),
    *(f"share_{name}" for name in FAMILIES),
    "elements",
    "largest_fraction",
    "smallest_fraction",
    "charge_imbalance",
)


def benign(symbols: Iterable[str]) -> bool:
    """Whether none of the elements is in AVOIDED."""
    return not any(symbol in AVOIDED for symbol in symbols)


def avoided(symbols: Iterable[str]) -> dict[str, str]:
    """Those of the elements that one would not use, in alphabetical order, each with its reason."""
    return {symbol: AVOIDED[symbol] for symbol in sorted(set(symbols)) if symbol in AVOIDED}


@cache
def element_prices(path: Path = PRICES) -> dict[str, float]:
    """element -> price of the pure element, USD/kg; sources in the file."""
    return {row["element"]: float(row["price_usd_per_kg"]) for row in read_rows(path)}


def price(amounts: Mapping[str, float]) -> float | None:
    """USD per kilogram of the elements in these amounts (element -> atoms); None where one has no price."""
    prices = element_prices()
    if not amounts or any(symbol not in prices for symbol in amounts):
        return None
    masses = {symbol: count * atomic_masses[atomic_numbers[symbol]] for symbol, count in amounts.items()}
    return float(sum(prices[symbol] * mass for symbol, mass in masses.items()) / sum(masses.values()))


def choose_elements(which: str, exclude: str, database: list[str]) -> list[str] | None:
    """The symbols that --elements and --exclude leave to choose from; None for any.

    Args:
        which: "database", "any", "benign" (of the database, none AVOIDED), or symbols, e.g. "Mo,W,S,Se".
        exclude: symbols to leave out, "" for none.
        database: symbols that the templates hold.

    Raises:
        ValueError: a symbol is no element, or none is left.
    """
    without = set(_symbols("--exclude", exclude))
    if which == "any" and not without:
        return None
    known = {"database": database, "any": chemical_symbols[1:95], "benign": set(database) - set(AVOIDED)}
    found = sorted(set(known[which] if which in known else _symbols("--elements", which)) - without)
    if not found:
        raise ValueError(f"--elements {which} --exclude {exclude} leaves no element to choose")
    return found


def _symbols(flag: str, text: str) -> list[str]:
    """Symbols out of a list with commas or spaces."""
    found = text.replace(",", " ").split()
    wrong = [symbol for symbol in found if symbol not in chemical_symbols[1:95]]
    if wrong:
        raise ValueError(f"{flag} {text}: {', '.join(wrong)} is no element up to Pu; write e.g. Mo,W,S,Se")
    return found


@cache
def element_features(number: int) -> tuple[float, ...]:
    """ELEMENTAL of an element; 0 for the electronegativity of a noble gas that has none."""
    element = Element.from_Z(number)
    valence = element.group - 10 if element.group > 12 else element.group
    return element.group, element.row, element.data.get("X") or 0.0, covalent_radii[number], valence


def composition_features(numbers: np.ndarray) -> list[float]:
    """COMPOSITION_FEATURES of atoms with atomic numbers [N]."""
    kinds, counts = np.unique(numbers, return_counts=True)
    share = counts / counts.sum()
    table = np.array([element_features(int(kind)) for kind in kinds])  # [K, 5]
    mean, low, high = share @ table, table.min(0), table.max(0)
    spread = np.sqrt(share @ (table - mean) ** 2)
    statistics = np.column_stack([mean, low, high, high - low, spread])  # [5, 5]
    families = [share[np.isin(kinds, members)].sum() for members in FAMILY_NUMBERS.values()]
    imbalance = _charge_imbalance(kinds.tolist(), counts.tolist())
    return [*statistics.ravel(), *families, len(kinds), share.max(), share.min(), imbalance]


def _charge_imbalance(kinds: list[int], counts: list[int]) -> float:
    """Smallest |charge| an atom over all choices of one common oxidation state an element; 0 for a pure
    element.

    Args:
        kinds, counts: atomic number and number of atoms of each element.
    """
    if len(kinds) == 1:
        return 0.0
    states = [Element.from_Z(kind).common_oxidation_states or (0,) for kind in kinds]
    return min(abs(charge) for charge in reachable_charges(counts, states)) / sum(counts)
