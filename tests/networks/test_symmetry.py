"""Layer groups: all eighty against pyxtal's tables, projected noise, and symmetry that survives."""

import numpy as np
import pytest
import torch
from ase import Atoms
from groups import GENERAL, example, family
from layers import known
from pyxtal.symmetry import Group

from models.crystals.layer import layer_atoms
from models.crystals.matching import layer_group
from models.crystals.symmetry import layer_operations, maximal_subgroups, symmetrized
from models.networks.diffusion import Diffusion
from models.networks.egnn import DenoisingEGNN
from models.networks.layers import layers_of, to_atoms
from models.networks.proposals import denoised, hide
from models.networks.sampler import Sampler
from models.networks.settings import MISSION, GeneratorSettings
from models.networks.symmetry import Symmetry

FREE = {7: 3, 48: 2, 64: 1, 80: 1}  # parameters of such a lattice
NUMBERS = range(1, 81)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rattled(atoms: Atoms, size: float, seed: int = 0) -> Atoms:
    out = atoms.copy()
    out.positions += size * np.random.default_rng(seed).standard_normal((len(atoms), 3))
    return layer_atoms(out.numbers, out.positions, out.cell.array[:2, :2])


def broken(layers, symmetry: Symmetry) -> float:
    """Largest distance in Å between where an operation sends an atom and the atom there; the strain too."""
    worst = 0.0
    for k in range(len(layers)):
        frac, z, cell = (x[k].double() for x in (layers.frac_coords, layers.z, layers.cell))
        for g in range(int(round(1 / symmetry.share[k, 0].item()))):
            source = symmetry.sources[k, g]
            turn = symmetry.rotations[k, g].double()
            away = frac[source] @ turn.T + symmetry.translations[k, g].double() - frac
            away = ((away - away.round()) @ cell)[layers.mask[k]].abs().max()
            height = (symmetry.signs[k, g] * z[source] - z)[layers.mask[k]].abs().max()
            metric = cell @ cell.T
            strain = (turn.T @ metric @ turn - metric).abs().max() / metric.diagonal().max().sqrt()
            worst = max(worst, away.item(), height.item(), strain.item())
    return worst


# --- operations


@pytest.mark.parametrize("number", NUMBERS)
def test_operations_of_every_layer_group(number):
    atoms = example(number)
    found = layer_operations(atoms, 0.01)
    assert found.number == number and len(found) == len(Group(number, dim=2)[0].ops)
    symmetry = Symmetry.of([found], len(atoms))
    assert broken(layers_of([atoms]), symmetry) < 1e-5
    again = symmetrized(rattled(atoms, 0.01), found)
    assert layer_operations(again, 1e-4).number == number
    assert broken(layers_of([again]), symmetry) < 1e-5
    moved = again.positions - atoms.positions
    assert abs(moved - moved.mean(0)).max() < 0.06 or number < 8  # along a free direction it may slide


def test_maximal_subgroups_of_known_groups():
    """Orders of the maximal subgroups with the same translations (International Tables E)."""
    orders = lambda name: sorted(
        len(group) for group in maximal_subgroups(layer_operations(known(name), 0.01))
    )
    assert orders("1H-MoS2") == [4, 4, 4, 6, 6, 6]  # p-6m2: 3 cm2m, p-6, p3m1 …
    assert orders("1T-TiS2") == [4, 4, 4, 6, 6, 6]  # p-3m1: 3 c2/m, p-3, p321, p3m1
    assert maximal_subgroups(layer_operations(example(1), 0.01)) == []
    assert orders("graphene") == [8, 8, 8, 12, 12, 12, 12, 12, 12, 12]  # 3 cmmm, 7 of index 2


# --- noise


@pytest.mark.parametrize("number", [2, 15, 21, 37, 44, 55, 61, 72, 78])
def test_projected_noise_is_gaussian_with_the_given_variance_along_every_symmetric_direction(number):
    """Eigenvalues of the covariance: 1 for every free coordinate, else 0; and a normal's kurtosis."""
    atoms, count = example(number), 6000
    symmetry = Symmetry.of([layer_operations(atoms, 0.01)] * count, len(atoms))
    generator = torch.Generator().manual_seed(number)
    cell = layers_of([atoms]).cell
    noise = torch.randn(count, len(atoms), 2, generator=generator)
    plane = symmetry.displacements(noise @ torch.linalg.inv(cell)) @ cell
    z = symmetry.heights(torch.randn(count, len(atoms), generator=generator))
    for values, free in ((plane.flatten(1), 2 * len(GENERAL)), (z, len(GENERAL))):
        eigenvalues, vectors = torch.linalg.eigh(values.double().T.cov())
        assert (eigenvalues[:-free].abs() < 1e-5).all()
        np.testing.assert_allclose(eigenvalues[-free:], 1.0, atol=0.12)
        along = values.double() @ vectors[:, -free:]
        np.testing.assert_allclose((along**4).mean(0) / (along**2).mean(0) ** 2, 3.0, atol=0.5)
    again = symmetry.displacements(plane @ torch.linalg.inv(cell)) @ cell
    torch.testing.assert_close(again, plane, atol=1e-5, rtol=0)


