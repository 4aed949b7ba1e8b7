"""From rows to numbers with intervals: what each metric is the mean of, how sure it is, how far two sets are
apart.

Rates are over all submitted structures, failures included; means over those where the quantity exists, with
their n. A row is a dict with the columns of metrics.csv, as numbers or as the text that a CSV gives back.
"""

import math

import numpy as np

from models.crystals.thresholds import ABSURD, OVERLAP_SCALE, STABLE

DRAWS = 2000  # of a bootstrap, and of a permutation test
SHIFT = 0.05  # eV by which the correction in ΔG_H is varied
ORACLE = "delta_g_h_oracle_eV"


def value(row: dict, column: str) -> float | None:
    """Number in a column, or None where it is empty."""
    return None if row[column] in ("", None) else float(row[column])


def values(rows: list[dict], column: str) -> np.ndarray:
    """Numbers of a column where they exist."""
    return np.array([value(row, column) for row in rows if value(row, column) is not None])


def pairs(rows: list[dict], *columns: str) -> np.ndarray:
    """[n, columns] numbers of the rows where all of them exist."""
    found = [[value(row, column) for column in columns] for row in rows]
    return np.array([numbers for numbers in found if None not in numbers]).reshape(-1, len(columns))


def is_true(row: dict, column: str) -> bool:
    """Whether a column says True, as a bool or as text; not where there is no such column."""
    return str(row.get(column)) == "True"


def is_active(row: dict, bound: float) -> bool:
    """Whether |ΔG_H| by the oracle is at most `bound` eV, H leaving the layer whole."""
    return (
        value(row, ORACLE) is not None
        and abs(value(row, ORACLE)) <= bound
        and not is_true(row, "h_carries_off")
    )


def is_stable(row: dict) -> bool:
    """Whether a relaxation that converged ended less than STABLE above the hull, and not absurdly below it."""
    e_hull = value(row, "e_hull_eV_per_atom")
    return is_true(row, "converged") and e_hull is not None and ABSURD < e_hull < STABLE


def is_sun(row: dict) -> bool:
    """Stable, unique in its set, novel."""
    return is_stable(row) and is_true(row, "unique") and is_true(row, "novel")


def pareto_front(costs: np.ndarray) -> np.ndarray:
    """Which rows of [n, k] no other row beats or equals in every cost, and beats in one; never a row with a
    NaN.
    """
    beaten = [((costs <= row).all(1) & (costs < row).any(1)).any() for row in costs]
    return ~np.isnan(costs).any(1) & ~np.array(beaten, bool)


def metric_samples(rows: list[dict]) -> dict[str, np.ndarray]:
    """What each metric is the mean of, [n]."""
    rate = lambda test: np.array([float(test(row)) for row in rows])
    at_least = lambda row, column, bound: value(row, column) is not None and value(row, column) >= bound
    both = abs(pairs(rows, ORACLE, "delta_g_h_dimenet_eV"))
    return {
        "two_d_rate": rate(lambda r: is_true(r, "two_d")),
        "one_2d_component_rate": rate(
            lambda r: str(r["components"]) == "1" and str(r["periodic_directions"]) == "2"
        ),
        "valid_rate": rate(lambda r: is_true(r, "valid")),
        "distance_valid_rate": rate(lambda r: at_least(r, "min_dist_ratio", OVERLAP_SCALE)),
        "smact_valid_rate": rate(lambda r: is_true(r, "smact_valid")),
        "converged_rate": rate(lambda r: is_true(r, "converged")),
        "mae_delta_g_h_dimenet_eV": abs(values(rows, "delta_g_h_dimenet_eV")),
        "mae_delta_g_h_oracle_eV": abs(values(rows, ORACLE)),
        "delta_g_h_gap_eV": both[:, 0] - both[:, 1],
        "active_rate_0.2eV": rate(lambda r: is_active(r, 0.2)),
        "hit_rate_0.2eV": rate(lambda r: is_active(r, 0.2) and is_stable(r)),
        "hit_rate_0.1eV": rate(lambda r: is_active(r, 0.1) and is_stable(r)),
        "expected_hit_rate_0.1eV": rate(lambda r: is_stable(r) * (value(r, "p_active") or 0.0)),
        "reconstructed_rate": rate(lambda r: "reconstructed" in str(r["h_flags"])),
        "stability_score": values(rows, "stability_score"),
        "synthesis_rate": rate(lambda r: at_least(r, "p_synth", 0.5)),
        "stable_rate": rate(is_stable),
        "unique_rate": rate(lambda r: is_true(r, "unique")),
        "novel_rate": rate(lambda r: is_true(r, "novel")),
        "sun_rate": rate(is_sun),
        "rmsd_relaxed_A": values(rows, "rmsd_relaxed_A"),
    }


