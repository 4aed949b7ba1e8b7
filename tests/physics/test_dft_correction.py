"""The correction to DFT: an error bar that knows what it does not know, an uncertain gap, plain files."""

import json

import numpy as np
import pytest

from models.infra.files import ROOT
from models.physics.dft_correction import FEATURES, DftCorrection, GaussianProcess, noise_spread

SHIPPED = ROOT / "models" / "weights" / "dft_correction.json"


def one(value: float) -> np.ndarray:
    return np.array([value])


def test_a_process_learns_a_line_and_says_where_it_knows_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = 0.4 * x[:, 0] - 0.2 + rng.normal(0, 0.15, 80)
    process = GaussianProcess.fit(x, y, np.ones(80))
    new = rng.normal(size=(400, 3))
    mean, std = process.predict(new, np.ones(400))
    truth = 0.4 * new[:, 0] - 0.2
    assert abs(mean - truth).mean() < 0.08  # half of the noise; the mean of y alone errs by 0.32
    assert np.median(std) == pytest.approx(0.15, abs=0.05)
    covered = abs(mean - truth - rng.normal(0, 0.15, 400)) <= std
    assert covered.mean() == pytest.approx(0.68, abs=0.1)
    _, far = process.predict(np.full((1, 3), 30.0), np.ones(1))
    assert far[0] > 1.5 * np.median(std)
    _, rough = process.predict(new[:1], np.full(1, 3.0))
    assert rough[0] == pytest.approx(3 * process.noise, rel=0.1)


def test_an_uncertain_gap_widens_the_error_bar_by_its_slope():
    """DFT minus the potential is 0.5 times the gap: a gap of 1.0 ± 0.4 eV adds 0.5 · 0.4 eV in quadrature."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=120), rng.normal(size=120), rng.uniform(0, 2.5, 120)])
    y = 0.5 * x[:, 2] + 0.1 * noise_spread(x[:, 2]) * rng.normal(size=120)
    correction = DftCorrection.fit(x, y, "any", "other")
    sure, narrow = correction.delta_e(one(0.1), one(0.2), one(1.0), one(0.0))
    same, wide = correction.delta_e(one(0.1), one(0.2), one(1.0), one(0.4))
    assert sure[0] == pytest.approx(0.1 + 0.5, abs=0.06) and same[0] == pytest.approx(sure[0], abs=0.03)
    assert wide[0] == pytest.approx(np.hypot(narrow[0], 0.5 * 0.4), rel=0.1)


def test_a_file_gives_the_same_answers_and_another_is_refused(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, len(FEATURES))), rng.normal(size=30)
    x[:, 2] = abs(x[:, 2])
    correction = DftCorrection.fit(x, y, "SevenNet", "diep")
    correction.widening = 1.3
    correction.save(tmp_path / "c.json", {"poses": 30})
    again = DftCorrection.load(tmp_path / "c.json")
    assert (again.potential, again.second) == ("SevenNet", "diep")
    asked = np.array([0.3, -0.3]), np.array([0.5, 0.1]), np.array([0.0, 1.2]), np.array([0.1, 0.3])
    for first, second in zip(correction.delta_e(*asked), again.delta_e(*asked)):
        assert second == pytest.approx(first, abs=1e-3)
    (tmp_path / "c.json").write_text(json.dumps({"features": ["something"], "x": [], "y": []}))
    with pytest.raises(ValueError, match="c.json is no correction to DFT.*dft_correction"):
        DftCorrection.load(tmp_path / "c.json")


def test_the_shipped_correction_makes_a_gapped_layer_inert_and_leaves_a_metal():
    """MoS2: SevenNet says ΔE_H = 0.92 eV, diep 1.3; the literature 1.7 to 2.0 eV (Tsai et al., Phys. Chem.
    Chem. Phys. 16, 13156 (2014)). Ti2CO2-like metals: both potentials are right within 0.3 eV.
    """
    correction = DftCorrection.load(SHIPPED)
    mos2, std = correction.delta_e(one(0.92), one(1.30), one(1.6), one(0.1))
    assert 1.4 < mos2[0] < 2.4 and 0.1 < std[0] < 0.8
    metal, std = correction.delta_e(one(-0.30), one(-0.10), one(0.0), one(0.05))
    assert abs(metal[0] + 0.2) < 0.35 and 0.1 < std[0] < 0.8
