"""Rates, intervals, differences and their tests against counting, coverage and scipy; the ranking of
candidates.
"""

import csv
import json
import math

import numpy as np
import pytest
from scipy.stats import norm, permutation_test

from geo_utils import COLUMNS
from models.evaluation.metrics import (
    aggregate,
    compare,
    difference,
    effective_number,
    flat,
    interval,
    pareto_front,
    permutation_p,
    rate_ratio,
    sensitivity,
    table,
)
from models.evaluation.shortlist import (
    agreement,
    candidate_class,
    oracle_error,
    p_active,
    rank,
    rank_into,
    within,
)
from models.infra.files import read_rows


def row(**values):
    return dict.fromkeys(COLUMNS, "") | values


def test_rates_are_over_all_rows_and_means_over_those_that_exist():
    good = row(
        two_d=True,
        valid=True,
        e_hull_eV_per_atom=0.02,
        delta_g_h_oracle_eV=-0.1,
        unique=True,
        novel=True,
        p_synth=0.5,
        stability_score=0.98,
        components=1,
        periodic_directions=2,
        converged=True,
        min_dist_ratio=0.9,
    )
    unstable = good | {"e_hull_eV_per_atom": 0.1, "delta_g_h_oracle_eV": 0.5, "novel": False, "p_synth": 0.49}
    failed = row(two_d=False, valid=False, error="unreadable CIF")
    metrics = aggregate([good, unstable, failed, failed])
    value = lambda name: metrics[name]["value"]
    assert value("two_d_rate") == 0.5 and metrics["two_d_rate"]["n"] == 4
    assert value("stable_rate") == 0.25  # 0.1 is not below 0.1
    assert value("sun_rate") == value("novel_rate") == value("synthesis_rate") == 0.25
    assert value("unique_rate") == value("converged_rate") == value("one_2d_component_rate") == 0.5
    assert (
        value("mae_delta_g_h_oracle_eV") == pytest.approx(0.3)
        and metrics["mae_delta_g_h_oracle_eV"]["n"] == 2
    )
    assert value("active_rate_0.2eV") == value("hit_rate_0.1eV") == 0.25
    assert metrics["mae_delta_g_h_dimenet_eV"] == {"value": None, "ci95": [None, None], "n": 0}


def test_rows_read_back_from_csv_give_the_same_numbers(tmp_path):
    rows = [
        row(
            two_d=True,
            valid=False,
            e_hull_eV_per_atom=0.02,
            delta_g_h_oracle_eV=-0.1,
            unique=True,
            novel=False,
            components=1,
            periodic_directions=2,
            min_dist_ratio=0.71,
            smact_valid=True,
            converged=False,
        ),
        row(two_d=False),
    ]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    assert aggregate(read_rows(tmp_path / "x.csv")) == aggregate(rows)


def test_intervals_cover_and_shrink():
    rng = np.random.default_rng(0)
    covered = []
    for k in range(100):
        sample = (rng.random(80) < 0.3).astype(float)
        found = interval(sample, seed=k)
        low, high = found["ci95"]
        assert (
            low <= found["value"] == pytest.approx(sample.mean())
            and found["value"] <= high
            and found["n"] == 80
        )
        covered.append(low <= 0.3 <= high)
    assert 0.85 <= np.mean(covered) < 1
    width = [np.ptp(interval(rng.normal(size=n))["ci95"]) for n in (25, 400)]
    assert 0.15 < width[1] / width[0] < 0.45  # a quarter
    assert interval(sample, 3) == interval(sample, 3)


def test_none_of_n_is_not_never():
    none, all_ = interval(np.zeros(52), rate=True), interval(np.ones(52), rate=True)
    assert none["value"] == 0 and none["ci95"][0] == 0 and 0.03 < none["ci95"][1] < 0.1  # Wilson: 0.069
    assert all_["ci95"] == pytest.approx([1 - none["ci95"][1], 1.0])


# --- two sets
# --------------------------------------------------------------------------------------------------------


