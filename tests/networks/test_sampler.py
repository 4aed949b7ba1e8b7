"""The sampler with exact scores of known Gaussians, with fake heads, and against a plain sampler written out
here.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.networks.diffusion import Diffusion, wrapped_normal_score
from models.networks.egnn import CONDITIONS, Denoised, DenoisingEGNN, Heads
from models.networks.layers import MASK, Layers
from models.networks.sampler import LANGEVIN_STEP, Sampler, kept_times
from models.networks.settings import MISSION, GeneratorSettings, Guide

ELEMENTS = (8, 16, 42)  # that the fake model draws
CELL = torch.tensor([[3.2, 0.0], [-2.0, 3.6]])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mission(**changes) -> Guide:
    """The mission's L_target; nothing guides but what is named."""
    return replace(MISSION, **changes)


def sampler_of(model, diffusion, seed=0, noise_scale=1.0, **guide) -> Sampler:
    """The full update, guided by what is named."""
    settings = GeneratorSettings(guide=mission(**guide), noise_scale=noise_scale)
    return Sampler(model, diffusion, settings, seeded(seed))


def layers_like(count, numbers=(42, 16, 16), slots=(1, 0, 0)) -> Layers:
    n = len(numbers)
    repeat = lambda row: torch.tensor(row).repeat(count, 1)
    return Layers(
        repeat(numbers),
        repeat(slots),
        torch.zeros(count, n, 2),
        torch.zeros(count, n),
        CELL.repeat(count, 1, 1),
        torch.ones(count, n, dtype=torch.bool),
    )


