"""From a table to numbers with intervals: what each metric is the mean of, how sure, how far sets differ.

Rates are over all submitted structures, failures included; means over those where the quantity exists, with
their n. A table has the columns and dtypes of models.evaluation.schema.METRICS.
"""

import math

import numpy as np
import pandas as pd
from scipy import stats
from scipy.stats.contingency import relative_risk

from models.crystals.thresholds import OVERLAP_SCALE, STABLE, SYNTHESIZABLE, VERY_ACTIVE
from models.evaluation.rows import is_true, numbers, table
from models.evaluation.schema import COMPARISON, SET_METRICS
from models.evaluation.verdicts import (
    DIMENET,
    E_HULL,
    ORACLE,
    competing_phase_known,
    is_active,
    is_hit,
    is_stable,
    is_sun,
)
from models.infra.files import markdown_table

DRAWS = 2000  # of a bootstrap and of a permutation test: p is known to ± 0.005 at 0.05
LEVEL = 0.95  # of every interval
SHIFT = 0.05  # eV by which the correction in ΔG_H is varied
NOTHING = {"value": None, "ci95": [None, None], "n": 0}


def pareto_front(costs: np.ndarray) -> np.ndarray:
    """Which rows of [n, k] no other row beats or equals in every cost, and beats in one; never a row with a
    NaN.
    """
    beaten = [((costs <= row).all(1) & (costs < row).any(1)).any() for row in costs]
    return ~np.isnan(costs).any(1) & ~np.array(beaten, bool)


