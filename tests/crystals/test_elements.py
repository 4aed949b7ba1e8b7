"""The elements one would not use are one list, and every symbol in it is an element with a reason."""

import pytest
from pymatgen.core import Composition, Element

from models.crystals.elements import AVOIDED, avoided, benign


@pytest.mark.parametrize("symbol", ["Be", "As", "Cd", "Hg", "Tl", "Pb", "Tc", "Pm", "Po", "Th", "U", "Pu"])
def test_elements_one_would_not_use(symbol):
    assert not benign(["Mo", symbol]) and list(avoided(["Mo", symbol])) == [symbol]


@pytest.mark.parametrize("formula", ["MoS2", "NiPS3", "PtSe2", "Bi2Te3", "SnSb", "C", "CuGaN2"])
def test_common_catalysts_are_benign(formula):
    symbols = Composition(formula).as_dict()
    assert benign(symbols) and avoided(symbols) == {}


def test_reasons_and_radioactive_elements():
    """No isotope above bismuth is stable, and below it Tc and Pm have none."""
    assert all(len(reason) > 10 for reason in AVOIDED.values())
    assert {Element(symbol).Z for symbol in AVOIDED if "radioactive" in AVOIDED[symbol]} == {
        43,
        61,
        *range(84, 119),
    }