class Exact:
    """What a perfect network would say where the data are Gaussians of known mean and width.

    z: N(m_z, s_z²) in every mean-free mode; lattice: N(m_l, s_l²); in-plane: normal of w Å about fixed sites,
        wrapped.
    """

    sites = torch.tensor([[0.1, 0.2], [0.45, 0.8], [0.9, 0.5]])
    m_z, s_z = torch.tensor([-1.2, 0.2, 1.0]), 0.4
    m_l, s_l = torch.tensor([0.5, -0.3, 0.2]), 0.6
    width = 0.15

    def __init__(self, diffusion):
        self.diffusion, self.calls = diffusion, []

    def __call__(self, layers, time, lattice, conditions, properties=True):
        self.calls.append(conditions)
        t = (time * self.diffusion.steps).round().long()
        sigma = self.diffusion.sigmas[t][:, None]
        a, b = (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5

        def v(x, mean, spread):
            share = (x - a * mean) / (a**2 * spread**2 + b**2)
            return a * (b * share) - b * (mean + a * spread**2 * share)  # a E[ε | x] − b E[x_0 | x]

        total = (sigma**2 + self.width**2).sqrt()
        away = (layers.frac_coords - self.sites) @ layers.cell
        score = sigma[..., None] / total[..., None] * wrapped_normal_score(away, total[:, 0], layers.cell)
        logits = torch.full((len(layers), int(layers.slots.max()) + 1, 120), -1e4)
        logits[..., ELEMENTS] = 0.0
        return Denoised(score, v(layers.z, self.m_z, self.s_z), v(lattice, self.m_l, self.s_l), logits, None)

    def properties(self, layers, time):
        idle = 0 * (
            layers.z.sum(1) + (layers.frac_coords @ layers.cell).sum((1, 2))
        )  # a real head sees every channel
        return Heads(self.delta_g_h(layers) + idle, self.e_hull(layers) + idle, idle, idle)

    def delta_g_h(self, layers):
        return torch.zeros(len(layers))

    def e_hull(self, layers):
        return torch.full((len(layers),), -1.0)


def fixed_cell() -> Diffusion:
    """A diffusion whose cell hardly depends on its lattice channel, so that the channels are independent
    Gaussians.
    """
    mean = Diffusion().encode_lattice(CELL[None], torch.tensor([3]))[0]
    return Diffusion(lattice_mean=mean, lattice_std=(1e-5,) * 3)


def displacement(layers, sites):
    away = layers.frac_coords - sites
    return (away - away.round()) @ layers.cell


def recursion(diffusion, times, spread, start_variance, push=0.0, variance_preserving=True, noise_scale=1.0):
    """(shift of the mean, variance) that the update makes of a Gaussian of width `spread`, in scalars.

    The start is at the exact mean; `push` is a constant η ∇L. The discrete chain loses some variance at few
    steps.
    """
    sigma = diffusion.sigmas.double()
    shift, variance = 0.0, start_variance
    for t, s in zip(times, times[1:]):
        st, ss = sigma[t].item() ** 2, sigma[s].item() ** 2
        if variance_preserving:
            abar_t, abar_s = 1 / (1 + st), 1 / (1 + ss)
            alpha = abar_t / abar_s
            noise = (1 - abar_s) / (1 - abar_t) * (1 - alpha)
            slope = (1 - (1 - alpha) / (abar_t * spread**2 + 1 - abar_t)) / alpha**0.5
        else:
            noise = (st - ss) * ss / st
            slope = 1 - (st - ss) / (spread**2 + st)
        shift, variance = slope * shift - push * noise, slope**2 * variance + noise_scale**2 * noise
    return shift, variance


@pytest.fixture(scope="module")
def recovered():
    """{(start, steps): (final layers, final lattice)} of 300 samples each."""
    out, count = {}, 300
    for start, steps in ((1000, 1000), (1000, 200), (1000, 50), (500, 200), (500, 50)):
        d = fixed_cell()
        model = Exact(d)
        sampler, layers = sampler_of(model, d, start + steps), layers_like(count)
        if start == 1000:
            x, lattice = sampler.prior(layers)
        else:  # data, noised by the forward process
            g = seeded(9)
            z = torch.randn(count, 3, generator=g) * model.s_z
            away = torch.randn(count, 3, 2, generator=g) * model.width @ torch.linalg.inv(CELL)
            data = layers.replace(
                z=model.m_z + z - z.mean(1, keepdim=True), frac_coords=(model.sites + away) % 1.0
            )
            x, lattice = sampler.noised(data, start)
            abar = d.alphas_cumprod[
                start
            ]  # the lattice of the data is one point: draw it from the Gaussian instead
            spread = (abar * model.s_l**2 + 1 - abar).sqrt()
            lattice = abar.sqrt() * model.m_l + spread * torch.randn(count, 3, generator=g)
        times = kept_times(start, steps)
        assert len(times) == steps + 1
        for t, s in zip(times, times[1:]):
            x, lattice = sampler.step(x, lattice, t, s)
        out[start, steps] = x, lattice
    return out


CASES = [(1000, 1000), (1000, 200), (1000, 50), (500, 200), (500, 50)]


@pytest.mark.parametrize("start, steps", CASES)
def test_exact_scores_recover_mean_and_variance(recovered, start, steps):
    x, lattice = recovered[start, steps]
    model, count = Exact, len(x)
    d = fixed_cell()
    abar, sigma2 = d.alphas_cumprod[start].item(), d.sigmas[start].item() ** 2
    modes = torch.linalg.qr(torch.cat([torch.ones(3, 1), torch.randn(3, 2, generator=seeded())], 1))[0][
        :, 1:
    ]  # mean-free
    away = displacement(x, model.sites)
    measured = {
        "z": ((x.z - model.m_z) @ modes, model.s_z, True),
        "lattice": (lattice - model.m_l, model.s_l, True),
        "coordinates": (away, model.width, False),
    }
    for name, (values, spread, preserving) in measured.items():
        values = values.reshape(count, -1)
        before = (abar * spread**2 + 1 - abar if start < 1000 else 1.0) if preserving else spread**2 + sigma2
        if start == 1000 and not preserving:
            before = spread**2 + sigma2  # the uniform prior, seen on the torus
        expected = recursion(d, kept_times(start, steps), spread, before, variance_preserving=preserving)[1]
        tolerance = 4 * (2 / values.numel()) ** 0.5  # 4 standard errors of a variance
        ratio = (values.var(0, correction=1).mean() / spread**2).item()
        assert ratio == pytest.approx(expected / spread**2, rel=tolerance + 0.01), name
        assert 0.8 < ratio < 1.0 + tolerance, name  # the data's own variance, less what few steps lose
        if steps == 1000:
            assert ratio == pytest.approx(1.0, abs=tolerance + 0.03), name
        assert values.mean(0).abs().max() < 4.5 * spread / count**0.5, name
    assert x.z.sum(1).abs().max() < 1e-4  # mean-free all the way
    # isotropic in Å although the cell is skewed; atoms and channels independent
    covariance = np.cov(away.reshape(-1, 2).T.numpy()) / model.width**2
    assert abs(covariance[0, 1]) < 0.12 and abs(covariance[0, 0] - covariance[1, 1]) < 0.2
    assert (x.frac_coords >= 0).all() and (x.frac_coords <= 1).all()


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_less_noise_narrows_the_distribution_as_the_update_says(scale):
    """Exact scores: the mean stays, the variance is that of the update with ζ scaled; with none left the seed
    does not matter.
    """
    d = fixed_cell()
    count, start = 400, 500
    x = layers_like(count).replace(frac_coords=Exact.sites.repeat(count, 1, 1), z=Exact.m_z.repeat(count, 1))
    x, _ = sampler_of(Exact(d), d, 1).noised(x, start)
    lattice = torch.zeros(count, 3)
    found = [
        sampler_of(Exact(d), d, seed, noise_scale=scale).denoise(x, lattice, start, 50) for seed in (2, 3)
    ]
    assert same(*found) is (scale == 0)
    away = displacement(found[0], Exact.sites)
    start_variance = d.sigmas[start].item() ** 2
    shrunk = recursion(
        d, kept_times(start, 50), Exact.width, start_variance, variance_preserving=False, noise_scale=scale
    )[1]
    assert away.var().item() == pytest.approx(shrunk, rel=0.15)
    assert shrunk < Exact.width**2 and away.mean((0, 1)).abs().max() < 4.5 * shrunk**0.5 / (3 * count) ** 0.5


@pytest.mark.parametrize("t", [450, 600])
def test_the_corrector_settles_at_the_exact_marginal_from_a_wrong_one(t):
    """Started at the means, with no width at all, Langevin steps alone reach the noised data's mean and
    variance in every channel.
    """
    d = fixed_cell()
    model, count = Exact(d), 400
    sampler = sampler_of(model, d, 3)
    abar, sigma2 = d.alphas_cumprod[t].item(), d.sigmas[t].item() ** 2
    x = layers_like(count).replace(
        frac_coords=model.sites.repeat(count, 1, 1), z=abar**0.5 * model.m_z.repeat(count, 1)
    )
    lattice = abar**0.5 * model.m_l.repeat(count, 1)
    for _ in range(200):
        x, lattice = sampler.correct(x, lattice, t)
    modes = torch.linalg.qr(torch.cat([torch.ones(3, 1), torch.randn(3, 2, generator=seeded())], 1))[0][:, 1:]
    measured = {
        "z": ((x.z - abar**0.5 * model.m_z) @ modes, abar * model.s_z**2 + 1 - abar, 1 - abar),
        "lattice": (lattice - abar**0.5 * model.m_l, abar * model.s_l**2 + 1 - abar, 1 - abar),
        "coordinates": (displacement(x, model.sites), model.width**2 + sigma2, sigma2),
    }
    for name, (values, variance, noise) in measured.items():
        values = values.reshape(count, -1)
        settled = variance / (
            1 - LANGEVIN_STEP / 2 * noise / variance
        )  # of x ← x − c x + √(2δ) ζ with c = δ / variance
        tolerance = 4 * (2 / values.numel()) ** 0.5
        assert values.var(0, correction=0).mean().item() == pytest.approx(settled, rel=tolerance), name
        assert values.mean(0).abs().max() < 4.5 * variance**0.5 / count**0.5, name


def test_exact_score_in_a_breathing_cell():
    """With a lattice of real width the noise keeps its size in Å, and the atoms end on their sites."""
    d = Diffusion(lattice_mean=(0.47, 0.68, -0.12), lattice_std=(0.24, 0.27, 0.13))
    model = Exact(d)
    model.width, model.m_l, model.s_l = 1e-3, torch.zeros(3), 1.0
    sampler = sampler_of(model, d, 4)
    x, lattice = sampler.prior(layers_like(500))
    times = kept_times(1000, 200)
    for t, s in zip(times, times[1:]):
        x, lattice = sampler.step(x, lattice, t, s)
        if s == 500:
            assert displacement(x, model.sites).var().item() / d.sigmas[s].item() ** 2 == pytest.approx(
                1.0, abs=0.15
            )
    assert displacement(x, model.sites).abs().max() < 0.02
    np.testing.assert_allclose(lattice.var(0), 1.0, atol=0.2)
    torch.testing.assert_close(x.cell, d.decode_lattice(lattice, torch.full((500,), 3)))


# --- guidance


class Network(DenoisingEGNN):
    """A small real network that counts what is asked of it."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(channels=16, vectors=4, trunk=1, conditional=1, neighbours=8)
        self.asked, self.calls = 0, []

    def forward(self, layers, t, lattice, conditions=None, properties=True):
        self.calls.append(None if conditions is None else conditions.clone())
        return super().forward(layers, t, lattice, conditions, properties)

    def properties(self, layers, t):
        self.asked += 1
        return super().properties(layers, t)


@pytest.fixture
def network():
    return Network().eval()


def plain(model, d, layers, lattice, times, generator, conditions=None):
    """The mission's update with neither guidance, written out: what η = 0 must reproduce to the bit."""
    for t, s in zip(times, times[1:]):
        with torch.no_grad():
            out = model(
                layers, torch.full((len(layers),), t) / d.steps, lattice, conditions, properties=False
            )
        abar_t, abar_s = d.alphas_cumprod[t], d.alphas_cumprod[s]
        alpha = abar_t / abar_s
        noise = ((1 - abar_s) / (1 - abar_t) * (1 - alpha)).sqrt()

        def mean(x, v, abar_t=abar_t, alpha=alpha):
            eps = abar_t.sqrt() * v + (1 - abar_t).sqrt() * x
            return (x - (1 - alpha) / (1 - abar_t).sqrt() * eps) / alpha.sqrt()

        centre = lambda x: x - x.sum(1, keepdim=True) / x.shape[1]
        zeta = centre(torch.randn(layers.z.shape, generator=generator))
        z = centre(mean(layers.z, out.z) + noise * zeta)
        lattice = mean(lattice, out.lattice) + noise * torch.randn(lattice.shape, generator=generator)
        gap = d.sigmas[t] ** 2 - d.sigmas[s] ** 2
        wander = (gap * d.sigmas[s] ** 2 / d.sigmas[t] ** 2).sqrt()
        move = gap / d.sigmas[t] * out.score + wander * torch.randn(out.score.shape, generator=generator)
        frac = (layers.frac_coords + move @ torch.linalg.inv(layers.cell)) % 1.0
        count = torch.full((len(layers),), layers.z.shape[1])
        layers = layers.replace(frac_coords=frac, z=z, cell=d.decode_lattice(lattice, count))
    return layers


def same(a: Layers, b: Layers):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("atomic_numbers", "frac_coords", "z", "cell")
    )


