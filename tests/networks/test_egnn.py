"""DenoisingEGNN: neighbours against ASE, symmetries far below the 1e-5 of the contract, and heads blind to
the condition.
"""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from data.build.prototypes import PROTOTYPES
from models.networks.egnn import CONDITIONS, DenoisingEGNN, neighbours
from models.networks.layers import MASK, Layers, layers_of, reduction

TOLERANCE = 1e-7  # in float64; the contract asks for 1e-5
ATOMS = {p.name: p.atoms() for p in PROTOTYPES}
NAMES = ["graphene", "MoS2-2H", "SnS", "FeOCl", "MnBi2Te4", "PdSe2-penta", "CrI3"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def double(layers: Layers) -> Layers:
    return layers.replace(
        frac_coords=layers.frac_coords.double(), z=layers.z.double(), cell=layers.cell.double()
    )


def one(name, rattle=0.15, seed=0) -> Layers:
    """One layer in float64, rattled by `rattle` Å so that no symmetry is left."""
    layers = double(layers_of([ATOMS[name]]))
    generator = torch.Generator().manual_seed(seed)
    noise = rattle * torch.randn(*layers.z.shape, 3, generator=generator, dtype=torch.float64)
    frac = layers.frac_coords + noise[..., :2] @ torch.linalg.inv(layers.cell)
    return layers.replace(frac_coords=frac, z=layers.z + noise[..., 2])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DenoisingEGNN(channels=24, vectors=6, trunk=2, conditional=2, neighbours=14).double().eval()
    for parameter in model.parameters():  # larger weights than at the start, so that every term counts
        if parameter.dim() > 1:
            parameter.data *= 1.5
    return model


def run(model, layers: Layers, conditions=(0.1, 0.05, 1.0), t=0.4):
    count = len(layers)
    lattice = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64).repeat(count, 1)
    given = torch.tensor([conditions], dtype=torch.float64).repeat(count, 1)
    with torch.no_grad():
        return model(layers, torch.full((count,), t, dtype=torch.float64), lattice, given)


def stacked(out, channel):
    """A channel of what the model says, as one tensor."""
    value = getattr(out, channel)
    return value.stacked() if channel == "properties" else value


