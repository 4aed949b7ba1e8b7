"""Formulas as people write them; the right readings are a chemist's, written out."""

import pytest
from pymatgen.core import Composition

from models.crystals.formula import BadFormula, read_formula

READ = {
    "MoS2": "MoS2",
    "Mo1S2": "MoS2",
    "Mo2S4": "MoS2",
    "MoS₂": "MoS2",
    "MoS_2": "MoS2",
    "MoS$_{2}$": "MoS2",
    " MoS2 ": "MoS2",
    "mos2": "MoS2",
    "MOS2": "MoS2",
    "1T-MoS2": "MoS2",
    "1T'-WTe2": "WTe2",
    "2H-MoS2": "MoS2",
    "h-BN": "BN",
    "β-GeSe": "GeSe",
    "Ti3C2(OH)2": "Ti3H2(CO)2",
    "Mo0.5W0.5S2": "MoWS4",
    "CO": "CO",
    "Co": "Co",
    "C": "C",
    "wte2": "WTe2",
}
REFUSED = {
    "": "no formula",
    "   ": "no formula",
    "co": "may mean",
    "cos2": "may mean",
    "nbse2": "NBSe2 or NbSe2",
    "hMoS2": "letter for its phase",
    "Ti3C2Tx": "terminations",
    "Ti3C2T2": "terminations",
    "D2O": "deuterium",
    "MX2": "metal",
    "OgS2": "Og",
    "MoS2·H2O": "one compound",
    "MoS2/WS2": "one compound",
    "Mo4+": "one compound",
    "MoS2-x": "one compound",
    "qqq": "no element",
    "Mo0.37W0.63S2": "ordered compound",
    "Mo0S2": "amount of 0",
    "Ti3C2(OH": "no formula",
    "!": "one compound",
}


@pytest.mark.parametrize("text", READ)
def test_what_is_understood(text):
    formula, note = read_formula(text)
    assert Composition(formula).reduced_composition == Composition(READ[text]).reduced_composition
    assert bool(note) == (text not in ("MoS2", " MoS2 ", "Mo1S2", "Mo2S4", "Ti3C2(OH)2", "CO", "Co", "C"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused_says_why_in_one_line(text):
    with pytest.raises(BadFormula, match=REFUSED[text]) as caught:
        read_formula(text)
    assert "\n" not in str(caught.value) and (not text.strip() or text in str(caught.value))