def trained_scale():
    return Diffusion(lattice_mean=(0.5, 0.7, -0.1), lattice_std=(0.2, 0.25, 0.1))


@pytest.mark.parametrize("start", [1000, 400])
def test_no_guidance_is_the_plain_sampler_to_the_bit(network, start):
    d, layers, times = trained_scale(), layers_like(4), kept_times(start, 12)
    x, lattice = sampler_of(network, d, 1).prior(layers)
    found = sampler_of(network, d, 2, cfg_scale=0.0, gradient_scale=0.0).denoise(x, lattice, start, 12)
    assert network.asked == 0 and len(network.calls) == 12 and all(c is None for c in network.calls)
    assert same(found, plain(network, d, x, lattice, times, seeded(2)))
    # cfg_scale = 1 is the conditional network alone
    network.calls.clear()
    conditional = sampler_of(network, d, 2, cfg_scale=1.0, delta_g_h=0.1, wanted_e_hull=0.05)
    conditional = conditional.denoise(x, lattice, start, 12)
    assert len(network.calls) == 12
    given = torch.tensor([[0.1, 0.05, 1.0]]).repeat(4, 1)
    assert same(conditional, plain(network, d, x, lattice, times, seeded(2), given))
    assert not same(conditional, found)
    # and a gradient, however weak, is not the plain sampler
    guided = sampler_of(network, d, 2, gradient_scale=1.0).denoise(x, lattice, start, 12)
    assert network.asked == 12 and not same(guided, found)