def interval(sample: np.ndarray, seed: int = 0, rate: bool = False) -> dict:
    """Mean, n and a 95 % interval: bootstrap, but Wilson's for a rate of 0 or 1 (0 of n is not "exactly
    never").
    """
    n = len(sample)
    mean = float(sample.mean()) if n else None
    if n == 0 or (n == 1 and not rate):
        return {"value": mean, "ci95": [None, None], "n": n}
    if rate and mean in (0.0, 1.0):
        edge = 1.96**2 / (n + 1.96**2)
        return {"value": mean, "ci95": [0.0, edge] if mean == 0 else [1 - edge, 1.0], "n": n}
    draws = np.random.default_rng(seed).integers(n, size=(DRAWS, n))
    low, high = np.percentile(sample[draws].mean(1), [2.5, 97.5])
    return {"value": mean, "ci95": [float(low), float(high)], "n": n}


def aggregate(rows: list[dict], seed: int = 0) -> dict[str, dict]:
    """Every metric with its interval."""
    return {name: interval(sample, seed, "rate" in name) for name, sample in metric_samples(rows).items()}


def permutation_p(own: np.ndarray, other: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the difference of two means: how often labels dealt at random set them as far
    apart.
    """
    pooled, n = np.concatenate([own, other]), len(own)
    shuffled = np.random.default_rng(seed).permuted(np.tile(pooled, (DRAWS, 1)), axis=1)
    apart = abs(shuffled[:, :n].mean(1) - shuffled[:, n:].mean(1))
    return float((1 + (apart >= abs(own.mean() - other.mean()) - 1e-12).sum()) / (1 + DRAWS))


def difference(own: dict, other: dict) -> list[float]:
    """95 % interval of own − other from the intervals of both (independent sets; Zou and Donner 2008,
    Newcombe for rates).
    """
    (low, high), (other_low, other_high) = own["ci95"], other["ci95"]
    gap = own["value"] - other["value"]
    down = math.hypot(own["value"] - low, other_high - other["value"])
    up = math.hypot(high - own["value"], other["value"] - other_low)
    return [gap - down, gap + up]


def rate_ratio(own: np.ndarray, other: np.ndarray) -> dict:
    """Ratio of two rates of independent sets with its 95 % interval on the log (Katz et al. 1978).

    Where one has no hit its interval counts half a hit, and a ratio to none has no value.
    """
    if not (len(own) and len(other)):
        return {"value": None, "ci95": [None, None], "n": len(own)}
    a, b = own.sum() or 0.5, other.sum() or 0.5
    width = 1.96 * math.sqrt(max(0.0, 1 / a - 1 / len(own) + 1 / b - 1 / len(other)))
    middle = (a / len(own)) / (b / len(other))
    value = own.mean() / other.mean() if other.sum() else None
    return {"value": value, "ci95": [middle * math.exp(-width), middle * math.exp(width)], "n": len(own)}


def effective_number(labels: list[str]) -> float:
    """exp(Shannon entropy): how many kinds there are, each counted by its share."""
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(np.exp(-(share * np.log(share)).sum()))


def compare(own: list[dict], other: list[dict], seed: int = 0) -> dict[str, dict]:
    """Metrics of another set; of as many structures as the own, also the difference own − other, its interval
    and p-value.

    p-values are of single tests: of twenty metrics one falls below 0.05 by chance.
    """
    metrics = aggregate(other, seed)
    if len(own) != len(other):
        return metrics
    samples, own_metrics = (metric_samples(own), metric_samples(other)), aggregate(own, seed)
    for name, metric in metrics.items():
        mine = own_metrics[name]
        if None in (*mine["ci95"], *metric["ci95"]):
            continue
        metric |= {
            "difference": mine["value"] - metric["value"],
            "difference_ci95": difference(mine, metric),
            "p_value": permutation_p(samples[0][name], samples[1][name], seed),
        }
    return metrics


def sensitivity(rows: list[dict], seed: int = 0) -> dict[str, dict]:
    """Rates of active structures with the correction in ΔG_H changed by −SHIFT, 0 and +SHIFT eV."""
    found = {}
    for shift in (-SHIFT, 0.0, SHIFT):
        moved = [
            row if value(row, ORACLE) is None else row | {ORACLE: value(row, ORACLE) + shift} for row in rows
        ]
        metrics = aggregate(moved, seed)
        found[f"{shift:+.2f} eV"] = {
            name: metrics[name] for name in ("active_rate_0.2eV", "hit_rate_0.2eV", "hit_rate_0.1eV")
        }
    return found


def cell(metric: dict) -> str:
    """A metric with its interval and n."""
    if metric["value"] is None:
        return "–"
    bounds = "" if metric["ci95"][0] is None else f" [{metric['ci95'][0]:.3f}, {metric['ci95'][1]:.3f}]"
    return f"{metric['value']:.3f}{bounds} n={metric['n']}"


def difference_cell(metric: dict) -> str:
    """A difference with its interval and p-value; a star where p < 0.05."""
    if "difference" not in metric:
        return "–"
    (low, high), p = metric["difference_ci95"], metric["p_value"]
    return f"{metric['difference']:+.3f} [{low:+.3f}, {high:+.3f}] " + (
        "p<0.001*" if p < 0.001 else f"p={p:.3f}{'*' * (p < 0.05)}"
    )


def table(sets: dict[str, dict[str, dict]]) -> str:
    """Markdown: the metrics of several sets, and the differences of the first to the others where they have
    one.
    """
    own, *others = sets
    names = list(dict.fromkeys(name for metrics in sets.values() for name in metrics))
    lines = ["| metric | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    lines += [
        f"| {n} | " + " | ".join(cell(metrics[n]) if n in metrics else "" for metrics in sets.values()) + " |"
        for n in names
    ]
    tested = [other for other in others if any("difference" in metric for metric in sets[other].values())]
    if not tested:
        return "\n".join(lines)
    lines += [
        "",
        f"{own} less another set of as many structures, 95 % interval, p of a permutation test (one test each, * below 0.05):",
        "",
        "| metric | " + " | ".join(tested) + " |",
        "|---" * (len(tested) + 1) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(difference_cell(sets[other][name]) for other in tested) + " |"
        for name in sets[own]
    ]
    return "\n".join(lines)


def flat(sets: dict[str, dict[str, dict]]) -> list[dict]:
    """One row a set and metric, for a CSV."""
    rows = []
    for label, metrics in sets.items():
        for name, metric in metrics.items():
            low, high = metric.get("difference_ci95", ["", ""])
            rows.append(
                {
                    "set": label,
                    "metric": name,
                    "value": metric["value"],
                    "low95": metric["ci95"][0],
                    "high95": metric["ci95"][1],
                    "n": metric["n"],
                    "difference": metric.get("difference", ""),
                    "difference_low95": low,
                    "difference_high95": high,
                    "p_value": metric.get("p_value", ""),
                }
            )
    return rows
