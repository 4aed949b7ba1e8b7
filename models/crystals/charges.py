"""Whether the charges of a composition can balance.

SMACT (Davies et al. 2019, J. Open Source Softw. 4, 1361) tries every combination of oxidation states, which
grows exponentially with the number of elements and hangs on a molecule of fourteen. The same question is
answered here by dynamic programming over the total charge: linear in the elements, states and charges.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from math import gcd

import smact
from pymatgen.core import Composition
from smact.utils.oxidation import ICSD24OxStatesFilter

CONSENSUS = 3  # reports of an oxidation state in the ICSD from which it counts: SMACT's own default


@cache
def _icsd_states() -> dict[str, tuple[int, ...]]:
    """element -> its oxidation states in the ICSD, zero left out, as smact_validity takes them."""
    table = ICSD24OxStatesFilter().filter(consensus=CONSENSUS, include_zero=False)
    states = {}
    for element, listed in zip(table["element"], table["oxidation_state"]):
        states[element] = tuple(int(state) for state in str(listed).split())
    return states


@cache
def _electronegativity(symbol: str) -> float | None:
    """On Pauling's scale."""
    return smact.Element(symbol).pauling_eneg


def reachable_charges(counts: Iterable[int], states: Iterable[Sequence[int]]) -> set[int]:
    """Total charges that a composition can have, each element in one of its oxidation states.

    Args:
        counts: atoms of each element.
        states: oxidation states of each element.
    """
    charges = {0}
    for count, allowed in zip(counts, states):
        charges = {charge + count * state for charge in charges for state in allowed}
    return charges


def smact_valid(formula: str) -> bool:
    """smact.screening.smact_validity with its defaults: a pure element, an alloy of metals, or one oxidation
    state an element so that charges balance and every anion is more electronegative than every cation.
    """
    composition = Composition(formula).get_el_amt_dict()
    symbols = list(composition)
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    counts = [int(count) for count in composition.values()]
    divisor = gcd(*counts)
    counts = [count // divisor for count in counts]
    states = [_icsd_states().get(symbol, ()) for symbol in symbols]
    scale = [_electronegativity(symbol) for symbol in symbols]
    if None in scale or () in states:
        return False
    # Anions are the more electronegative ones, so a value on the scale parts them from the cations.
    for border in set(scale):
        allowed = []
        for element_states, value in zip(states, scale):
            sign = 1 if value < border else -1
            allowed.append([state for state in element_states if state * sign > 0])
        if 0 in reachable_charges(counts, allowed):
            return True
    return False
