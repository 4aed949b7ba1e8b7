"""The rewritten convolution against SevenNet's own code."""

import numpy as np
import pytest
from layers import known

from models.physics.potentials import SEVENNET_MODELS, load_potential


@pytest.fixture(scope="module", params=SEVENNET_MODELS)
def calculators(request):
    """SevenNet's own calculator and ours: of 7net-l3i5, which makes every label, and of 7net-0."""
    from sevenn.calculator import SevenNetCalculator

    own = SevenNetCalculator(SEVENNET_MODELS[request.param], device="cpu")
    return own, load_potential(request.param).calculator


@pytest.mark.parametrize("name", ["1H-MoS2", "graphene"])
def test_same_energy_forces_and_stress_as_sevennet(calculators, name):
    atoms = known(name)
    atoms.pbc = True
    atoms.rattle(0.05, seed=1)
    found = []
    for calculator in calculators:
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    (energy, forces, stress), (fast_energy, fast_forces, fast_stress) = found
    assert fast_energy == pytest.approx(energy, abs=1e-4)
    np.testing.assert_allclose(fast_forces, forces, atol=1e-4)
    np.testing.assert_allclose(fast_stress, stress, atol=1e-6)
    assert np.abs(forces).max() > 0.1  # the comparison sees something


def test_the_convolutions_are_really_replaced(calculators):
    own, ours = calculators
    replaced = [module for module in ours.model.modules() if hasattr(module, "fast")]
    convolutions = [module for module in own.model.modules() if type(module).__name__ == "IrrepsConvolution"]
    assert len(replaced) == len(convolutions) > 1
