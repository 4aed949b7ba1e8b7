"""Rates, intervals, differences and their tests against counting, coverage and published values; the ranking
of candidates.
"""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from models.evaluation.metrics import (
    aggregate,
    compare,
    difference,
    effective_number,
    flat,
    interval,
    markdown,
    metric_samples,
    p_value,
    pareto_front,
    rate_ratio,
    sensitivity,
)
from models.evaluation.rows import join, table
from models.evaluation.schema import SET_METRICS
from models.evaluation.shortlist import (
    agreement,
    candidate_class,
    oracle_error,
    p_active,
    ranked,
    ranking,
    within,
)
from models.evaluation.verdicts import is_stable, is_sun, stability_score

GOOD = {
    "two_d": True,
    "valid": True,
    "e_hull_eV_per_atom": 0.02,
    "delta_g_h_oracle_eV": -0.1,
    "unique": True,
    "novel": True,
    "p_synth": 0.5,
    "stability_score": 0.98,
    "components": 1,
    "periodic_directions": 2,
    "converged": True,
    "min_dist_ratio": 0.9,
    "hull_compounds": 3,
    "h_flags": "adsorbed:1",
}


def test_rates_are_over_all_rows_and_means_over_those_that_exist():
    unstable = GOOD | {"e_hull_eV_per_atom": 0.1, "delta_g_h_oracle_eV": 0.5, "novel": False, "p_synth": 0.49}
    failed = {"two_d": False, "valid": False, "error": "unreadable CIF"}
    metrics = aggregate(table([GOOD, unstable, failed, failed]))
    found = {name: metric["value"] for name, metric in metrics.items()}
    assert found["two_d_rate"] == 0.5 and metrics["two_d_rate"]["n"] == 4
    assert found["stable_rate"] == 0.25  # 0.1 is not below 0.1
    assert found["sun_rate"] == found["novel_rate"] == found["synthesis_rate"] == 0.25
    assert found["unique_rate"] == found["converged_rate"] == found["one_2d_component_rate"] == 0.5
    assert found["mae_delta_g_h_oracle_eV"] == pytest.approx(0.3)
    assert metrics["mae_delta_g_h_oracle_eV"]["n"] == 2
    assert found["active_rate_0.2eV"] == found["hit_rate_0.1eV"] == 0.25
    assert metrics["mae_delta_g_h_dimenet_eV"] == {"value": None, "ci95": [None, None], "n": 0}


def test_every_metric_is_in_the_schema_and_every_rate_counts_yes_and_no():
    samples = metric_samples(table([GOOD, {}]))
    assert list(samples) != [] and set(samples) == {metric.name for metric in SET_METRICS}
    for metric in SET_METRICS:
        assert metric.is_rate == ("_rate" in metric.name)
        assert not metric.is_rate or len(samples[metric.name]) == 2


def test_an_empty_set_has_metrics_and_no_value():
    assert all(metric["n"] == 0 and metric["value"] is None for metric in aggregate(table()).values())


def test_stability_score_is_one_on_the_hull_and_falls_above_it():
    assert stability_score(-0.3) == stability_score(0.0) == 1
    assert stability_score(0.5) == pytest.approx(math.exp(-0.5))


