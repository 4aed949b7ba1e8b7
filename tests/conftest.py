"""Fixtures of several test files."""

import pytest
import torch

from models.networks.dimenet import PeriodicDimeNetPlusPlus, save_dimenet


@pytest.fixture(scope="session")
def untrained_dimenet(tmp_path_factory):
    """Checkpoint of a DimeNet++ of no training that a millisecond evaluates; its mean ΔE_H is −0.4 eV."""
    path = tmp_path_factory.mktemp("weights") / "dimenet.pt"
    torch.manual_seed(0)
    model = PeriodicDimeNetPlusPlus(hidden_channels=8, out_emb_channels=8, int_emb_size=4, target_mean=-0.4)
    save_dimenet(path, model)
    return path
