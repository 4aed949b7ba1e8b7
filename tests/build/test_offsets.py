"""The fit of an energy an element, on planted offsets."""

import numpy as np
import pytest
from pymatgen.core import Composition

from data.build.offsets import fit_offsets
from data.build.validate_hull import intervals, spreads

PLANTED = {"Mo": -0.1, "W": 0.0, "S": 0.05, "Se": 0.2, "Ti": -0.2}


def drawn(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Random formulas of two or three of the elements, and what E_form lacks: planted offsets and noise."""
    rng, formulas, lacking = np.random.default_rng(seed), [], []
    for _ in range(count):
        symbols = rng.choice(list(PLANTED), rng.integers(2, 4), replace=False)
        amounts = dict(zip(symbols.tolist(), rng.integers(1, 4, 3).tolist()))
        total = sum(amounts.values())
        formulas.append(Composition(amounts).formula)
        lacking.append(sum(PLANTED[symbol] * n for symbol, n in amounts.items()) / total)
    return formulas, np.array(lacking) + rng.normal(scale=0.01, size=count)


def test_planted_offsets_are_found_though_every_tenth_row_is_wrong():
    formulas, lacking = drawn(400)
    lacking[::10] += 3.0
    found = fit_offsets(formulas, lacking)
    assert set(found) == set(PLANTED)
    for element, offset in PLANTED.items():
        assert found[element] == pytest.approx(offset, abs=0.02)


def test_an_element_of_one_row_is_hardly_moved():
    formulas, lacking = drawn(100)
    found = fit_offsets([*formulas, "AuMo9"], np.append(lacking, 0.5))
    assert abs(found["Au"]) < 0.5 * 0.5  # by least squares it would take (0.5 + 0.09) / 0.1 = 5.9 eV


def test_intervals_hold_the_value_and_spreads_two_thirds_of_the_errors():
    rng = np.random.default_rng(1)
    true = rng.uniform(0, 0.3, 500)
    predicted = true + rng.normal(0.02, 0.05, 500)
    found = intervals(predicted, true)
    low, high = found["bias_ci95"]
    assert low < 0.02 < high and high - low == pytest.approx(4 * 0.05 / np.sqrt(500), rel=0.3)
    low, high = found["precision_ci95"]
    assert 0 < low < high <= 1
    (row,) = spreads("P", {True: [("MoS2", p, t) for p, t in zip(predicted, true)]})
    assert row["spread_eV_per_atom"] == pytest.approx(0.054, abs=0.006)  # of N(0.02, 0.05) about zero
    assert (row["kind"], row["formula_known"], row["rows"]) == ("other", True, 500)