def test_classifier_free_guidance_extrapolates_on_every_channel(network):
    d, layers = trained_scale(), layers_like(3)
    sampler = sampler_of(network, d, cfg_scale=2.5, synthesizable=False, delta_g_h=-0.2)
    x, lattice = sampler.prior(layers)
    time = torch.full((3,), 0.6)
    with torch.no_grad():
        out = sampler._denoise(x, time, lattice)
        null = network(x, time, lattice)
        given = network(x, time, lattice, torch.tensor([[-0.2, 0.0, math.nan]]).repeat(3, 1))
    for name in ("score", "z", "lattice", "slot_logits"):
        low, high = getattr(null, name), getattr(given, name)
        torch.testing.assert_close(getattr(out, name), low + 2.5 * (high - low))


def test_conditions_stand_in_the_order_of_the_network():
    given = mission(delta_g_h=0.3, wanted_e_hull=0.1).conditions(2, "cpu")
    assert CONDITIONS == ("delta_g_h", "e_hull", "synthesizable")
    torch.testing.assert_close(given, torch.tensor([[0.3, 0.1, 1.0]] * 2))
    assert torch.isnan(mission(synthesizable=False).conditions(1, "cpu")[0, 2])


def test_target_loss_by_hand():
    heads = Heads(*torch.tensor([[0.4, 0.25, 3.0, 7.0], [-0.2, -1.0, 3.0, 7.0]]).T)
    torch.testing.assert_close(
        mission(delta_g_h=0.1, e_hull=0.05).loss(heads), torch.tensor([0.3 + 0.2, 0.3])
    )
    torch.testing.assert_close(
        mission(delta_g_h=0.1, e_hull=0.05, weight_e_hull=3).loss(heads), torch.tensor([0.3 + 3 * 0.2, 0.3])
    )


