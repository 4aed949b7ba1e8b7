"""The forward process and the joint loss against brute force, autograd and statistics."""

import math

import numpy as np
import pytest
import torch

from models.networks.diffusion import (
    EMPHASIS,
    MAX_E_HULL,
    SHOWN,
    Z_SPREAD,
    Diffusion,
    Noised,
    channel_losses,
    joint_loss,
    mask_slots,
    mean_free,
    off_equilibrium_loss,
    property_losses,
    wrapped_normal_score,
)
from models.networks.egnn import Denoised, DenoisingEGNN, Heads
from models.networks.layers import MASK, Labels, Layers
from models.networks.settings import LOSS_WEIGHTS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plane(a, b, gamma):
    angle = math.radians(gamma)
    return torch.tensor([[a, 0.0], [b * math.cos(angle), b * math.sin(angle)]], dtype=torch.float64)


CELLS = {
    "square": plane(3.0, 3.0, 90),
    "hexagonal": plane(3.2, 3.2, 120),
    "skewed": plane(3.0, 4.5, 150),
    "very skewed": plane(3.0, 12.0, 160),
    "1:4": plane(3.0, 12.0, 90),
    "1:6": plane(3.0, 18.0, 95),
    "1:8": plane(2.5, 20.0, 90),
    "left-handed": plane(3.0, 4.0, -70),
}
SIGMAS = [0.05, 0.2, 0.5, 1.0, 1.5, 1.8, 2.2, 3.0, 5.0, 8.0]


def log_density(displacement, sigma, cell, reach=40):
    """log Σ_R exp(−|d + R|² / 2σ²) [N] by brute force over (2·reach + 1)² images."""
    span = torch.arange(-reach, reach + 1, dtype=torch.float64)
    images = displacement[:, None] + torch.cartesian_prod(span, span) @ cell
    return torch.logsumexp(-(images**2).sum(-1) / (2 * sigma**2), 1)