def close(a, b, atol=TOLERANCE):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def rotation(degrees):
    a = np.radians(degrees)
    return torch.tensor([[[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]])


def skew(layers: Layers, matrix) -> Layers:
    """The same crystal on other lattice rows, matrix @ cell."""
    matrix = torch.tensor([matrix], dtype=torch.float64)
    return layers.replace(
        cell=matrix @ layers.cell, frac_coords=layers.frac_coords @ torch.linalg.inv(matrix)
    )


def doubled(layers: Layers, axis=0) -> Layers:
    """The 2x1 (axis 0) or 1x2 (axis 1) supercell; atoms 0..N-1 and their copies N..2N-1."""
    scale, step = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    scale[axis], step[axis] = 2.0, 1.0
    twice = lambda x: torch.cat([x, x], 1)
    frac = torch.cat([layers.frac_coords, layers.frac_coords + step], 1) / scale
    cell = scale[:, None] * layers.cell
    return Layers(
        twice(layers.atomic_numbers), twice(layers.slots), frac, twice(layers.z), cell, twice(layers.mask)
    )


def lone_atom(b=2.6, gamma=100.0):
    """One atom a cell: every neighbour is its own image."""
    a = np.radians(gamma)
    return Atoms(
        "Cu",
        positions=[[0.3, 0.4, 7.0]],
        cell=[[2.5, 0, 0], [b * np.cos(a), b * np.sin(a), 0], [0, 0, 15]],
        pbc=(1, 1, 0),
    )


# --- neighbours against ASE


def assert_nearest(layers: Layers, k):
    index, vectors, weight = neighbours(layers, k)
    cell = np.diag([0.0, 0.0, 40.0])
    cell[:2, :2] = layers.cell[0]
    positions = torch.cat([layers.frac_coords[0] @ layers.cell[0], layers.z[0, :, None]], -1)
    atoms = Atoms(layers.atomic_numbers[0].numpy(), positions.numpy(), cell=cell, pbc=(1, 1, 0))
    distances = vectors[0].norm(dim=-1).numpy()
    i, j, d, arrow = neighbor_list("ijdD", atoms, float(distances.max()) + 1.0)
    for atom in range(len(atoms)):
        mine = i == atom
        order = np.argsort(d[mine])
        expected, others, arrows = d[mine][order], j[mine][order], arrow[mine][order]
        np.testing.assert_allclose(distances[atom], expected[:k], atol=1e-6)
        cut = np.sqrt(expected[k] ** 2 + 1e-6)
        ratio = np.sqrt(expected[:k] ** 2 + 1e-6) / cut
        np.testing.assert_allclose(weight[0, atom], 0.5 * (np.cos(np.pi * ratio) + 1), atol=1e-6)
        found = set()
        for neighbour, vector in zip(index[0, atom].tolist(), vectors[0, atom].numpy()):
            match = np.flatnonzero((others == neighbour) & (np.abs(arrows - vector).max(1) < 1e-6))
            assert len(match) == 1, f"{neighbour} at {vector} is no neighbour of {atom}"
            found.add(int(match[0]))
        assert len(found) == k  # no image twice
        assert set(np.flatnonzero(expected < expected[k] - 1e-6)) <= found  # no nearer image left out


@pytest.mark.parametrize("rattle", [0.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_neighbours_are_those_of_ase(name, rattle):
    assert_nearest(one(name, rattle), 20)


SKEWED = [
    [[1, 1], [0, 1]],
    [[1, 0], [-1, 1]],
    [[2, 1], [1, 1]],
    [[0, 1], [1, 0]],
    [[1, 0], [4, 1]],  # b + 4a: the nearest images are not among −3 … 3 of these rows
    [[1, -7], [0, 1]],
    [[8, 5], [11, 7]],
]


@pytest.mark.parametrize("name", ["MoS2-2H", "SnS"])
@pytest.mark.parametrize("matrix", SKEWED)
def test_neighbours_in_skewed_cells(matrix, name):
    assert_nearest(skew(one(name), matrix), 20)


def test_reduction_gives_a_short_basis_of_the_same_lattice():
    generator = torch.Generator().manual_seed(0)
    cell = torch.randn(500, 2, 2, generator=generator, dtype=torch.float64)
    cell = cell[torch.linalg.det(cell).abs() > 0.05]
    skews = torch.tensor([SKEWED[k % len(SKEWED)] for k in range(len(cell))], dtype=torch.float64)
    basis = reduction(skews @ cell)
    assert (basis == basis.round()).all() and (torch.linalg.det(basis).abs().round() == 1).all()
    a, b = (basis @ skews @ cell).unbind(1)
    shortest = torch.minimum((a * a).sum(-1), (b * b).sum(-1))
    assert ((a * b).sum(-1).abs() <= 0.501 * shortest + 1e-9).all()
    again = reduction(basis @ skews @ cell)
    assert (again == torch.eye(2, dtype=torch.float64)).all()


@pytest.mark.parametrize("b, gamma", [(2.6, 100), (2.5, 120), (2.5, 60), (4.0, 90)])
def test_a_lone_atom_sees_its_own_images(b, gamma):
    layers = double(layers_of([lone_atom(b, gamma)]))
    assert_nearest(layers, 20)
    assert (neighbours(layers, 20)[0] == 0).all()


def test_neighbours_in_a_supercell_and_with_atoms_outside_the_cell():
    layers = doubled(one("MoS2-2H"))
    assert_nearest(layers, 20)
    shifted = layers.replace(frac_coords=layers.frac_coords + torch.tensor([3.0, -2.0], dtype=torch.float64))
    assert_nearest(shifted, 20)


def test_the_envelope_hides_a_broken_tie():
    """At the (K+1)-th distance the weight is zero, so it does not matter which tied image was taken."""
    layers = one("graphene", rattle=0.0)  # shells of 3, 6, 3, 6, ...: K = 5 cuts through the second
    _, vectors, weight = neighbours(layers, 5)
    assert (weight[0, :, 3:].abs() < 1e-9).all() and (weight[0, :, :3] > 0.1).all()
    close(vectors[0, :, :3].norm(dim=-1), torch.full((2, 3), 2.5 / 3**0.5, dtype=torch.float64), 1e-5)


def test_neighbours_of_a_padded_batch_ignore_the_padding():
    batch = double(layers_of([ATOMS["graphene"], ATOMS["CrI3"]]))
    index, vectors, weight = neighbours(batch, 20)
    assert (index[0, :2] < 2).all() and (weight[0, 2:] == 0).all() and torch.isfinite(vectors).all()
    alone = neighbours(double(layers_of([ATOMS["graphene"]])), 20)
    close(vectors[0, :2].norm(dim=-1), alone[1][0].norm(dim=-1))
    close(weight[0, :2], alone[2][0])


# --- symmetries


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_alive(model, name):
    """The symmetry tests below would pass on zeros."""
    out = run(model, one(name))
    for value in (out.score, out.z, out.lattice, out.slot_logits[..., 1:MASK], stacked(out, "properties")):
        assert torch.isfinite(value).all() and value.std() > 1e-3
    other = run(model, one(name, seed=1))
    assert (stacked(other, "properties") - stacked(out, "properties")).abs().max() > 1e-4
    assert out.score.sum(1).abs().max() < 1e-12 and out.z.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("degrees", [17.0, 90.0, 211.0])
def test_rotation_about_z(model, degrees):
    layers, turn = one("FeOCl"), rotation(degrees)
    before, after = run(model, layers), run(model, layers.replace(cell=layers.cell @ turn))
    close(after.score, before.score @ turn)
    for name in ("z", "lattice", "slot_logits", "properties"):
        close(stacked(after, name), stacked(before, name))


def test_reflection_in_the_plane(model):
    layers, mirror = one("SnS"), torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))[None]
    before, after = run(model, layers), run(model, layers.replace(cell=layers.cell @ mirror))
    close(after.score, before.score @ mirror)
    for name in ("z", "lattice", "slot_logits", "properties"):
        close(stacked(after, name), stacked(before, name))


def assert_same(before, after):
    for name in ("score", "z", "lattice", "slot_logits", "properties"):
        close(stacked(after, name), stacked(before, name))


def test_translation(model):
    layers = one("MnBi2Te4")
    moved = layers.frac_coords + torch.tensor([0.37, -0.81], dtype=torch.float64)
    assert_same(run(model, layers), run(model, layers.replace(frac_coords=moved % 1.0, z=layers.z + 1.7)))


def test_choice_of_image_of_each_atom(model):
    layers = one("MoS2-2H")
    hops = torch.tensor([[[1.0, 0.0], [-2.0, 3.0], [0.0, -1.0]]], dtype=torch.float64)
    assert_same(run(model, layers), run(model, layers.replace(frac_coords=layers.frac_coords + hops)))


@pytest.mark.parametrize("name", ["FeOCl", "SnS"])
def test_mirror_in_z(model, name):
    layers = one(name)
    before, after = run(model, layers), run(model, layers.replace(z=-layers.z))
    close(after.z, -before.z)
    for channel in ("score", "lattice", "slot_logits", "properties"):
        close(stacked(after, channel), stacked(before, channel))


def test_permutation(model):
    layers = one("PdSe2-penta")
    order = torch.randperm(layers.z.shape[1], generator=torch.Generator().manual_seed(3))
    take = lambda x: x[:, order]
    mixed = layers.replace(
        atomic_numbers=take(layers.atomic_numbers),
        slots=take(layers.slots),
        frac_coords=take(layers.frac_coords),
        z=take(layers.z),
    )
    before, after = run(model, layers), run(model, mixed)
    close(after.score, take(before.score))
    close(after.z, take(before.z))
    for channel in ("lattice", "slot_logits", "properties"):
        close(stacked(after, channel), stacked(before, channel))


def test_padding(model):
    names = ["graphene", "CrI3", "MoS2-2H", "FeOCl"]
    batch = double(layers_of([ATOMS[name] for name in names]))
    together = run(model, batch)
    for k, name in enumerate(names):
        alone = run(model, double(layers_of([ATOMS[name]])))
        n, slots = len(ATOMS[name]), alone.slot_logits.shape[1]
        close(together.score[k, :n], alone.score[0])
        close(together.z[k, :n], alone.z[0])
        close(together.lattice[k], alone.lattice[0])
        close(stacked(together, "properties")[k], stacked(alone, "properties")[0])
        close(together.slot_logits[k, :slots], alone.slot_logits[0])
        assert (together.score[k, n:] == 0).all() and (together.z[k, n:] == 0).all()


@pytest.mark.parametrize("rattle", [0.0, 0.15])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["graphene", "MoS2-2H", "SnS"])
def test_supercell(model, name, axis, rattle):
    layers = one(name, rattle)
    before, after = run(model, layers), run(model, doubled(layers, axis))
    close(after.score, torch.cat([before.score] * 2, 1))
    close(after.z, torch.cat([before.z] * 2, 1))
    close(stacked(after, "properties"), stacked(before, "properties"))
    close(after.slot_logits, before.slot_logits)


