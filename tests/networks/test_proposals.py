"""Which proposal is taken: fake samplers whose L_target is known."""

from collections import Counter

import ase.data
import ase.geometry
import pytest
import torch

from data.build.prototypes import PROTOTYPES
from models.networks.proposals import propose
from models.networks.settings import GeneratorSettings

ATOMS = {p.name: p.atoms() for p in PROTOTYPES}


class OneAtATime:
    """A sampler whose k-th proposal puts the k-th of a list of elements on every slot; L_target is the atomic
    number.
    """

    def __init__(self, tau: float, elements=("Al", "B", "Ga")):
        self.elements, self.generator = list(elements), torch.Generator().manual_seed(0)
        self.settings = GeneratorSettings(proposals=len(elements), tau=tau)

    def noised(self, layers, start, symmetry=None):
        return layers, None

    def propose_elements(self, layers, lattice, start, temperature):
        number = torch.tensor(ase.data.atomic_numbers[self.elements.pop(0)])
        return layers.replace(atomic_numbers=torch.where(layers.mask, number, 0))

    def target_loss(self, layers):
        return layers.atomic_numbers.amax(1).float()


@pytest.mark.parametrize("tau, expected", [(0.1, {"B"}), (1e6, {"B", "Al", "Ga"})])
def test_of_several_proposals_one_is_drawn_by_its_loss(tau, expected):
    """Cold: the lowest L_target wins; hot: each as likely as the others."""
    # names of their own: none is passed over
    batch = [[(f"honeycomb {k}", ATOMS["honeycomb-A"])] for k in range(60)]
    found = [atoms for _, atoms in propose(batch, OneAtATime(tau), 0)]
    counts = Counter(atoms.symbols[0] for atoms in found)
    assert set(counts) == expected and min(counts.values()) >= 60 / len(expected) / 2
    bonds = {
        atoms.symbols[0]: ase.geometry.get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1][0, 1]
        for atoms in found
    }
    for symbol, bond in bonds.items():  # the template takes the size of its new elements
        radius = ase.data.covalent_radii[ase.data.atomic_numbers[symbol]]
        own = ATOMS["honeycomb-A"]
        before = ase.geometry.get_distances(own.positions, cell=own.cell, pbc=own.pbc)[1][0, 1]
        assert bond / before == pytest.approx(radius / ase.data.covalent_radii[own.numbers[0]], abs=1e-3)


def test_each_proposal_starts_from_a_template_of_its_own():
    """As many as there are, then from the first again; the name goes with the choice, and so do the atoms."""
    batch = [[("honeycomb", ATOMS["honeycomb-A"]), ("1T", ATOMS["CdI2-1T"])]] * 2
    chosen = propose(batch, OneAtATime(1e-3), 0)
    assert [(name, atoms.get_chemical_formula()) for name, atoms in chosen] == [
        ("1T", "B3"),
        ("honeycomb", "Al2"),
    ]


def test_no_template_gets_the_same_elements_twice_while_others_are_left():

    def choose(count, taken):
        batch = [[("honeycomb", ATOMS["honeycomb-A"])]] * count
        return [atoms.symbols[0] for _, atoms in propose(batch, OneAtATime(0.1), 0, taken)]

    assert choose(4, ()) == ["B", "Al", "Ga", "B"]  # by L_target, and from the best again when none is left
    assert choose(2, {("honeycomb", "B")}) == ["Al", "Ga"] and choose(1, {("other", "B")}) == ["B"]