def test_elements_outside_the_list_cost_everything():
    numbers = torch.tensor([[42, 16, 16, 0], [80, 16, 0, 0], [42, 0, 0, 0]])
    assert (
        mission(elements=frozenset({"Mo", "S"})).allows(numbers).tolist() == [True, False, True]
        and mission().allows(numbers).all()
    )


def test_the_uncertainty_averages_the_distance_over_the_spread():
    """Against draws; of two layers at the target the one that the members agree on is better."""
    zero = torch.zeros(4)
    heads = Heads(torch.tensor([0.2, 0.0, 0.0, -1.5]), zero, zero, torch.tensor([0.3, 0.3, 0.1, 0.2]))
    draws = heads.delta_g_h + 0.5 * heads.delta_g_h_std * torch.randn(
        400_000, 4, generator=torch.Generator().manual_seed(0)
    )
    loss = mission(delta_g_h=-0.1, uncertainty_weight=0.5).loss(heads)
    torch.testing.assert_close(loss, (draws + 0.1).abs().mean(0), atol=1e-3, rtol=0)
    loss = mission(uncertainty_weight=1.0).loss(heads)
    assert loss[2] < loss[1] < loss[0] < loss[3]
    exact = torch.zeros(1, 4, requires_grad=True)
    gradient = torch.autograd.grad(mission(uncertainty_weight=0.0).loss(Heads(*exact.T)).sum(), exact)[0]
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("start, steps", [(1000, 60), (500, 60)])
def test_gradient_of_a_linear_head_shifts_each_channel_by_what_the_update_says(start, steps):
    """|∇L| is constant here, so mean_s = A mean_t − η ∇L σ² can be followed in scalars."""
    count, eta, slope = 500, 0.5, 0.7
    d = fixed_cell()
    gradient_z = slope * torch.tensor([1.0, -1.0, 0.0])

    class Linear(Exact):
        def delta_g_h(self, layers):
            return 100 + layers.z @ gradient_z  # far above its target: L falls with ΔG

    ends = []
    for scale in (0.0, eta):
        model = Linear(d)
        sampler = sampler_of(model, d, 3, gradient_scale=scale)
        x = layers_like(count).replace(
            z=model.m_z.repeat(count, 1), frac_coords=model.sites.repeat(count, 1, 1)
        )
        x, lattice = sampler.noised(x, start)
        ends.append(sampler.denoise(x, lattice, start, steps))
    shift = (ends[1].z - ends[0].z).mean(0)  # the same noise: the difference has no statistical error
    expected = recursion(d, kept_times(start, steps), Exact.s_z, 1.0, push=eta)[0] * gradient_z
    torch.testing.assert_close(shift, expected, atol=2e-3, rtol=0.01)
    assert shift[0] < -0.005 and shift[1] > 0.005
    torch.testing.assert_close(ends[1].frac_coords, ends[0].frac_coords, atol=1e-5, rtol=0)


def test_gradient_on_the_torus_is_in_angstrom():
    """ΔG falls along the Cartesian x of atom 0, in a skewed cell: so is the shift."""
    count, eta, slope, start, steps = 500, 0.5, 0.6, 500, 60
    d = fixed_cell()

    class Linear(Exact):
        def delta_g_h(self, layers):
            away = layers.frac_coords - self.sites
            return 100 + slope * ((away - away.round().detach()) @ layers.cell)[:, 0, 0]

    ends = []
    for scale in (0.0, eta):
        model = Linear(d)
        sampler = sampler_of(model, d, 3, gradient_scale=scale)
        x, lattice = sampler.noised(
            layers_like(count).replace(frac_coords=model.sites.repeat(count, 1, 1)), start
        )
        ends.append(displacement(sampler.denoise(x, lattice, start, steps), model.sites))
    shift = (ends[1] - ends[0]).mean(0)
    along = recursion(
        d, kept_times(start, steps), Exact.width, 1.0, push=eta * slope, variance_preserving=False
    )[0]
    expected = torch.zeros(3, 2)
    expected[0] = torch.tensor([along, 0.0])
    torch.testing.assert_close(shift, expected, atol=1e-3, rtol=0.02)
    assert along < -0.002