def test_supercell_of_a_lone_atom(model):
    layers = double(layers_of([lone_atom()]))
    close(run(model, doubled(layers)).properties.stacked(), run(model, layers).properties.stacked())


@pytest.mark.parametrize("rattle", [0.0, 0.15])
@pytest.mark.parametrize("matrix", [[[1, 1], [0, 1]], [[1, 0], [-1, 1]], [[0, -1], [1, 0]], [[2, 1], [1, 1]]])
def test_change_of_basis(model, matrix, rattle):
    layers = one("MoS2-2H", rattle)
    before, after = run(model, layers), run(model, skew(layers, matrix))
    for channel in ("score", "z", "slot_logits", "properties"):
        close(stacked(after, channel), stacked(before, channel))


def test_it_is_a_smooth_function_of_the_atoms(model):
    """No jump where a neighbour enters: the largest change over a fine path is of the order of the step."""
    layers, values = one("MoS2-2H"), []
    for x in torch.linspace(0, 0.4, 400, dtype=torch.float64):
        frac = layers.frac_coords.clone()
        frac[0, 1, 0] += x
        out = run(model, layers.replace(frac_coords=frac))
        values.append(torch.cat([out.score.flatten(), out.z.flatten(), out.properties.stacked().flatten()]))
    jumps = torch.stack(values).diff(dim=0).abs().amax(1)
    assert jumps.max() < 20 * jumps.median() and jumps.max() < 0.1