def metric_samples(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """What each metric is the mean of: of a rate one value a row, of a mean one value a row that has it."""
    existing = rows[[ORACLE, DIMENET]].dropna()
    stable = is_stable(rows)
    one_layer = (rows["components"] == 1) & (rows["periodic_directions"] == 2)
    samples = {
        "two_d_rate": is_true(rows["two_d"]),
        "one_2d_component_rate": is_true(one_layer),
        "valid_rate": is_true(rows["valid"]),
        "distance_valid_rate": numbers(rows["min_dist_ratio"]) >= OVERLAP_SCALE,
        "smact_valid_rate": is_true(rows["smact_valid"]),
        "converged_rate": is_true(rows["converged"]),
        "mae_delta_g_h_dimenet_eV": abs(rows[DIMENET].dropna()),
        "mae_delta_g_h_oracle_eV": abs(rows[ORACLE].dropna()),
        "delta_g_h_gap_eV": abs(existing[ORACLE]) - abs(existing[DIMENET]),
        "active_rate_0.2eV": is_active(rows),
        "hit_rate_0.2eV": is_hit(rows),
        "hit_rate_0.1eV": is_hit(rows, VERY_ACTIVE),
        "expected_hit_rate_0.1eV": stable * rows["p_active"].fillna(0.0),
        "reconstructed_rate": rows["h_flags"].str.contains("reconstructed"),
        "stability_score": rows["stability_score"].dropna(),
        "synthesis_rate": numbers(rows["p_synth"]) >= SYNTHESIZABLE,
        "stable_rate": stable,
        "no_competitor_rate": (numbers(rows[E_HULL]) < STABLE) & ~competing_phase_known(rows),
        "unique_rate": is_true(rows["unique"]),
        "novel_rate": is_true(rows["novel"]),
        "sun_rate": is_sun(rows),
        "rmsd_relaxed_A": rows["rmsd_relaxed_A"].dropna(),
    }
    return {name: np.asarray(sample, float) for name, sample in samples.items()}


def interval(sample: np.ndarray, seed: int = 0, rate: bool = False) -> dict:
    """Mean, n and a 95 % interval: Wilson's for a share of yes and no, else a bootstrap of the mean.

    Args:
        sample: [n].
        rate: whether the values are yes and no (1 and 0), or probabilities of yes.
    """
    n = len(sample)
    if n == 0:
        return dict(NOTHING)
    mean = float(np.mean(sample))
    if rate and np.isin(sample, (0, 1)).all():
        bounds = stats.binomtest(int(np.sum(sample)), n).proportion_ci(LEVEL, method="wilson")
    elif n == 1:
        return {"value": mean, "ci95": [None, None], "n": n}
    else:  # percentiles: bias-corrected ones have no value where all values agree
        bounds = stats.bootstrap(
            (sample,), np.mean, n_resamples=DRAWS, confidence_level=LEVEL, method="percentile", rng=seed
        ).confidence_interval
    return {"value": mean, "ci95": [float(bounds.low), float(bounds.high)], "n": n}


def aggregate(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """Every metric with its interval."""
    rates = {metric.name for metric in SET_METRICS if metric.is_rate}
    samples = metric_samples(rows)
    return {name: interval(sample, seed, name in rates) for name, sample in samples.items()}


def p_value(own: np.ndarray, other: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of no difference: Fisher's exact test of yes and no, else a permutation test of means."""
    if np.isin([*own, *other], (0, 1)).all():
        counts = [[np.sum(sample), len(sample) - np.sum(sample)] for sample in (own, other)]
        return float(stats.fisher_exact(np.array(counts, int)).pvalue)
    found = stats.permutation_test(
        (own, other), _mean_difference, vectorized=True, n_resamples=DRAWS, rng=seed
    )
    return float(found.pvalue)


def _mean_difference(own: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    return own.mean(axis=axis) - other.mean(axis=axis)


def difference(own: dict, other: dict) -> list[float]:
    """95 % interval of own − other from the intervals of both (independent sets; Zou and Donner 2008,
    Newcombe for rates; scipy has neither).
    """
    (low, high), (other_low, other_high) = own["ci95"], other["ci95"]
    gap = own["value"] - other["value"]
    down = math.hypot(own["value"] - low, other_high - other["value"])
    up = math.hypot(high - own["value"], other["value"] - other_low)
    return [gap - down, gap + up]


def rate_ratio(own: np.ndarray, other: np.ndarray) -> dict:
    """Ratio of two rates of independent sets with its 95 % interval (relative risk: Katz et al. 1978).

    Where a set has no hit, the log of the ratio is infinite: the bound that exists is then the quotient of
    the nearest ends of both Wilson intervals, which is wider; a ratio to none has no value or upper bound.
    """
    if not (len(own) and len(other)):
        return {"value": None, "ci95": [None, None], "n": len(own)}
    hits, other_hits = int(np.sum(own)), int(np.sum(other))
    if hits and other_hits:
        found = relative_risk(hits, len(own), other_hits, len(other))
        bounds = found.confidence_interval(LEVEL)
        return {"value": float(found.relative_risk), "ci95": [float(x) for x in bounds], "n": len(own)}
    (low, high), (other_low, other_high) = (interval(set_, rate=True)["ci95"] for set_ in (own, other))
    if other_hits:
        return {"value": 0.0, "ci95": [0.0, high / other_low], "n": len(own)}
    return {"value": None, "ci95": [low / other_high, None], "n": len(own)}


def effective_number(labels: list[str]) -> float:
    """exp(Shannon entropy): how many kinds there are, each counted by its share."""
    return float(np.exp(stats.entropy(np.unique(labels, return_counts=True)[1])))


def compare(own: pd.DataFrame, other: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """Metrics of another set; of as many structures as the own, also the difference own − other, its interval
    and p-value.

    p-values are of single tests: of twenty metrics one falls below 0.05 by chance.
    """
    metrics = aggregate(other, seed)
    if len(own) != len(other):
        return metrics
    own_metrics, own_samples, samples = aggregate(own, seed), metric_samples(own), metric_samples(other)
    for name, metric in metrics.items():
        mine = own_metrics[name]
        if None in (*mine["ci95"], *metric["ci95"]):
            continue
        metric |= {
            "difference": mine["value"] - metric["value"],
            "difference_ci95": difference(mine, metric),
            "p_value": p_value(own_samples[name], samples[name], seed),
        }
    return metrics


def sensitivity(rows: pd.DataFrame, seed: int = 0) -> dict[str, dict]:
    """Rates of active structures with the correction in ΔG_H changed by −SHIFT, 0 and +SHIFT eV."""
    found = {}
    for shift in (-SHIFT, 0.0, SHIFT):
        metrics = aggregate(rows.assign(**{ORACLE: rows[ORACLE] + shift}), seed)
        shown = ("active_rate_0.2eV", "hit_rate_0.2eV", "hit_rate_0.1eV")
        found[f"{shift:+.2f} eV"] = {name: metrics[name] for name in shown}
    return found


def cell(metric: dict) -> str:
    """A metric with its interval and n."""
    if metric["value"] is None:
        return "–"
    low, high = metric["ci95"]
    bounds = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{metric['value']:.3f}{bounds} n={metric['n']}"


def difference_cell(metric: dict) -> str:
    """A difference with its interval and p-value; a star where p < 0.05."""
    if "difference" not in metric:
        return "–"
    (low, high), p = metric["difference_ci95"], metric["p_value"]
    chance = "p<0.001*" if p < 0.001 else f"p={p:.3f}{'*' * (p < 0.05)}"
    return f"{metric['difference']:+.3f} [{low:+.3f}, {high:+.3f}] {chance}"


def markdown(sets: dict[str, dict[str, dict]]) -> str:
    """The metrics of several sets, and the differences of the first to the others where they have one."""
    own, *others = sets
    rows = []
    for name in dict.fromkeys(name for metrics in sets.values() for name in metrics):
        rows.append([name, *(cell(found[name]) if name in found else "" for found in sets.values())])
    text = markdown_table(["metric", *sets], rows)
    tested = [other for other in others if any("difference" in metric for metric in sets[other].values())]
    if not tested:
        return text
    rows = [[name, *(difference_cell(sets[other][name]) for other in tested)] for name in sets[own]]
    test = "p of Fisher's exact test or of a permutation test (one test each, * below 0.05)"
    what = f"{own} minus another set of as many structures, 95 % interval, {test}:"
    return "\n\n".join([text, what, markdown_table(["metric", *tested], rows)])


def flat(sets: dict[str, dict[str, dict]]) -> pd.DataFrame:
    """One row a set and metric, with the columns of COMPARISON."""
    found = []
    for label, metrics in sets.items():
        for name, metric in metrics.items():
            low, high = metric["ci95"]
            difference_low, difference_high = metric.get("difference_ci95", (None, None))
            found.append(
                {
                    "set": label,
                    "metric": name,
                    "value": metric["value"],
                    "low95": low,
                    "high95": high,
                    "n": metric["n"],
                    "difference": metric.get("difference"),
                    "difference_low95": difference_low,
                    "difference_high95": difference_high,
                    "p_value": metric.get("p_value"),
                }
            )
    return table(found, COMPARISON)