# --- intervals
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hits, n, low, high",
    [(0, 24, 0.0, 0.1380), (1, 24, 0.0074, 0.2024), (24, 24, 0.8620, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_rates_have_wilsons_interval(hits, n, low, high):
    """The last one is Newcombe's example (Stat. Med. 17, 857 (1998), method 3), the others by hand."""
    z = norm.ppf(0.975)
    middle, spread = hits + z**2 / 2, z * math.sqrt(hits * (n - hits) / n + z**2 / 4)
    found = interval((np.arange(n) < hits).astype(float), rate=True)
    assert found["ci95"] == pytest.approx([low, high], abs=2e-4)
    assert found["ci95"] == pytest.approx([(middle - spread) / (n + z**2), (middle + spread) / (n + z**2)])


def test_more_hits_never_lower_the_upper_end():
    """0 of 24 gave [0, 0.138] and 1 of 24 gave [0, 0.125] when only the first was Wilson's."""
    ends = [interval((np.arange(24) < hits).astype(float), rate=True)["ci95"] for hits in range(25)]
    assert np.all(np.diff(ends, axis=0) > 0)


def test_intervals_of_means_cover_and_shrink():
    rng = np.random.default_rng(0)
    covered, width = [], {25: [], 400: []}
    for k in range(100):
        low, high = interval(rng.exponential(1.0, 80), seed=k)["ci95"]
        covered.append(low <= 1.0 <= high)
    for n in width:
        width[n] = np.ptp(interval(rng.normal(size=n))["ci95"])
    assert 0.85 <= np.mean(covered) < 1
    assert 0.15 < width[400] / width[25] < 0.45  # a quarter
    sample = rng.normal(size=30)
    assert interval(sample, 3) == interval(sample, 3) != interval(sample, 4)
    assert interval(np.array([2.0])) == {"value": 2.0, "ci95": [None, None], "n": 1}
    assert interval(np.full(5, 0.3))["ci95"] == pytest.approx([0.3, 0.3])


# --- two sets
# --------------------------------------------------------------------------------------------------------


def test_p_of_rates_is_fishers_by_counting_all_deals():
    """All ways to deal 4 hits to 2 × 6 structures, those as unlikely as the observed one or less."""
    ways = [math.comb(6, k) * math.comb(6, 4 - k) for k in range(5)]
    expected = sum(way for way in ways if way <= ways[0]) / sum(ways)
    assert p_value(np.zeros(6), (np.arange(6) < 4).astype(float)) == pytest.approx(expected)
    assert p_value(np.zeros(24), np.zeros(24)) == 1.0


def test_p_of_means_by_counting_all_permutations():
    own, other = np.array([0.1, 0.5, 0.6]), np.array([1.1, 1.7, 0.55])
    pooled, gaps = np.concatenate([own, other]), []
    for chosen in itertools.combinations(range(6), 3):
        rest = [k for k in range(6) if k not in chosen]
        gaps.append(pooled[list(chosen)].mean() - pooled[rest].mean())
    one_sided = np.mean(np.array(gaps) <= own.mean() - other.mean() + 1e-12)
    assert p_value(own, other) == pytest.approx(2 * one_sided)
    assert p_value(pooled, pooled) == 1.0


def test_the_permutation_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [p_value(*rng.normal(size=(2, 24)), seed=k) for k in range(100)]
    assert np.mean(np.array(found) < 0.05) <= 0.11
    assert p_value(*(rng.normal(size=(2, 24)) + [[0], [2]])) < 0.01


def test_the_interval_of_a_difference_covers_it():
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        own, other = rng.random(40) < 0.6, rng.random(40) < 0.25
        low, high = difference(interval(own.astype(float), 0, True), interval(other.astype(float), 0, True))
        covered.append(low <= 0.35 <= high)
    assert 0.91 <= np.mean(covered) <= 0.99


def test_none_against_none_leaves_room_for_a_difference():
    none = interval(np.zeros(24), rate=True)
    low, high = difference(none, none)
    assert low == -high and high == pytest.approx(0.138, abs=1e-3)


def candidate(material_id="x", **changes):
    good = {
        "material_id": material_id,
        "two_d": True,
        "converged": True,
        "unique": True,
        "novel": True,
        "valid": True,
        "e_hull_eV_per_atom": 0.01,
        "hull_compounds": 3,
        "delta_g_h_oracle_eV": 0.0,
        "h_flags": "adsorbed:1",
    }
    return good | changes


def test_only_sets_of_equal_number_get_a_difference():
    own = table([candidate(), candidate(delta_g_h_oracle_eV=1.0)])
    pair = [candidate(delta_g_h_oracle_eV=0.5), candidate(delta_g_h_oracle_eV=0.7)]
    other, longer = table(pair), table(pair * 2)
    found = compare(own, other)
    assert found["hit_rate_0.2eV"]["difference"] == 0.5 and 0 < found["hit_rate_0.2eV"]["p_value"] <= 1
    assert found["mae_delta_g_h_oracle_eV"]["difference"] == pytest.approx(0.5 - 0.6)
    assert not any("difference" in metric for metric in compare(own, longer).values())
    assert "difference" not in found["mae_delta_g_h_dimenet_eV"]  # nothing to compare
    text = markdown({"a": aggregate(own), "b": found, "c": compare(own, longer)})
    assert "a minus another set" in text and text.count("| metric |") == 2
    long = flat({"a": aggregate(own), "b": found})
    assert set(long["set"]) == {"a", "b"} and len(long) == 2 * len(found)
    hits = long[long["metric"] == "hit_rate_0.2eV"].set_index("set")["difference"]
    assert math.isnan(hits["a"]) and hits["b"] == 0.5


def test_sensitivity_moves_the_energies():
    energies = (0.18, 0.22, -0.22, 0.9)
    rows = table([*(candidate(delta_g_h_oracle_eV=energy) for energy in energies), {"h_flags": ""}])
    found = sensitivity(rows)
    rates = [found[shift]["hit_rate_0.2eV"]["value"] for shift in ("-0.05 eV", "+0.00 eV", "+0.05 eV")]
    assert rates == [0.4, 0.2, 0.2]


def test_rate_ratio_by_katz_and_its_coverage():
    """By hand, and nineteen times in twenty."""
    one, other = np.arange(300) < 72, np.arange(300) < 18
    width = norm.ppf(0.975) * math.sqrt(1 / 72 - 1 / 300 + 1 / 18 - 1 / 300)
    expected = [4 * math.exp(-width), 4 * math.exp(width)]
    found = rate_ratio(one, other)
    assert found["value"] == pytest.approx(4) and found["ci95"] == pytest.approx(expected)
    rng, covered = np.random.default_rng(0), []
    for _ in range(1000):
        low, high = rate_ratio(rng.random(300) < 0.24, rng.random(300) < 0.06)["ci95"]
        covered.append(low <= 4 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_a_ratio_to_none_has_a_lower_bound_alone():
    five, none = np.arange(10) < 5, np.zeros(20)
    to_none, of_none = rate_ratio(five, none), rate_ratio(none, five)
    assert to_none["value"] is None and to_none["ci95"][1] is None and 1 < to_none["ci95"][0] < 0.5 / 0.05
    assert of_none["value"] == 0 == of_none["ci95"][0] and 0 < of_none["ci95"][1] < 1
    assert rate_ratio(np.zeros(0), np.ones(3))["value"] is None
    assert rate_ratio(none, none)["ci95"] == [0.0, None]
    text = markdown({"a": {"ratio": to_none}})
    assert "–" in text


def test_effective_number_counts_kinds_by_their_share():
    assert effective_number(list("abcd") * 3) == pytest.approx(4)
    assert effective_number(list("aaab")) == pytest.approx(4 / 3**0.75)
    assert 1 < effective_number(["a"] * 99 + ["b"]) < 1.1


def test_pareto_front_by_comparing_every_pair():
    costs = np.random.default_rng(1).integers(0, 6, (60, 3)).astype(float)
    costs[7, 1] = math.nan
    expected = []
    for row in costs:
        beaten = [all(other <= row) and any(other < row) for other in costs]
        expected.append(not np.isnan(row).any() and not any(beaten))
    assert pareto_front(costs).tolist() == expected and 1 <= sum(expected) < 60
    assert pareto_front(np.array([[1.0, 2], [1, 2], [2, 1], [2, 2]])).tolist() == [True, True, True, False]


# --- candidates
# ------------------------------------------------------------------------------------------------------


def test_stable_needs_a_converged_relaxation_and_a_sane_energy():
    cases = [(0.05, True), (-0.14, True), (0.15, True), (-1.5, True), (0.0, False), (None, True), (0.0, None)]
    rows = table([{"e_hull_eV_per_atom": e, "converged": done, "hull_compounds": 2} for e, done in cases])
    assert is_stable(rows).tolist() == [True, True, False, False, False, False, False]
    assert is_sun(table([GOOD, GOOD | {"novel": None}, GOOD | {"unique": False}])).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("centre, sigma", [(0.0, 0.1), (0.3, 0.25), (-0.7, 0.5)])
def test_probability_of_an_active_site_by_sampling(centre, sigma):
    draws = np.random.default_rng(0).normal(centre, sigma, 400_000)
    assert within(centre, sigma) == pytest.approx(np.mean(abs(draws) <= 0.1), abs=3e-3)


def test_probability_comes_from_the_oracle_and_else_from_the_ensemble():
    only = {"delta_g_h_dimenet_eV": 0.1, "delta_g_h_dimenet_std_eV": 0.4}
    rows = [
        candidate(delta_g_h_dimenet_eV=3.0),
        only,
        only | {"delta_g_h_dimenet_std_eV": None},
        only | {"h_flags": "desorbed:3"},  # the oracle ran, and no H stayed
        {},
    ]
    expected = [within(0.0, 0.3), within(0.1, 0.5), within(0.1, 0.3), np.nan, np.nan]
    np.testing.assert_allclose(p_active(table(rows), 0.3), expected)


def test_oracle_error_pools_both_sets(tmp_path):
    path = tmp_path / "validation.json"
    sets = {
        "literature": {"all": {"n": 3, "rmse": 0.2}},
        "single-atom catalysts": {"as it is": {"n": 1, "rmse": 0.6}},
    }
    path.write_text(json.dumps({"potential": "P", **sets}))
    sigma, note = oracle_error(path)
    assert sigma == pytest.approx(math.sqrt((3 * 0.04 + 0.36) / 4)) and "P" in note
    path.write_text(json.dumps({"potential": "P"}))
    with pytest.raises(ValueError, match="validate"):
        oracle_error(path)


def test_ranking_puts_class_before_probability_and_stability_last():
    rows = table(
        [
            candidate("known", novel=False),
            candidate("unstable", e_hull_eV_per_atom=0.5),
            candidate("far", delta_g_h_oracle_eV=0.6),
            candidate("near", delta_g_h_oracle_eV=0.2),
            candidate("near, stabler", delta_g_h_oracle_eV=0.2, e_hull_eV_per_atom=-0.1),
            candidate("nothing competes", e_hull_eV_per_atom=-3.0),
            candidate("desorbs", delta_g_h_oracle_eV=None),
            {"material_id": "refused"},
        ]
    )
    rows = join(rows, ranking(rows, 0.5))
    best = ranked(rows)
    assert list(best["material_id"]) == [
        "near, stabler",
        "near",
        "far",
        "known",
        "nothing competes",
        "unstable",
    ]
    assert list(best["rank"]) == [1, 2, 3, 4, 5, 6]
    assert candidate_class(best).tolist() == list(best["candidate_class"]) == [1, 1, 1, 2, 4, 4]
    assert rows.iloc[-2:][["rank", "p_active", "candidate_class"]].isna().all(axis=None)
    assert not rows["pareto"].any()  # without P_synth there is no front
    rows["p_synth"] = np.where(rows["material_id"] == "far", 0.9, 0.5)
    rows = join(rows, ranking(rows, 0.5))
    assert set(rows["material_id"][rows["pareto"]]) == {"far", "known", "near, stabler"}


def test_agreement_counts_those_with_both():
    seconds = (0.15, 0.3, None)
    found = agreement(table([candidate(delta_g_h_second_eV=second) for second in seconds]))
    assert found["both_within_0.2eV"]["value"] == 0.5 and found["both_within_0.2eV"]["n"] == 2
    assert found["shortlisted"] == 3 and found["both_active_0.2eV"] == 1
    assert found["mean_distance_eV"]["value"] == pytest.approx(0.225)
    assert agreement(table())["both_within_0.2eV"]["n"] == 0
