"""The rewritten convolution against SevenNet's own code."""

import numpy as np
import pytest
from layers import known

from models.physics.potentials import load_potential


@pytest.mark.parametrize("name", ["1H-MoS2", "graphene"])
def test_same_energy_forces_and_stress_as_sevennet(name):
    from sevenn.calculator import SevenNetCalculator

    atoms = known(name)
    atoms.pbc = True
    atoms.rattle(0.05, seed=1)
    found = []
    for calculator in (SevenNetCalculator("7net-0", device="cpu"), load_potential("sevennet-0").calculator):
        atoms.calc = calculator
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    (energy, forces, stress), (fast_energy, fast_forces, fast_stress) = found
    assert fast_energy == pytest.approx(energy, abs=1e-4)
    np.testing.assert_allclose(fast_forces, forces, atol=1e-4)
    np.testing.assert_allclose(fast_stress, stress, atol=1e-6)
    assert np.abs(forces).max() > 0.1  # the comparison sees something