def test_gradient_of_the_lattice_changes_the_area():
    """ΔG = k log det(cell) = k tr S: its gradient is k · std on both diagonal entries."""
    count, eta, k, start, steps = 300, 0.5, 2.0, 1000, 60
    d = Diffusion(lattice_mean=(0.5, 0.6, -0.1), lattice_std=(0.2, 0.3, 0.1))

    class Area(Exact):
        def delta_g_h(self, layers):
            return 100 + k * torch.linalg.det(layers.cell).log()

    ends = []
    for scale in (0.0, eta):
        sampler = sampler_of(Area(d), d, 3, gradient_scale=scale)
        x, lattice = sampler.prior(layers_like(count))
        ends.append(d.encode_lattice(sampler.denoise(x, lattice, start, steps).cell, torch.full((count,), 3)))
    unit = recursion(d, kept_times(start, steps), Exact.s_l, 1.0, push=eta)[0]
    expected = unit * k * torch.tensor([0.2, 0.3, 0.0])
    torch.testing.assert_close((ends[1] - ends[0]).mean(0), expected, atol=3e-3, rtol=0.02)


def test_guidance_pulls_a_quadratic_head_to_its_minimum_and_not_past_its_bound():
    """E_hull = ½ (thickness − 1)²: guidance thins the layer; once E_hull is below the bound nothing pulls."""
    d = fixed_cell()

    class Bowl(Exact):
        def e_hull(self, layers):
            return 0.5 * (layers.z[:, 2] - layers.z[:, 0] - 1.0) ** 2

    def thickness(scale, bound=0.0):
        sampler = sampler_of(Bowl(d), d, 3, gradient_scale=scale, e_hull=bound)
        end = sampler.denoise(*sampler.prior(layers_like(300)), 1000, 60)
        return (end.z[:, 2] - end.z[:, 0]).mean().item()

    none, weak, strong = thickness(0.0), thickness(0.5), thickness(3.0)
    assert none == pytest.approx(2.2, abs=0.15)
    assert none > weak + 0.05 > strong + 0.1 and strong > 0.8
    assert thickness(3.0, bound=1e3) == none


def test_the_gradient_is_capped_and_keeps_its_direction():
    d = fixed_cell()

    class Steep(Exact):
        factor = 1e6

        def delta_g_h(self, layers):
            plane = layers.frac_coords @ layers.cell
            return 100 + self.factor * (
                layers.z[:, 0] - 2 * layers.z[:, 1] + 3 * plane[:, 0, 0] + 4 * plane[:, 0, 1]
            )

    for factor, eta in ((1e6, 2.0), (1e-3, 2.0)):
        model = Steep(d)
        model.factor = factor
        sampler = sampler_of(model, d, gradient_scale=eta)
        x, lattice = sampler.prior(layers_like(4))
        plane, z, free = sampler._gradient(x, lattice, torch.full((4,), 0.5))
        assert plane.shape == (4, 3, 2) and z.shape == (4, 3) and free.shape == (4, 3)
        for value in (plane.norm(dim=-1), z, free):
            assert value.abs().max() <= eta * Guide().cap * (1 + 1e-5)
        if factor < 1:
            np.testing.assert_allclose(z, [[eta * factor, -2 * eta * factor, 0]] * 4, rtol=1e-3)
            np.testing.assert_allclose(plane[:, 0], [[3 * eta * factor, 4 * eta * factor]] * 4, rtol=1e-3)
        else:
            np.testing.assert_allclose(plane[:, 0], [[0.6 * eta, 0.8 * eta]] * 4, rtol=1e-3)
            np.testing.assert_allclose(z, [[eta, -eta, 0]] * 4, rtol=1e-3)


# --- elements, times, seeds


def hidden_layers(count):
    layers = layers_like(count, numbers=(MASK, MASK, MASK, MASK, MASK), slots=(1, 0, 0, 2, 2))
    layers.mask[0, 3:] = False
    layers.atomic_numbers[0, 3:] = 0
    layers.slots[0, 3:] = 0
    return layers


def assert_whole(layers: Layers):
    assert not (layers.atomic_numbers == MASK).any()
    assert not layers.atomic_numbers[~layers.mask].any()
    for k in range(len(layers)):
        for slot in range(3):
            assert len(layers.atomic_numbers[k, layers.mask[k] & (layers.slots[k] == slot)].unique()) <= 1


class FiveAtoms(Exact):
    sites, m_z = torch.rand(5, 2, generator=seeded()), torch.zeros(5)


@pytest.mark.parametrize("start, steps", [(1000, 30), (300, 5), (2, 10)])
def test_every_masked_slot_is_revealed_once_with_one_element(start, steps):
    d = fixed_cell()
    sampler = sampler_of(FiveAtoms(d), d, 2)
    x, lattice = sampler.prior(hidden_layers(200))
    end = sampler.denoise(x, lattice, start, steps)
    assert_whole(end)
    shown = end.atomic_numbers[end.mask]
    assert set(shown.tolist()) == set(ELEMENTS)
    np.testing.assert_allclose([(shown == e).float().mean() for e in ELEMENTS], 1 / 3, atol=0.1)


