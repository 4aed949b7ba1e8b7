"""Band gaps: trees as tensors, and shipped ones on layers whose PBE gap every textbook has."""

import numpy as np
import pytest
import torch
from layers import known

from models.infra.files import ROOT, save_checkpoint
from models.networks.gap import CAP, fit_gap, gap_features, load_gap, predict_gap, save_gap

SHIPPED = ROOT / "models" / "weights" / "gap.pt"


def test_trees_as_tensors_learn_and_come_back_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    layer = known("1H-MoS2")
    x = np.repeat(gap_features([layer]), 60, 0) + rng.normal(0, 0.5, (60, gap_features([layer]).shape[1]))
    gap = np.where(x[:, 2] > x[:, 2].mean(), 4.0, 0.0)  # one feature decides, and 4 eV counts as CAP
    forest = fit_gap(x, gap)
    said = forest.leaves(torch.tensor(x, dtype=torch.float32)).mean(0).numpy()
    assert abs(said - np.minimum(gap, CAP)).mean() < 0.5 and said.max() <= CAP
    save_gap(tmp_path / "gap.pt", forest)
    again = load_gap(tmp_path / "gap.pt")
    for first, second in zip(predict_gap(forest, [layer]), predict_gap(again, [layer])):
        assert second == pytest.approx(first, abs=1e-6)
    save_checkpoint(tmp_path / "other.pt", {"kind": "something"})
    with pytest.raises(ValueError, match="other.pt is no model of band gaps"):
        load_gap(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="data.build.gap"):
        load_gap(tmp_path / "none.pt")
    assert predict_gap(forest, [])[0].shape == (0,)


@pytest.mark.parametrize("name, low, high", [("1H-MoS2", 1.2, 2.0), ("graphene", 0.0, 0.7)])
def test_known_gaps(name, low, high):
    """PBE: MoS2 1.6 to 1.7 eV, graphene 0; both formulas may have been learned."""
    mean, std = predict_gap(load_gap(SHIPPED), [known(name)])
    assert low <= mean[0] <= high and std[0] < 0.9
