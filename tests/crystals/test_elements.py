"""The elements one would not use are one list, and every symbol in it is an element with a reason."""

import pytest
from pymatgen.core import Composition, Element

from models.crystals.elements import AVOIDED, avoided, benign, element_prices, price


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


def test_a_kilogram_of_a_layer_costs_what_its_elements_cost():
    """MoS2 by hand: 95.95 g of Mo at 40.1 and 64.12 g of S at 0.0926 USD/kg."""
    assert price({"Mo": 1, "S": 2}) == pytest.approx((95.95 * 40.1 + 64.12 * 0.0926) / 160.07, rel=1e-3)
    assert price({"Mo": 3, "S": 6}) == pytest.approx(price({"Mo": 1, "S": 2}))
    assert price({"Pt": 1}) > 1000 * price({"Ni": 1}) and price({}) is price({"Ra": 1, "O": 1}) is None
    prices = element_prices()
    assert set(prices) >= {Element.from_Z(z).symbol for z in range(1, 84)} - {"At"}
    assert all(0 < value < 1e6 for value in prices.values())