def batch(cell, count=1, atoms=3, seed=0) -> Layers:
    """`count` copies of a layer of `atoms` atoms in two slots."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.tensor([42] + [16] * (atoms - 1))
    return Layers(
        numbers.repeat(count, 1),
        (numbers == 42).long().repeat(count, 1),
        torch.rand(atoms, 2, generator=generator, dtype=cell.dtype).repeat(count, 1, 1),
        (1.5 * torch.randn(atoms, generator=generator, dtype=cell.dtype)).repeat(count, 1),
        cell.repeat(count, 1, 1),
        torch.ones(count, atoms, dtype=torch.bool),
    )


def test_random_times_are_stratified_and_denser_in_the_middle():
    d = Diffusion()
    drawn = lambda count, seed: d.random_times(count, torch.Generator().manual_seed(seed))
    assert drawn(500, 0).tolist() != sorted(drawn(500, 0).tolist())
    apart = (drawn(500, 0).sort().values - drawn(500, 1).sort().values).abs()
    assert apart.max() <= 2 * (1 + EMPHASIS) + 1  # the k-th lies in the k-th part, whatever the seed
    many = torch.cat([drawn(7, seed) for seed in range(3000)]).float()
    assert many.min() == 1 and many.max() == d.steps and many.mean().item() == pytest.approx(500.5, abs=5)
    for centre, density in ((500, 1 / (1 - EMPHASIS)), (30, 1 / (1 + EMPHASIS)), (970, 1 / (1 + EMPHASIS))):
        assert ((many - centre).abs() < 30).float().mean().item() * 1000 / 59 == pytest.approx(
            density, rel=0.08
        )


def test_z_spread_is_that_of_the_target():
    d, generator = Diffusion(), torch.Generator().manual_seed(0)
    z, eps = Z_SPREAD * torch.randn(20000, generator=generator), torch.randn(20000, generator=generator)
    for t in (1, 400, 700, 1000):
        abar = d.alphas_cumprod[t]
        assert d.z_spread(torch.tensor([t])).item() == pytest.approx(
            (abar.sqrt() * eps - (1 - abar).sqrt() * z).std().item(), rel=0.02
        )


def test_off_equilibrium_loss_by_hand_and_for_the_property_heads_alone():
    """Labels above MAX_E_HULL count as that; the square below 0.1 eV/atom, the distance beyond; nothing but
    trunk and heads learns.
    """
    model, layers = small_model(), batch(CELLS["hexagonal"].float(), 6)
    predicted = torch.tensor([0.05, 0.5, 0.9, 1.0, 1.0, 0.0])
    model.properties = lambda layers, t: Heads(0 * predicted, predicted, 0 * predicted, 0 * predicted)
    labels = torch.tensor([0.0, 0.0, MAX_E_HULL, 1.0, 7.0, 0.0])
    found = off_equilibrium_loss(model, Diffusion(), layers, labels, torch.Generator().manual_seed(0))
    assert found.item() == pytest.approx(
        (0.5 * 0.05**2 / 0.1 + (0.5 - 0.05) + (0.1 - 0.05) + 0 + 0 + 0) / 6, abs=1e-6
    )
    model = small_model()
    off_equilibrium_loss(model, Diffusion(), layers, labels, torch.Generator().manual_seed(0)).backward()
    moved = {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert {"heads", "trunk"} <= moved and not moved & {
        "conditional",
        "conditions",
        "lattice",
        "vector_gates",
        "slot",
    }


# --- the wrapped normal


@pytest.mark.parametrize("name", CELLS)
def test_wrapped_normal_score_is_the_gradient_of_the_log_density(name):
    cell, generator = CELLS[name], torch.Generator().manual_seed(1)
    for sigma in SIGMAS:
        displacement = (
            (torch.rand(40, 2, generator=generator, dtype=torch.float64) - 0.5) @ cell * 2
        ).requires_grad_()
        expected = sigma * torch.autograd.grad(log_density(displacement, sigma, cell).sum(), displacement)[0]
        found = wrapped_normal_score(
            displacement.detach()[None], torch.tensor([sigma], dtype=torch.float64), cell[None]
        )[0]
        torch.testing.assert_close(
            found, expected, atol=2e-6, rtol=1e-6, msg=lambda m, s=sigma: f"{name}, σ = {s}: {m}"
        )


@pytest.mark.parametrize("name", ["hexagonal", "skewed", "1:6"])
def test_wrapped_normal_score_is_the_mean_over_images_by_hand(name):
    """A loop in numpy, no torch: −Σ w_R (d + R) / σ with w_R the share of image R."""
    cell = CELLS[name].numpy()
    for sigma in (0.3, 1.4, 3.0):
        d = np.array([0.31, -0.22]) @ cell
        weights, pull = 0.0, np.zeros(2)
        for n in range(-30, 31):
            for m in range(-30, 31):
                image = d + n * cell[0] + m * cell[1]
                w = math.exp(-(image @ image) / (2 * sigma**2))
                weights, pull = weights + w, pull - w * image / sigma
        found = wrapped_normal_score(
            torch.tensor(d)[None, None], torch.tensor([sigma]).double(), CELLS[name][None]
        )[0, 0]
        np.testing.assert_allclose(found, pull / weights, atol=2e-6)


@pytest.mark.parametrize("name", CELLS)
def test_wrapped_normal_score_does_not_jump_between_its_two_sums(name):
    sigma = torch.exp(torch.linspace(math.log(0.05), math.log(8.0), 2000, dtype=torch.float64))
    d = (torch.tensor([[0.42, 0.37], [0.5, 0.49], [0.13, -0.4]], dtype=torch.float64) @ CELLS[name]).expand(
        len(sigma), 3, 2
    )
    score = wrapped_normal_score(d, sigma, CELLS[name].expand(len(sigma), 2, 2))
    smooth = score.diff(dim=0).diff(dim=0).flatten(1).abs().amax(1)
    around = torch.stack([smooth[:-4], smooth[4:]]).amax(0) + 1e-6
    assert (smooth[2:-2] < 3 * around + 1e-5).all()


@pytest.mark.parametrize("name", CELLS)
def test_wrapped_normal_score_holds_in_float32(name):
    cell = CELLS[name]
    d = (torch.rand(200, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 0.5) @ cell
    for sigma in SIGMAS:
        args = d[None], torch.tensor([sigma], dtype=torch.float64), cell[None]
        single = wrapped_normal_score(*(x.float() for x in args)).double()
        torch.testing.assert_close(single, wrapped_normal_score(*args), atol=5e-3, rtol=5e-3)


def test_wrapped_normal_score_depends_on_the_lattice_not_on_its_basis_or_image():
    cell, generator = CELLS["hexagonal"], torch.Generator().manual_seed(3)
    d = torch.rand(1, 20, 2, generator=generator, dtype=torch.float64) @ cell
    for sigma in (0.4, 1.3, 2.5):
        s = torch.tensor([sigma], dtype=torch.float64)
        first = wrapped_normal_score(d, s, cell[None])
        for matrix in ([[1, 1], [0, 1]], [[3, 2], [4, 3]], [[0, 1], [1, 0]]):
            other = torch.tensor(matrix, dtype=torch.float64) @ cell
            torch.testing.assert_close(
                wrapped_normal_score(d + 3 * cell[0] - 5 * cell[1], s, other[None]), first, atol=1e-6, rtol=0
            )


def test_wrapped_normal_score_limits():
    cell = CELLS["skewed"][None]
    d = torch.tensor([[[0.02, -0.05], [0.1, 0.03]]], dtype=torch.float64)
    narrow = wrapped_normal_score(d, torch.tensor([0.05], dtype=torch.float64), cell)
    torch.testing.assert_close(narrow, -d / 0.05, atol=1e-9, rtol=0)  # a plain normal,
    assert (
        wrapped_normal_score(d, torch.tensor([8.0], dtype=torch.float64), cell).abs().max() < 1e-6
    )  # and a uniform one
    assert (
        wrapped_normal_score(cell.sum(1, keepdim=True) / 2, torch.tensor([0.7], dtype=torch.float64), cell)
        .abs()
        .max()
        < 1e-8
    )


# --- lattice and schedule


def test_lattice_round_trip_recovers_the_metric():
    generator = torch.Generator().manual_seed(0)
    diffusion = Diffusion(lattice_mean=(0.5, 0.7, -0.1), lattice_std=(0.2, 0.3, 0.1)).double()
    cell = 2 * torch.randn(300, 2, 2, generator=generator, dtype=torch.float64) + 3 * torch.eye(
        2, dtype=torch.float64
    )
    cell = torch.cat([cell[torch.linalg.det(cell).abs() > 0.5], torch.stack(list(CELLS.values()))])
    count = torch.randint(1, 21, (len(cell),), generator=generator)
    code = diffusion.encode_lattice(cell, count)
    back = diffusion.decode_lattice(code, count)
    torch.testing.assert_close(back @ back.mT, cell @ cell.mT, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(back, back.mT)
    assert (torch.linalg.det(back) > 0).all()
    turn = plane(1.0, 1.0, 90) @ torch.tensor(
        [[math.cos(1), math.sin(1)], [-math.sin(1), math.cos(1)]], dtype=torch.float64
    )
    torch.testing.assert_close(
        diffusion.encode_lattice(cell @ turn, count), code, atol=1e-8, rtol=0
    )  # rotation-invariant
    bigger = diffusion.encode_lattice(2**0.5 * cell, 2 * count)
    torch.testing.assert_close(bigger, code, atol=1e-8, rtol=0)  # the area of an atom, not of the cell


def test_lattice_of_a_known_cell_by_hand():
    """A 3 x 4 rectangle with 2 atoms: S = diag(ln 3, ln 4), less ½ ln 2."""
    code = (
        Diffusion()
        .double()
        .encode_lattice(torch.diag(torch.tensor([3.0, 4.0]).double())[None], torch.tensor([2]))
    )
    expected = torch.tensor(
        [[math.log(3) - 0.5 * math.log(2), math.log(4) - 0.5 * math.log(2), 0.0]], dtype=torch.float64
    )
    torch.testing.assert_close(code, expected)


def test_schedule_identities():
    d = Diffusion(steps=1000, sigma_min=0.01, sigma_max=8.0)
    sigmas, abar, betas = d.sigmas.double(), d.alphas_cumprod.double(), d.betas.double()
    assert len(sigmas) == 1001 and sigmas[0] == 0 and abar[0] == 1
    assert sigmas[1].item() == pytest.approx(0.01, rel=1e-5) and sigmas[-1].item() == pytest.approx(
        8.0, rel=1e-5
    )
    ratio = sigmas[2:] / sigmas[1:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 800 ** (1 / 999)), atol=1e-5, rtol=0)
    torch.testing.assert_close(abar, 1 / (1 + sigmas**2), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.cumprod(1 - betas, 0), abar[1:], atol=1e-4, rtol=1e-3)
    assert (betas > 0).all() and (betas < 1).all() and (abar.diff() < 0).all()
    for t, s in (
        (1000, 980),
        (500, 300),
        (20, 0),
        (1, 0),
    ):  # α' of a long step is the product of the α it jumps over
        assert (abar[t] / abar[s]).item() == pytest.approx((1 - betas[s:t]).prod().item(), rel=1e-3)
    assert d.time(torch.tensor([1000])).item() == 1 and d.steps == 1000


# --- forward noise


def in_cell(displacement, cell):
    frac = displacement @ torch.linalg.inv(cell)
    return (frac - frac.round()) @ cell


@pytest.mark.parametrize("t", [300, 620])
def test_forward_noise_has_the_statistics_it_claims(t):
    count, atoms = 6000, 3
    layers = batch(CELLS["skewed"].float(), count, atoms)
    d = Diffusion(lattice_mean=(0.9, 0.9, -0.3), lattice_std=(0.2, 0.3, 0.1))
    noised, lattice, score, v_z, v_lattice = d.noise(
        layers, torch.full((count,), t), torch.Generator().manual_seed(5)
    )
    sigma = d.sigmas[t].item()
    a, b = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5
    assert noised.frac_coords.min() >= 0 and noised.frac_coords.max() <= 1
    torch.testing.assert_close(noised.cell, d.decode_lattice(lattice, torch.full((count,), atoms)))

    # z: mean-free, around a z_0, variance b² (1 − 1/N) an atom
    assert noised.z.sum(1).abs().max() < 1e-4
    rest = noised.z - a * (layers.z - layers.z.mean(1, keepdim=True))
    assert rest.mean(0).abs().max() < 5 * b / count**0.5
    assert rest.var().item() == pytest.approx(b**2 * (1 - 1 / atoms), rel=0.04)

    # lattice: around a L_0, variance b², components independent
    rest_l = lattice - a * d.encode_lattice(layers.cell, torch.full((count,), atoms))
    assert rest_l.mean(0).abs().max() < 5 * b / count**0.5
    np.testing.assert_allclose(np.cov(rest_l.T.numpy()), b**2 * np.eye(3), atol=0.08 * b**2)

    # coordinates: isotropic in Å of the noised cell, and the same for every atom
    if sigma < 0.2:
        walk = in_cell((noised.frac_coords - layers.frac_coords) @ noised.cell, noised.cell)
        for atom in range(atoms):
            np.testing.assert_allclose(
                np.cov(walk[:, atom].T.numpy()), sigma**2 * np.eye(2), atol=0.08 * sigma**2
            )
        plain = -walk / sigma  # no wrapping yet: σ·score is minus the standard noise, less its mean
        torch.testing.assert_close(score, plain - plain.mean(1, keepdim=True), atol=2e-3, rtol=0)
    assert score.sum(1).abs().max() < 1e-3

    # ε from v: against the definition x_t = a x_0 + b ε
    index = torch.full((count,), t)
    torch.testing.assert_close(d.epsilon(v_z, noised.z, index), rest / b, atol=2e-4, rtol=0)
    torch.testing.assert_close(d.epsilon(v_lattice, lattice, index), rest_l / b, atol=2e-4, rtol=0)


def test_isotropic_in_angstrom_and_wrapped_in_an_elongated_cell():
    """σ of 1 Å in a cell of 3 x 18 Å: the cosine of each reciprocal direction decays as exp(−|G|² σ² / 2)."""
    count, cell = 8000, CELLS["1:6"].float()
    layers = batch(cell, count, 1)
    d = Diffusion(
        lattice_std=(1e-5,) * 3, lattice_mean=Diffusion().encode_lattice(cell[None], torch.tensor([1]))[0]
    )
    t = int((d.sigmas - 1.0).abs().argmin())
    noised = d.noise(layers, torch.full((count,), t), torch.Generator().manual_seed(0)).layers
    moved = (noised.frac_coords - layers.frac_coords)[:, 0]
    for n in ([1, 0], [0, 1], [0, 3], [1, 1]):
        g = 2 * math.pi * torch.linalg.inv(cell) @ torch.tensor(n).float()
        found = torch.cos(2 * math.pi * moved @ torch.tensor(n).float()).mean().item()
        assert found == pytest.approx(math.exp(-(g @ g).item() / 2), abs=0.03)


def test_forward_noise_leaves_padding_alone_and_keeps_templates():
    short, long = batch(CELLS["square"].float(), 1, 2), batch(CELLS["square"].float(), 1, 4)
    pad = lambda x, y: torch.cat([torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, 2)), y])
    names = ("atomic_numbers", "slots", "frac_coords", "z", "mask")
    both = Layers(
        **{n: pad(getattr(short, n), getattr(long, n)) for n in names},
        cell=torch.cat([short.cell, long.cell]),
    )
    d = Diffusion(lattice_mean=(0.5, 0.5, 0), lattice_std=(0.2,) * 3)
    noised, _, score, v_z, _ = d.noise(both, torch.tensor([700, 700]), torch.Generator().manual_seed(0))
    assert (
        not noised.frac_coords[0, 2:].any()
        and not noised.z[0, 2:].any()
        and not score[0, 2:].any()
        and not v_z[0, 2:].any()
    )
    assert abs(noised.z[0, :2].sum()) < 1e-6
    calm = d.noise(both, torch.tensor([0, 0]), torch.Generator().manual_seed(0))[
        0
    ]  # t = 0 is the data itself
    torch.testing.assert_close(calm.frac_coords, both.frac_coords, atol=1e-6, rtol=0)
    torch.testing.assert_close(calm.z, mean_free(both.z, both.mask.float()), atol=1e-6, rtol=0)
    torch.testing.assert_close(calm.cell @ calm.cell.mT, both.cell @ both.cell.mT, atol=1e-4, rtol=0)


# --- slots and losses


def test_mask_slots_hides_whole_slots_only():
    count = 4000
    layers = batch(CELLS["square"].float(), count, 5)
    layers.slots[:, 3:] = 2
    layers.atomic_numbers[:, 3:] = 8
    layers.mask[: count // 2, 4] = False
    layers.atomic_numbers[: count // 2, 4] = 0
    layers.slots[: count // 2, 4] = 0  # padding points to slot 0, as models.networks.layers.pad leaves it
    masked = mask_slots(layers, torch.Generator().manual_seed(0))
    hidden = masked.atomic_numbers == MASK
    assert not (hidden & ~layers.mask).any()
    assert torch.equal(masked.atomic_numbers[~hidden], layers.atomic_numbers[~hidden])
    for slot in range(3):
        member = (layers.slots == slot) & layers.mask
        share = (hidden & member).sum(1) / member.sum(1)
        assert ((share == 0) | (share == 1)).all()
        assert share.mean().item() == pytest.approx(0.5 * (1 - SHOWN), abs=0.03)
    three = torch.stack([hidden[count // 2 :, k] for k in (0, 1, 3)], 1).sum(1)
    often = 0.25 * (1 - SHOWN) + SHOWN * np.eye(4)[0]  # where anything may hide, 0..3 equally often
    np.testing.assert_allclose(torch.bincount(three, minlength=4) / len(three), often, atol=0.03)
    for name in ("slots", "frac_coords", "z", "cell", "mask"):
        assert torch.equal(getattr(masked, name), getattr(layers, name))


def test_property_losses_by_hand_and_unknown_labels_count_for_nothing():
    nan = math.nan
    labels = torch.tensor(
        [[0.2, nan, 1.0, 0.1], [nan, 0.1, nan, 0.3], [-0.4, 0.3, 0.0, nan], [nan, nan, nan, nan]]
    )
    predicted = torch.tensor(
        [[0.5, 9.0, 2.0, 0.2], [9.0, 0.4, 9.0, 0.7], [0.1, 0.1, -1.0, 9.0], [9.0, 9.0, 9.0, 9.0]],
        requires_grad=True,
    )
    losses = lambda predicted, labels: property_losses(Heads(*predicted.T), Labels(*labels.T))
    terms = losses(predicted, labels)
    assert terms["delta_g_h"].item() == pytest.approx((0.3 + 0.5) / 2)
    assert terms["e_hull"].item() == pytest.approx((0.3**2 + 0.2**2) / 2)
    assert terms["delta_g_h_std"].item() == pytest.approx((0.1 + 0.4) / 2)
    assert terms["synthesizable"].item() == pytest.approx(
        (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    )
    gradient = torch.autograd.grad(sum(terms.values()), predicted)[0]
    assert (
        torch.isfinite(gradient).all()
        and not gradient[torch.isnan(labels)].any()
        and gradient[~torch.isnan(labels)].all()
    )
    other = torch.where(torch.isnan(labels), -77.0, predicted)
    assert all(torch.equal(losses(other, labels)[name], value) for name, value in terms.items())
    nothing = losses(predicted, torch.full_like(labels, nan))
    assert all(value.item() == 0 for value in nothing.values())


def test_channel_losses_by_hand():
    layers = batch(CELLS["square"], 1, 3)
    hidden = layers.replace(atomic_numbers=torch.tensor([[42, MASK, MASK]]))
    logits = torch.randn(1, 2, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score, v_z, v_lattice = torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.zeros(1, 3)
    noised = Noised(hidden, torch.zeros(1, 3), score, v_z, v_lattice)
    spread = torch.tensor([2.0])
    perfect = channel_losses(Denoised(score, v_z, v_lattice, logits, None), layers, noised, spread)
    assert all(perfect[name].item() == 0 for name in ("coordinates", "z", "lattice"))
    assert perfect["elements"].item() == pytest.approx(
        -logits[0, 0].log_softmax(-1)[16].item()
    )  # S is slot 0, hidden; Mo is shown
    wrong = Denoised(score + 0.1, v_z + 0.2, v_lattice + 0.3, logits, None)
    off = channel_losses(wrong, layers, noised, spread)
    assert [off[n].item() for n in ("coordinates", "z", "lattice")] == pytest.approx(
        [0.01, 0.04 / 2**2, 0.09]
    )
    shown = channel_losses(
        Denoised(score, v_z, v_lattice, logits, None), layers, noised._replace(layers=layers), spread
    )
    assert shown["elements"].item() == 0  # nothing hidden, nothing to say


def small_model():
    torch.manual_seed(0)
    return DenoisingEGNN(channels=16, vectors=4, trunk=1, conditional=1, neighbours=8)


def test_joint_loss_is_the_weighted_sum_of_terms_that_are_all_named():
    model, layers = small_model(), batch(CELLS["hexagonal"].float(), 6)
    labels = torch.tensor([[0.1, 0.2, 1.0, 0.1]] * 5 + [[math.nan] * 4])
    d = Diffusion(lattice_mean=(0.5, 0.5, 0), lattice_std=(0.2,) * 3)
    loss = lambda labels, weights=LOSS_WEIGHTS, drop=0.15: joint_loss(
        model, d, layers, Labels(*labels.T), weights, drop, torch.Generator().manual_seed(7)
    )
    total, terms = loss(labels)
    assert set(terms) == set(LOSS_WEIGHTS) - {"off_equilibrium"} and all(
        value.isfinite() and value > 0 for value in terms.values()
    )
    assert total.item() == pytest.approx(sum(LOSS_WEIGHTS[n] * v.item() for n, v in terms.items()), rel=1e-6)
    assert loss(labels)[0].item() == total.item()  # the generator is the only source of noise
    for name in terms:  # every weight acts on its own term
        alone = loss(labels, {n: float(n == name) for n in LOSS_WEIGHTS})[0]
        assert alone.item() == pytest.approx(terms[name].item(), rel=1e-6)

    unknown = torch.full_like(labels, math.nan)
    total, terms = loss(unknown)
    assert all(terms[name].item() == 0 for name in ("delta_g_h", "e_hull", "synthesizable", "delta_g_h_std"))
    total.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(not p.grad.any() for p in [*model.heads.parameters(), *model.uncertainty.parameters()])


def test_conditions_are_dropped_one_by_one():
    """With drop = 1 the network must not see a label; with drop = 0 it must; in between each on its own."""
    layers, seen = batch(CELLS["hexagonal"].float(), 3000), []
    labels = torch.tensor([[0.1, 0.2, 1.0, 0.3]]).repeat(3000, 1)

    class Spy:
        def __call__(self, noised, time, lattice, conditions):
            seen.append(conditions)
            zero = noised.z.sum() * 0
            return Denoised(
                noised.frac_coords * 0,
                noised.z * 0,
                lattice * 0,
                zero + torch.zeros(3000, 2, 120),
                Heads(*torch.zeros(4, 3000)),
            )

    for drop in (0.0, 1.0, 0.15):
        generator = torch.Generator().manual_seed(1)
        joint_loss(Spy(), Diffusion(), layers, Labels(*labels.T), drop=drop, generator=generator)
    assert torch.equal(seen[0], labels[:, :3]) and torch.isnan(seen[1]).all()
    gone = torch.isnan(seen[2]).double()
    np.testing.assert_allclose(gone.mean(0), 0.15, atol=0.025)
    np.testing.assert_allclose(np.corrcoef(gone.T.numpy()), np.eye(3), atol=0.08)
    assert torch.equal(seen[2][~torch.isnan(seen[2])], labels[:, :3][~torch.isnan(seen[2])])


def test_joint_loss_does_not_depend_on_padding_of_the_model_input():
    """The channel losses are means over atoms: a graph with padding counts as it does alone."""
    model = small_model().double()
    d = Diffusion(lattice_mean=(0.5, 0.5, 0), lattice_std=(0.2,) * 3)
    alone = batch(CELLS["hexagonal"].float(), 1, 3)
    noised, lattice, score, v_z, v_l = d.noise(alone, torch.tensor([400]), torch.Generator().manual_seed(0))
    pad = lambda x: torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, 2))
    widen = lambda x: x.replace(
        **{n: pad(getattr(x, n)) for n in ("atomic_numbers", "slots", "frac_coords", "z", "mask")}
    )
    as_double = lambda x: x.replace(frac_coords=x.frac_coords.double(), z=x.z.double(), cell=x.cell.double())
    results = []
    for clean, dirty, s, z in (
        (alone, noised, score, v_z),
        (widen(alone), widen(noised), pad(score), pad(v_z)),
    ):
        dirty = as_double(mask_slots(dirty, torch.Generator().manual_seed(3)))
        dirty.atomic_numbers[:, :3] = torch.tensor([42, MASK, MASK])
        out = model(dirty, torch.tensor([0.4]).double(), lattice.double())
        results.append(channel_losses(out, clean, Noised(dirty, lattice, s, z, v_l), torch.ones(1).double()))
    for name, value in results[0].items():
        assert value.item() == pytest.approx(results[1][name].item(), rel=1e-9), name