# --- conditions


def test_property_heads_do_not_see_the_condition(model):
    layers = one("FeOCl")
    first, second = run(model, layers, (0.0, 0.0, 1.0)), run(model, layers, (1.5, -0.7, 0.0))
    assert torch.equal(first.properties.stacked(), second.properties.stacked())
    for channel in ("score", "z", "lattice", "slot_logits"):
        assert (getattr(first, channel) - getattr(second, channel)).abs().max() > 1e-4, channel
    time = torch.full((1,), 0.4, dtype=torch.float64)
    close(model.properties(layers, time).stacked(), first.properties.stacked(), 0)


def test_gradients_of_the_heads_reach_the_structure_and_not_the_condition(model):
    layers = one("FeOCl")
    given = torch.tensor([[0.1, 0.05, 1.0]], dtype=torch.float64, requires_grad=True)
    z, frac = layers.z.clone().requires_grad_(), layers.frac_coords.clone().requires_grad_()
    cell = layers.cell.clone().requires_grad_()
    time, lattice = torch.full((1,), 0.4, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    out = model(layers.replace(z=z, frac_coords=frac, cell=cell), time, lattice, given)
    to_condition, *to_structure = torch.autograd.grad(
        out.properties.stacked().sum(), (given, z, frac, cell), allow_unused=True, retain_graph=True
    )
    assert to_condition is None or not to_condition.any()
    assert all(g.abs().max() > 1e-5 for g in to_structure)
    assert torch.autograd.grad(out.z.square().sum(), given)[0].abs().min() > 0
    embeddings = [p for c in model.conditions for p in c.parameters()]
    assert all(
        g is None for g in torch.autograd.grad(out.properties.stacked().sum(), embeddings, allow_unused=True)
    )


def test_the_gradient_of_the_heads_is_right(model):
    """Finite differences in z and along x, and no net force along z."""
    layers = one("SnS")
    time = torch.full((1,), 0.4, dtype=torch.float64)
    z = layers.z.clone().requires_grad_()
    gradient = torch.autograd.grad(model.properties(layers.replace(z=z), time).delta_g_h[0], z)[0]
    assert gradient.sum().abs() < 1e-10
    for atom in range(2):
        step = torch.zeros_like(layers.z)
        step[0, atom] = 1e-5
        up, down = (
            model.properties(layers.replace(z=layers.z + s * step), time).delta_g_h[0] for s in (1, -1)
        )
        assert abs((up - down).item() / 2e-5 - gradient[0, atom].item()) < 1e-6


def test_a_relaxed_one_hot_is_the_atomic_number_and_its_gradient_is_right(model):
    """Heads of one-hot slots are those of the numbers; the gradient on the weights against finite
    differences.
    """
    layers = one("FeOCl")
    time = torch.full((1,), 0.4, dtype=torch.float64)
    slots = int(layers.slots.max()) + 1
    numbers = torch.stack([layers.atomic_numbers[0, layers.slots[0] == s][0] for s in range(slots)])
    weights = torch.nn.functional.one_hot(numbers, 120).double()[None].requires_grad_()
    heads = model.properties(layers, time, weights)
    close(heads.stacked(), model.properties(layers, time).stacked())
    gradient = torch.autograd.grad(heads.delta_g_h.sum(), weights)[0]
    for slot, element in ((0, 8), (1, 42), (2, 16)):
        step = torch.zeros_like(weights)
        step[0, slot, element] = 1e-5
        up, down = (model.properties(layers, time, weights + s * step).delta_g_h[0] for s in (1, -1))
        assert abs((up - down).item() / 2e-5 - gradient[0, slot, element].item()) < 1e-6


def test_each_condition_has_its_own_learned_null(model):
    layers = one("FeOCl")
    nothing = run(model, layers, (np.nan,) * 3)
    with torch.no_grad():
        absent = model(
            layers,
            torch.full((1,), 0.4, dtype=torch.float64),
            torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64),
        )
    assert_same(nothing, absent)  # None is "none given"
    for k, name in enumerate(CONDITIONS):
        zero = [np.nan] * 3
        zero[k] = 0.0
        assert (run(model, layers, zero).z - nothing.z).abs().max() > 1e-5, f"0.0 passes for no {name}"
        null = model.conditions[k].null
        saved = null.data.clone()
        null.data += 0.5
        assert (
            run(model, layers, (np.nan,) * 3).z - nothing.z
        ).abs().max() > 1e-5  # the null is what is used
        null.data = saved
    given = run(model, layers, (0.1, 0.05, 1.0))
    saved = [c.null.data.clone() for c in model.conditions]
    for condition in model.conditions:
        condition.null.data += 0.5
    assert_same(given, run(model, layers, (0.1, 0.05, 1.0)))  # only where nothing is given
    for condition, null in zip(model.conditions, saved):
        condition.null.data = null


def test_unknown_conditions_do_not_poison_the_gradient(model):
    layers = one("graphene")
    given = torch.tensor([[np.nan, 0.05, np.nan]], dtype=torch.float64)
    out = model(
        layers, torch.full((1,), 0.4, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64), given
    )
    model.zero_grad()
    (out.score.sum() + out.z.square().sum() + out.lattice.sum()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.conditions[0].null.grad.abs().sum() > 0 and not model.conditions[1].null.grad.any()
    model.zero_grad()


def test_slots_are_never_the_mask_or_the_padding(model):
    probabilities = run(model, one("FeOCl")).slot_logits.softmax(-1)
    assert probabilities[..., 0].max() == 0 and probabilities[..., MASK].max() == 0