def test_slots_are_revealed_evenly_in_time_and_then_left_alone():
    d, count = fixed_cell(), 400
    sampler = sampler_of(FiveAtoms(d), d, 2)
    x, lattice = sampler.prior(hidden_layers(count))
    times = kept_times(1000, 20)
    for t, s in zip(times, times[1:]):
        before = x
        x, lattice = sampler.step(x, lattice, t, s)
        shown = before.atomic_numbers != MASK
        assert torch.equal(x.atomic_numbers[shown], before.atomic_numbers[shown])
        if s in (750, 500, 250):  # the share still hidden is s / T
            assert (x.atomic_numbers[1:, 0] == MASK).float().mean().item() == pytest.approx(s / 1000, abs=0.1)


def test_function_evaluations_are_counted(network):
    """One an update, two with a condition at s ≠ 1, three more for a gradient, one for L_target."""
    d, layers = trained_scale(), layers_like(4)
    for settings, each in (
        ({}, 1),
        ({"cfg_scale": 1.0}, 1),
        ({"cfg_scale": 2.0}, 2),
        ({"cfg_scale": 2.0, "gradient_scale": 1.0}, 5),
    ):
        sampler = sampler_of(network, d, **settings)
        sampler.denoise(*sampler.prior(layers), 1000, 12)
        assert sampler.nfe == 12 * each * 4
    sampler.target_loss(layers)
    assert sampler.nfe == (60 + 1) * 4


def test_given_elements_are_never_changed():
    d = fixed_cell()
    sampler = sampler_of(Exact(d), d, 2)
    layers = layers_like(20, numbers=(42, MASK, MASK))
    end = sampler.denoise(*sampler.prior(layers), 1000, 10)
    assert (end.atomic_numbers[:, 0] == 42).all()
    assert_whole(end)


def test_propose_elements_fills_all_and_moves_nothing():
    d = fixed_cell()
    model = FiveAtoms(d)
    sampler = sampler_of(model, d, 2)
    x, lattice = sampler.prior(hidden_layers(50))
    end = sampler.propose_elements(x, lattice, 500)
    assert_whole(end)
    assert len(model.calls) == 3  # one slot a graph and round
    for name in ("frac_coords", "z", "cell", "slots", "mask"):
        assert torch.equal(getattr(end, name), getattr(x, name))
    partly = x.replace(atomic_numbers=torch.where(x.slots == 0, 16 * x.mask, x.atomic_numbers))
    end = sampler.propose_elements(partly, lattice, 500)
    assert (end.atomic_numbers[x.mask & (x.slots == 0)] == 16).all()
    assert_whole(end)


class Alike(Exact):
    """Draws one element for every slot, nine times in ten."""

    def __call__(self, *args, **kwargs):
        out = super().__call__(*args, **kwargs)
        out.slot_logits[..., 42] = math.log(18)
        return out


def in_five_atoms(model):
    """The model with the sites of FiveAtoms."""
    model.sites, model.m_z = FiveAtoms.sites, FiveAtoms.m_z
    return model


def test_slots_that_are_revealed_together_are_distinct_elements():
    """All in one update, and a network that wants the same everywhere: AB2C must not become A3C."""
    d = fixed_cell()
    sampler = sampler_of(in_five_atoms(Alike(d)), d, 2)
    hidden = hidden_layers(300)
    end = sampler.denoise(*sampler.prior(hidden), 500, 1)
    assert_whole(end)
    for numbers, slots, keep in zip(end.atomic_numbers, end.slots, end.mask):
        assert len(numbers[keep].unique()) == len(slots[keep].unique())


def test_only_the_wanted_elements_are_drawn():
    d = fixed_cell()
    few = sampler_of(FiveAtoms(d), d, 2, elements=frozenset({"O", "Au", "Pt"}))
    end = few.denoise(*few.prior(hidden_layers(100)), 500, 5)
    assert set(end.atomic_numbers.unique().tolist()) == {0, 8, 78, 79}


class QuadraticHead(Exact):
    """ΔG_H = 10 + ½ Σ_slots (w_slot · c)², c a charge of each element: its gradient is known."""

    charge = torch.zeros(120).scatter(0, torch.tensor(ELEMENTS), torch.tensor([0.0, 1.0, 3.0]))

    def properties(self, layers, time, slot_elements=None):
        heads = super().properties(layers, time)
        if slot_elements is not None:
            heads.delta_g_h = 10 + 0.5 * (slot_elements @ self.charge).square().sum(1)
        return heads


