"""Which proposal is taken (fake samplers whose L_target is known), and the model-free baselines."""

import math
from collections import Counter
from dataclasses import fields
from types import SimpleNamespace

import ase.data
import ase.geometry
import numpy as np
import pytest
import torch

from data.build.prototypes import PROTOTYPES
from models.crystals.elements import choose_elements
from models.crystals.layer import coincident, pack_atoms, reduced_formula, unpack_atoms
from models.crystals.templates import Templates
from models.evaluation.generated import summary
from models.networks import proposals
from models.networks.layers import Layers, layers_of
from models.networks.proposals import (
    COINCIDENT,
    REDRAWS,
    Generator,
    best,
    fitting,
    propose,
    random_assignment,
    sensible,
)
from models.networks.settings import GeneratorSettings, Guide

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


def test_the_random_baseline_takes_the_formula_that_is_asked_for():
    """NbSe2 in other templates of its amounts; TiNF in every order that keeps the amounts."""
    templates = Templates([("1T", ATOMS["CdI2-1T"]), ("2H", ATOMS["MoS2-2H"])])
    guide = Guide(elements=frozenset({"Nb", "Se"}))
    settings = GeneratorSettings(method="random", formula="NbSe2", guide=guide)
    rows = Generator(settings, templates).draw([[start] for start in templates.structures] * 3, 0)
    assert {reduced_formula(unpack_atoms(row["atoms"])) for row in rows} == {"NbSe2"}
    draw = lambda seed: random_assignment(ATOMS["FeOCl"], "TiNF", np.random.default_rng(seed))
    assert {draw(seed)["Fe"] for seed in range(40)} == {"Ti", "N", "F"}


def test_what_has_diverged_costs_one_row():
    layers = layers_of([ATOMS["MoS2-2H"]] * 5)
    layers.z[1, 0] = math.nan
    layers.cell[2] *= 0.01
    layers.cell[3] *= 1e4
    assert sensible(layers).tolist() == [True, False, False, False, True]
    lost = {"atoms": None, "template": "2H", "heads": [""] * 4}
    good = lost | {"atoms": pack_atoms(ATOMS["MoS2-2H"]), "heads": ["0.1", "0.1", "0.5", "0.1"]}
    assert best([lost, good, lost], 2, Guide()) == {1}


def squashed(name: str, by: float):
    """A layer with its heights scaled: at 0 its two S lie on the mirror plane between them."""
    layers = layers_of([ATOMS[name]])
    return layers.replace(z=by * layers.z)


@pytest.mark.parametrize("flat_draws, failed", [(0, False), (2, False), (REDRAWS + 1, True)])
def test_two_atoms_on_one_place_are_drawn_again_and_counted(flat_draws, failed, monkeypatch):
    """An orbit on the mirror plane: as many draws as it takes, no more than REDRAWS + 1, and no CIF of it."""
    draws, good = [], squashed("MoS2-2H", 1.0)
    flat = squashed("MoS2-2H", 0.02)  # S 0.06 Å apart

    def denoised(starts, sampler):
        draws.append(len(starts))
        first = flat if len(draws) <= flat_draws else good
        return pad_together([first] + [good] * (len(starts) - 1))

    monkeypatch.setattr(proposals, "denoised", denoised)
    sampler = SimpleNamespace(settings=GeneratorSettings())
    one, other = proposals.drawn([("2H", ATOMS["MoS2-2H"])] * 2, sampler)
    assert draws == [2] + [1] * min(flat_draws, REDRAWS)  # the other one is not drawn again
    assert (one.atoms is None) == failed and one.redrawn == min(flat_draws, REDRAWS)
    assert one.failure == (COINCIDENT if failed else "") and other.failure == "" and other.redrawn == 0
    rows = []
    for found in (one, other):
        row = {"atoms": pack_atoms(found.atoms), "template": "2H", "heads": ["0.1", "0.1", "0.5", "0.1"]}
        rows.append(row | {"failure": found.failure, "redrawn": found.redrawn})
    text = "\n".join(summary(rows, best(rows, 2, Guide()), Guide()))
    assert ("1 of 2 are not written: two atoms on one place" in text) == failed
    assert ("1 of 2 were drawn again" in text) == (flat_draws > 0)


def pad_together(layers: list) -> Layers:
    """One batch of batches of the same size of cell."""
    names = [field.name for field in fields(Layers)]
    return Layers(**{name: torch.cat([getattr(one, name) for one in layers]) for name in names})


def test_only_atoms_on_one_place_count_as_such():
    """Short bonds are the evaluator's to judge."""
    for scale, same in ((1.0, False), (0.5, False), (0.2, False), (0.05, True), (0.0, True)):
        flat = ATOMS["MoS2-2H"].copy()
        middle = flat.positions[:, 2].mean()
        flat.positions[:, 2] = middle + scale * (flat.positions[:, 2] - middle)
        assert coincident(flat) == same


def test_the_elements_that_may_be_chosen():
    database = ["Au", "Cd", "Mo", "S", "Tl"]
    assert choose_elements("database", "", database) == database
    assert choose_elements("benign", "", database) == ["Au", "Mo", "S"]
    assert choose_elements("database", "Au Tl", database) == ["Cd", "Mo", "S"]
    assert choose_elements("W,Se", "", database) == ["Se", "W"]
    assert choose_elements("any", "", database) is None
    assert "Cd" in choose_elements("any", "Au", database)
    for which, exclude, named in (("Xx", "", "Xx"), ("Mo", "Mo", "Mo"), ("Og", "", "Og"), ("any", "Q", "Q")):
        with pytest.raises(ValueError, match=named):
            choose_elements(which, exclude, database)
    with pytest.raises(ValueError, match="needs more elements"):
        fitting(Templates([("1T", ATOMS["CdI2-1T"])]), ["S"])
