"""Which structures to compute next: P(|ΔG_H| <= 0.1 eV) with the oracle's own error, the ranking, a second
opinion.
"""

import json
import math
from pathlib import Path

import numpy as np

from models.crystals.thresholds import ABSURD, AGREE, VERY_ACTIVE
from models.evaluation.metrics import ORACLE, interval, is_stable, is_sun, is_true, pairs, pareto_front, value

DIMENET, DIMENET_STD, SECOND = "delta_g_h_dimenet_eV", "delta_g_h_dimenet_std_eV", "delta_g_h_second_eV"
VALIDATION = {
    "literature": "all",
    "single-atom catalysts": "as it is",
}  # measured against DFT, set -> its summary


def oracle_error(path: Path) -> tuple[float, str]:
    """RMSE in eV of the oracle against DFT, pooled over metal surfaces of the literature and single-atom
    catalysts.

    The layers that are judged are neither: the one set is what potentials know best, the other bonds at odd
        metals in a sheet.
    Pooled by structure, bias included.

    Returns:
        the error, and in words where it comes from.

    Raises:
        ValueError: the file holds neither set.
    """
    content = json.loads(Path(path).read_text())
    found = {name: content[name][kind] for name, kind in VALIDATION.items() if name in content}
    if not found:
        raise ValueError(f"{path} holds none of {', '.join(VALIDATION)}: run python -m data.build.validate")
    n = sum(part["n"] for part in found.values())
    rmse = math.sqrt(sum(part["n"] * part["rmse"] ** 2 for part in found.values()) / n)
    parts = ", ".join(f"{name} {part['rmse']:.2f} (n = {part['n']})" for name, part in found.items())
    return rmse, f"RMSE against DFT of {content['potential']}: {parts}"


def within(centre: float, sigma: float, bound: float = VERY_ACTIVE) -> float:
    """P(|x| <= bound) of a normal x."""
    below = lambda x: 0.5 * (1 + math.erf((x - centre) / (sigma * math.sqrt(2))))
    return below(bound) - below(-bound)


def p_active(row: dict, sigma: float) -> float | None:
    """P(|ΔG_H| <= VERY_ACTIVE) of a row, `sigma` being the oracle's error in eV.

    From the oracle's value; where it never ran, from DimeNet++'s, widened by the spread of its members; None
    where there is neither, where the oracle found no site that adsorbs, or where H takes an atom of the layer
    along.
    """
    if is_true(row, "h_carries_off"):
        return None
    if value(row, ORACLE) is not None:
        return within(value(row, ORACLE), sigma)
    if row["h_flags"] or value(row, DIMENET) is None:
        return None
    return within(value(row, DIMENET), math.hypot(sigma, value(row, DIMENET_STD) or 0.0))


def candidate_class(row: dict) -> int:
    """1: two-dimensional, stable, unique, novel; 2: not novel or not unique; 3: not stable."""
    if not (is_true(row, "two_d") and is_stable(row)):
        return 3
    return 1 if is_sun(row) else 2


def rank(rows: list[dict]) -> list[dict]:
    """The rows that have a P(|ΔG_H| <= VERY_ACTIVE), best first: by class, then by that probability, then by
    E_hull.
    """
    e_hull = lambda row: (
        math.inf if value(row, "e_hull_eV_per_atom") is None else value(row, "e_hull_eV_per_atom")
    )
    known = [row for row in rows if value(row, "p_active") is not None]
    return sorted(known, key=lambda row: (candidate_class(row), -value(row, "p_active"), e_hull(row)))


def rank_into(rows: list[dict], sigma: float):
    """Fills the columns p_active, candidate_class, rank, and pareto: the front of |ΔG_H| by the oracle,
    E_hull and P_synth.
    """
    for row in rows:
        probability = p_active(row, sigma)
        row["p_active"] = "" if probability is None else probability
        row["candidate_class"] = "" if probability is None else candidate_class(row)
    for place, row in enumerate(rank(rows), 1):
        row["rank"] = place
    number = lambda row, column: math.nan if value(row, column) is None else value(row, column)
    costs = [
        [abs(number(row, ORACLE)), number(row, "e_hull_eV_per_atom"), -number(row, "p_synth")] for row in rows
    ]
    costs = np.array(costs).reshape(-1, 3)
    costs[(costs[:, 1] <= ABSURD) | np.array([not is_true(row, "converged") for row in rows], bool)] = (
        math.nan
    )
    costs[:, 1] = np.maximum(costs[:, 1], 0)  # what lies below the hull lies on it: mostly a phase is missing
    for row, best in zip(rows, pareto_front(costs)):
        row["pareto"] = bool(best)


def agreement(rows: list[dict], seed: int = 0) -> dict:
    """How often the second potential's ΔG_H is within AGREE of the oracle's, of the rows that have both, and
    the mean distance.
    """
    first, second = pairs(rows, ORACLE, SECOND).T
    apart = abs(first - second)
    return {
        "both_within_0.2eV": interval((apart <= AGREE).astype(float), seed, rate=True),
        "mean_distance_eV": interval(apart, seed),
        "both_active_0.2eV": int(np.sum((abs(first) <= AGREE) & (abs(second) <= AGREE))),
        "shortlisted": len(rows),
    }