@pytest.mark.parametrize("eta", [0.0, 0.7, 5.0])
def test_the_element_gradient_weights_each_element_as_its_first_order_change_says(eta):
    """One slot, p_θ uniform on three elements: mean charge 4/3, so p ∝ exp(−η (4/3) c)."""
    d = fixed_cell()
    model = QuadraticHead(d)
    sampler = sampler_of(model, d, 3, element_gradient=eta)
    x, lattice = sampler.prior(layers_like(4000, numbers=(MASK,) * 3, slots=(0, 0, 0)))
    end = sampler.propose_elements(x, lattice, 500).atomic_numbers[:, 0]
    expected = torch.exp(-eta * 4 / 3 * model.charge[list(ELEMENTS)])
    found = [(end == element).float().mean().item() for element in ELEMENTS]
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.03)
    assert sampler.nfe == 4000 * (1 if eta == 0 else 4)  # one backward pass counts as three


def test_gibbs_steps_look_at_every_element_again():
    """The last of six looks decides; elements that were given stay."""
    d = fixed_cell()
    model = QuadraticHead(d)
    settings = GeneratorSettings(guide=mission(element_gradient=5.0), gibbs=6)
    sampler = Sampler(model, d, settings, seeded(1))
    x, lattice = sampler.prior(layers_like(300, numbers=(42, MASK, MASK), slots=(1, 0, 0)))
    end = sampler.propose_elements(x, lattice, 500)
    assert (end.atomic_numbers[:, 0] == 42).all()
    assert (end.atomic_numbers[:, 1] == 8).float().mean() > 0.9  # the lowest charge
    assert len(model.calls) == 1 + 6


def test_the_condition_is_a_wish_and_the_bound_a_bound():
    e_hull = CONDITIONS.index("e_hull")
    assert Guide(e_hull=1.0).conditions(1, "cpu")[0, e_hull] == 0.0
    assert Guide(wanted_e_hull=0.3).conditions(1, "cpu")[0, e_hull] == pytest.approx(0.3)
    heads = Heads(*torch.tensor([[0.0], [0.9], [0.0], [0.0]]))
    assert Guide(e_hull=1.0).loss(heads).item() < 1e-5


def test_temperature_sharpens_the_proposal():
    d = fixed_cell()

    class Leaning(Exact):
        def __call__(self, *args, **kwargs):
            out = super().__call__(*args, **kwargs)
            out.slot_logits[..., 42] = 1.0
            return out

    def share(temperature):
        sampler = sampler_of(Leaning(d), d, 2)
        x, lattice = sampler.prior(layers_like(1800, numbers=(MASK,), slots=(0,)))
        return (
            (sampler.propose_elements(x, lattice, 500, temperature).atomic_numbers == 42)
            .float()
            .mean()
            .item()
        )

    assert share(1.0) == pytest.approx(math.e / (math.e + 2), abs=0.06)
    assert share(0.2) == pytest.approx(math.exp(5) / (math.exp(5) + 2), abs=0.03)


def test_same_seed_same_result(network):
    d = trained_scale()

    def draw(seed):
        sampler = sampler_of(network, d, seed, cfg_scale=1.5, gradient_scale=1.0)
        return sampler.denoise(*sampler.prior(layers_like(3, numbers=(MASK,) * 3)), 1000, 8)

    first = draw(5)
    torch.manual_seed(99)  # the global generator plays no part
    assert same(first, draw(5)) and not same(first, draw(6))
    assert torch.isfinite(first.z).all() and torch.isfinite(first.frac_coords).all()


def test_kept_times_descend_from_start_to_zero():
    for start, steps in ((1000, 1000), (1000, 50), (500, 200), (333, 7), (3, 100), (1, 1)):
        times = kept_times(start, steps)
        assert times[0] == start and times[-1] == 0 and len(times) == min(steps, start) + 1
        assert all(a > b for a, b in zip(times, times[1:]))


def test_prior_matches_the_forward_process_at_the_last_time():
    """Pure noise is what the forward process ends in: same spread of z, lattice and coordinates."""
    count, d = 4000, trained_scale()
    layers = layers_like(count).replace(z=torch.tensor([[-1.5, 0.0, 1.5]]).repeat(count, 1))
    sampler = sampler_of(None, d, 1)
    (drawn, lattice), (noised, lattice_t) = sampler.prior(layers), sampler.noised(layers, d.steps)
    assert drawn.z.var().item() == pytest.approx(noised.z.var().item(), rel=0.08)
    assert drawn.z.sum(1).abs().max() < 1e-4
    assert lattice.var().item() == pytest.approx(1.0, rel=0.05) and lattice_t.var().item() == pytest.approx(
        1.0, rel=0.08
    )
    for frac in (drawn.frac_coords, noised.frac_coords):
        assert torch.cos(2 * math.pi * frac).mean().abs() < 0.03 and frac.var().item() == pytest.approx(
            1 / 12, rel=0.05
        )