def test_permutation_test_by_scipy():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.4, 0.9):
        own, other = rng.normal(shift, 1, 20), rng.normal(0, 1, 30)
        wanted = permutation_test(
            (own, other), lambda a, b: a.mean() - b.mean(), n_resamples=5000, rng=0
        ).pvalue
        assert permutation_p(own, other) == pytest.approx(wanted, abs=0.04)
    assert permutation_p(own, own) == 1.0
    assert permutation_p(np.zeros(24), np.zeros(24)) == 1.0


def test_the_permutation_test_errs_as_often_as_it_says():
    rng = np.random.default_rng(2)
    found = [permutation_p(*(rng.random((2, 24)) < 0.3).astype(float), seed=k) for k in range(200)]
    assert np.mean(np.array(found) < 0.05) <= 0.09


def test_the_interval_of_a_difference_covers_it():
    rng = np.random.default_rng(3)
    covered = []
    for k in range(150):
        own, other = (rng.random(40) < 0.6).astype(float), (rng.random(40) < 0.25).astype(float)
        low, high = difference(interval(own, k, rate=True), interval(other, k, rate=True))
        covered.append(low <= 0.35 <= high)
    assert 0.87 <= np.mean(covered) < 1


def test_none_against_none_leaves_room_for_a_difference():
    none = interval(np.zeros(24), rate=True)
    low, high = difference(none, none)
    assert low == -high and 0.1 < high < 0.16  # Wilson's 3.84 / 27.84 = 0.138 on either side


def candidate(material_id="x", **changes):
    good = row(
        material_id=material_id,
        two_d=True,
        converged=True,
        unique=True,
        novel=True,
        e_hull_eV_per_atom=0.01,
        delta_g_h_oracle_eV=0.0,
        h_flags="adsorbed:1",
    )
    return good | changes


def test_only_sets_of_equal_number_get_a_difference():
    own = [candidate(), candidate(delta_g_h_oracle_eV=1.0)]
    other = [candidate(delta_g_h_oracle_eV=0.5), candidate(delta_g_h_oracle_eV=0.7)]
    found = compare(own, other)
    assert found["hit_rate_0.2eV"]["difference"] == 0.5 and 0 < found["hit_rate_0.2eV"]["p_value"] <= 1
    assert found["mae_delta_g_h_oracle_eV"]["difference"] == pytest.approx(0.5 - 0.6)
    assert not any("difference" in metric for metric in compare(own, other * 2).values())
    assert "difference" not in compare(own, other)["mae_delta_g_h_dimenet_eV"]  # nothing to compare
    text = table({"a": aggregate(own), "b": found, "c": compare(own, other * 2)})
    assert "a less another set" in text and text.count("| metric |") == 2
    long = flat({"a": aggregate(own), "b": found})
    assert {r["set"] for r in long} == {"a", "b"} and len(long) == 2 * len(found)
    assert [r["difference"] for r in long if r["metric"] == "hit_rate_0.2eV"] == ["", 0.5]


def test_sensitivity_moves_the_energies():
    rows = [candidate(delta_g_h_oracle_eV=energy) for energy in (0.18, 0.22, -0.22, 0.9)] + [row(h_flags="")]
    found = sensitivity(rows)
    assert [found[shift]["hit_rate_0.2eV"]["value"] for shift in ("-0.05 eV", "+0.00 eV", "+0.05 eV")] == [
        0.4,
        0.2,
        0.2,
    ]


def test_rate_ratio_covers_the_true_ratio():
    """Nineteen times in twenty; of none and to none there is a bound, no ratio."""
    rng = np.random.default_rng(0)
    hits = lambda rate: rng.random(300) < rate
    found = [rate_ratio(hits(0.24), hits(0.06))["ci95"] for _ in range(1500)]
    assert np.mean([low <= 4 <= high for low, high in found]) == pytest.approx(0.95, abs=0.02)
    none = rate_ratio(np.arange(10) < 5, np.zeros(20))
    assert none["value"] is None and none["ci95"][0] < 0.5 / (0.5 / 20) < none["ci95"][1]
    assert (
        rate_ratio(np.zeros(10), np.arange(20) < 5)["value"] == 0
        and rate_ratio(np.zeros(0), np.ones(3))["value"] is None
    )