def test_special_positions_have_the_free_coordinates_of_their_site():
    """1H-MoS2: nothing free in the plane, one height; the mirror plane holds Mo."""
    atoms = known("1H-MoS2")
    symmetry = Symmetry.of([layer_operations(atoms)] * 500, 3)
    generator = torch.Generator().manual_seed(0)
    assert symmetry.displacements(torch.randn(500, 3, 2, generator=generator)).abs().max() < 1e-6
    z = symmetry.heights(torch.randn(500, 3, generator=generator))
    metal = list(atoms.symbols).index("Mo")
    assert z[:, metal].abs().max() < 1e-6 and z.var() > 0.1


@pytest.mark.parametrize("number", [5, 20, 52, 78])
def test_the_lattice_keeps_its_family_and_its_noise_its_variance(number):
    atoms, count = example(number), 4000
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    symmetry = Symmetry.of([layer_operations(atoms, 0.01)] * count, len(atoms))
    size = torch.full((count,), len(atoms))
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    projected = symmetry.lattice(noise, size, d)
    cells = d.decode_lattice(projected, size)
    metric = cells @ cells.mT
    torch.testing.assert_close(symmetry.metric(metric), metric, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(symmetry.lattice(projected, size, d), projected, atol=1e-4, rtol=0)
    eigenvalues = torch.linalg.eigvalsh(projected.double().T.cov())
    free = FREE[family(number)]
    np.testing.assert_allclose(eigenvalues[-free:], 1.0, atol=0.1)
    assert (eigenvalues[: 3 - free].abs() < 1e-6).all()


def test_a_centred_cell_in_a_skewed_basis_stays_centred():
    """Basis (a, (b − a) / 2) of a centred rectangle: its invariant lattices are a curved surface."""
    centred = example(10, GENERAL[:1])
    half = Atoms(
        centred.numbers[: len(centred) // 2],
        centred.positions[: len(centred) // 2],
        cell=[[5.2, 0, 0], [-2.6, 3.45, 0], [0, 0, centred.cell[2, 2]]],
        pbc=(True, True, False),
    )
    atoms = layer_atoms(half.numbers, half.positions, half.cell.array[:2, :2])
    operations = layer_operations(atoms, 0.01)
    assert operations.group == "c2/m11"  # one orbit of c211 is this
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    symmetry, size = Symmetry.of([operations] * 500, len(atoms)), torch.full((500,), len(atoms))
    noise = 0.5 * torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    projected = symmetry.lattice(noise, size, d)
    cells = d.decode_lattice(projected, size)
    metric = cells @ cells.mT
    torch.testing.assert_close(metric[:, 0, 1], -metric[:, 0, 0] / 2, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(symmetry.lattice(projected, size, d), projected, atol=1e-3, rtol=0)
    # as near as any of a fine grid of such lattices
    a, b = torch.meshgrid(torch.linspace(0.5, 2.5, 150), torch.linspace(0.5, 3.0, 150), indexing="ij")
    p, r = a.flatten().exp(), b.flatten().exp() + a.flatten().exp() / 4
    grid = torch.stack([torch.stack([p, -p / 2], -1), torch.stack([-p / 2, r], -1)], -2).double()
    points = d.encode_metric(grid, torch.full((len(grid),), len(atoms))).float()
    nearest = torch.cdist(noise, points).amin(1)
    assert ((projected - noise).norm(dim=1) < nearest + 0.02).float().mean() > 0.98


# --- sampling


def network() -> DenoisingEGNN:
    torch.manual_seed(0)
    return DenoisingEGNN(channels=16, vectors=4, trunk=1, conditional=1, neighbours=12).eval()


def drawn(atoms: list[Atoms], start: int, steps: int, guide=MISSION, **changes):
    """Layers denoised under their own groups, and their operations."""
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    settings = GeneratorSettings(guide=guide, noise_scale=1.0, symmetry="template", **changes)
    sampler = Sampler(network(), d, settings, torch.Generator().manual_seed(0))
    symmetry = Symmetry.of([layer_operations(a, 0.01) for a in atoms], max(map(len, atoms)))
    noised, lattice = sampler.noised(layers_of(atoms), start, symmetry)
    return sampler.denoise(noised, lattice, start, steps, symmetry), symmetry


@pytest.mark.parametrize("start, step", [(1000, 1), (500, 8)])
def test_every_layer_group_survives_fifty_updates_with_full_noise(start, step):
    """One general orbit each; an untrained network, ζ at its full size; pure noise, and σ of 0.3 Å on a
    tenth.
    """
    examples = [example(number, GENERAL[:1]) for number in NUMBERS[::step]]
    end, symmetry = drawn(examples, start, 50)
    assert broken(end, symmetry) < 1e-4
    start_layers = layers_of(examples)
    assert (end.z - start_layers.z)[start_layers.mask].abs().mean() > 0.05  # it has moved


def test_symmetry_survives_guidance_and_corrector():
    guide = MISSION.__class__(cfg_scale=2.0, gradient_scale=5.0)
    examples = [known(name) for name in ("1H-MoS2", "phosphorene", "Ti2CO2", "PdSe2")]
    end, symmetry = drawn(examples, 500, 20, guide, corrector=1)
    assert broken(end, symmetry) < 1e-4
    for before, after in zip(examples, to_atoms(end)):
        assert layer_group(after, 1e-3) == layer_group(before, 0.01)


@pytest.mark.parametrize("number", [21, 55, 78])
def test_the_targets_of_symmetric_noise_lead_back_to_the_layer(number):
    """x_t + σ (σ·score) is x_0 where nothing wraps; ε of v is (x_t − √ᾱ x_0) / √(1 − ᾱ)."""
    atoms, t = example(number, GENERAL[:1]), 300
    clean, size = layers_of([atoms]), torch.tensor([len(atoms)])
    symmetry = Symmetry.of([layer_operations(atoms, 0.01)], len(atoms))
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    noised = d.noise(clean, torch.tensor([t]), torch.Generator().manual_seed(0), symmetry)
    assert broken(noised.layers, symmetry) < 1e-4
    sigma, abar = d.sigmas[t], d.alphas_cumprod[t]
    back = noised.layers.frac_coords + sigma * noised.score @ torch.linalg.inv(noised.layers.cell)
    away = back - clean.frac_coords
    away = away - away.round()
    torch.testing.assert_close(away, away.mean(1, keepdim=True).expand_as(away), atol=1e-4, rtol=0)
    index = torch.tensor([t])
    for x, v, x_0 in (
        (noised.layers.z, noised.v_z, clean.z),
        (noised.lattice, noised.v_lattice, d.encode_lattice(clean.cell, size)),
    ):
        expected = (x - abar.sqrt() * x_0) / (1 - abar).sqrt()
        torch.testing.assert_close(d.epsilon(v, x, index), expected, atol=2e-3, rtol=1e-3)


def test_noise_without_symmetry_breaks_it():
    """The tests above can fail."""
    atoms = example(78)
    symmetry = Symmetry.of([layer_operations(atoms, 0.01)], len(atoms))
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    noised = d.noise(layers_of([atoms]), torch.tensor([500]), torch.Generator().manual_seed(0))
    assert broken(noised.layers, symmetry) > 0.1


@pytest.mark.parametrize("level, formula", [(0.5, "MoS2"), (1.0, "MoS2"), (1.0, None)])
def test_without_symmetry_it_is_the_plain_sampler_to_the_bit(level, formula):
    """--symmetry none against the plain sampler's steps, written out; in a group another layer comes out."""
    d, starts = Diffusion(), [("2H", known("1H-MoS2")), ("1T", known("1T-MoS2"))]

    def drawn_with(symmetry):
        settings = GeneratorSettings(formula=formula, guide=MISSION, noise_level=level, symmetry=symmetry)
        sampler = Sampler(network(), d, settings, torch.Generator().manual_seed(3))
        return denoised(starts, sampler)

    plain = Sampler(network(), d, GeneratorSettings(guide=MISSION), torch.Generator().manual_seed(3))
    layers = layers_of([atoms for _, atoms in starts])
    if formula is None:
        layers = hide(layers)
    noised, lattice = plain.prior(layers) if level == 1 else plain.noised(layers, 500)
    expected = plain.denoise(noised, lattice, round(1000 * level), 50)
    found = drawn_with("none")
    for field in ("atomic_numbers", "frac_coords", "z", "cell"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    assert not torch.equal(drawn_with("template").frac_coords, expected.frac_coords)