def test_effective_number_counts_kinds_by_their_share():
    assert effective_number(list("abcd") * 3) == pytest.approx(4)
    assert 1 < effective_number(["a"] * 99 + ["b"]) < 1.1


def test_pareto_front_by_comparing_every_pair():
    costs = np.random.default_rng(1).integers(0, 6, (60, 3)).astype(float)
    costs[7, 1] = math.nan
    beaten = lambda i: any(all(costs[j] <= costs[i]) and any(costs[j] < costs[i]) for j in range(60))
    expected = [not np.isnan(costs[i]).any() and not beaten(i) for i in range(60)]
    assert pareto_front(costs).tolist() == expected and 1 <= sum(expected) < 60
    assert pareto_front(np.array([[1.0, 2], [1, 2], [2, 1], [2, 2]])).tolist() == [True, True, True, False]


# --- candidates
# ------------------------------------------------------------------------------------------------------


def test_probability_of_an_active_site_by_scipy():
    for centre, sigma in ((0.0, 0.1), (0.3, 0.25), (-0.7, 0.5)):
        assert within(centre, sigma) == pytest.approx(
            norm.cdf(0.1, centre, sigma) - norm.cdf(-0.1, centre, sigma)
        )


def test_probability_comes_from_the_oracle_and_else_from_the_ensemble():
    only = row(delta_g_h_dimenet_eV=0.1, delta_g_h_dimenet_std_eV=0.4)
    assert p_active(candidate(delta_g_h_dimenet_eV=3.0), 0.3) == pytest.approx(within(0.0, 0.3))
    assert p_active(only, 0.3) == pytest.approx(within(0.1, 0.5))
    assert p_active(only | {"delta_g_h_dimenet_std_eV": ""}, 0.3) == pytest.approx(within(0.1, 0.3))
    assert p_active(only | {"h_flags": "desorbed:3"}, 0.3) is None  # the oracle ran, and no H stayed
    assert p_active(row(), 0.3) is None


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
    with pytest.raises(ValueError, match="validate.py"):
        oracle_error(path)


def test_ranking_puts_class_before_probability_and_stability_last():
    rows = [
        candidate("known", novel=False),
        candidate("unstable", e_hull_eV_per_atom=0.5),
        candidate("far", delta_g_h_oracle_eV=0.6),
        candidate("near", delta_g_h_oracle_eV=0.2),
        candidate("near, stabler", delta_g_h_oracle_eV=0.2, e_hull_eV_per_atom=-0.1),
        candidate("absurd", e_hull_eV_per_atom=-3.0),
        candidate("desorbs", delta_g_h_oracle_eV=""),
        row(material_id="refused"),
    ]
    rank_into(rows, 0.5)
    assert [r["material_id"] for r in rank(rows)] == [
        "near, stabler",
        "near",
        "far",
        "known",
        "absurd",
        "unstable",
    ]
    assert [r["rank"] for r in rank(rows)] == [1, 2, 3, 4, 5, 6]
    assert [candidate_class(r) for r in rank(rows)] == [1, 1, 1, 2, 3, 3]
    assert rows[-1]["rank"] == rows[-1]["p_active"] == rows[-2]["rank"] == ""
    assert not any(r["pareto"] for r in rows)  # without P_synth there is no front
    rank_into(rows := [r | {"p_synth": 0.9 if r["material_id"] == "far" else 0.5} for r in rows], 0.5)
    assert {r["material_id"] for r in rows if r["pareto"]} == {"far", "known", "near, stabler"}


def test_agreement_counts_those_with_both():
    rows = [
        candidate(delta_g_h_second_eV=0.15),
        candidate(delta_g_h_second_eV=0.3),
        candidate(delta_g_h_second_eV=""),
    ]
    found = agreement(rows)
    assert (
        found["both_within_0.2eV"]["value"] == 0.5
        and found["both_within_0.2eV"]["n"] == 2
        and found["shortlisted"] == 3
    )
    assert found["mean_distance_eV"]["value"] == pytest.approx(0.225) and found["both_active_0.2eV"] == 1
    assert agreement([])["both_within_0.2eV"]["n"] == 0
