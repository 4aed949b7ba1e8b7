"""Which structures to compute next: P(|ΔG_H| <= 0.1 eV) with the oracle's error, and the ranking by it."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from models.crystals.thresholds import AGREE, VERY_ACTIVE
from models.evaluation.metrics import interval, pareto_front
from models.evaluation.rows import Columns, is_true, numbers, records
from models.evaluation.verdicts import (
    DFT,
    DIMENET,
    E_HULL,
    ORACLE,
    ORACLE_STD,
    competing_phase_known,
    is_stable,
    is_sun,
)
from models.infra.files import read_json

# eV: what is left where DFT has spoken: its convergence (0.03 eV, docs/dft.md) and the site, chosen by the
# potential.
DFT_ERROR = 0.05
DIMENET_STD, SECOND = "delta_g_h_dimenet_std_eV", "delta_g_h_second_eV"
VALIDATION = {  # sets with DFT values in data/validation.json → which of their summaries
    "literature": "all",
    "single-atom catalysts": "as it is",
}


def oracle_error(path: Path) -> tuple[float, str]:
    """RMSE in eV of the oracle against DFT, pooled over metal surfaces of the literature and single-atom
    catalysts.

    The layers that are judged are neither: the one set is what potentials know best, the other bonds at odd
    metals in a sheet. Pooled by structure, bias included.

    Returns:
        the error, and in words where it comes from.

    Raises:
        ValueError: the file holds neither set.
    """
    content = read_json(path)
    found = {name: content[name][kind] for name, kind in VALIDATION.items() if name in content}
    if not found:
        raise ValueError(f"{path} holds none of {', '.join(VALIDATION)}: run python -m data.build.validate")
    n = sum(part["n"] for part in found.values())
    rmse = math.sqrt(sum(part["n"] * part["rmse"] ** 2 for part in found.values()) / n)
    parts = ", ".join(f"{name} {part['rmse']:.2f} (n = {part['n']})" for name, part in found.items())
    return rmse, f"RMSE against DFT of {content['potential']}: {parts}"


def within(centre: np.ndarray, sigma: np.ndarray, bound: float = VERY_ACTIVE) -> np.ndarray:
    """P(|x| <= bound) of normals with these means and widths."""
    return norm.cdf(bound, centre, sigma) - norm.cdf(-bound, centre, sigma)


def p_active(rows: pd.DataFrame, sigma: float) -> np.ndarray:
    """[n] P(|ΔG_H| <= VERY_ACTIVE), `sigma` (eV) being the error of an oracle that states none.

    From DFT's value where there is one, else from the oracle's; where that never ran, from DimeNet++'s,
    widened by the spread of its members; NaN where there is none, or where the oracle found no site that
    adsorbs.
    """
    dft, oracle, spread = numbers(rows[DFT]), numbers(rows[ORACLE]), rows[DIMENET_STD].fillna(0.0)
    own = numbers(rows[ORACLE_STD].fillna(sigma))
    predicted = numbers(rows[DIMENET].where(rows["h_flags"] == ""))
    guessed = within(predicted, np.hypot(sigma, spread))
    judged = np.where(np.isnan(oracle), guessed, within(oracle, own))
    return np.where(np.isnan(dft), judged, within(dft, np.array(DFT_ERROR)))


def candidate_class(rows: pd.DataFrame) -> np.ndarray:
    """[n] 1: 2D, stable, unique, novel; 2: not novel or not unique; 3: dissolves in water; 4: not stable."""
    stable = is_true(rows["two_d"]) & is_stable(rows)
    dissolves = ~rows["aqueous"].fillna(True).to_numpy(bool)  # what is not known counts as resistant
    return np.select([~stable, dissolves, is_sun(rows)], [4, 3, 1], 2)


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a P(|ΔG_H| <= VERY_ACTIVE), best first: by class, then those of elements that one
    would use, then by that probability, then by E_hull, then by price.
    """
    known = rows[rows["p_active"].notna()]
    keys = [candidate_class(known), known["avoid_elements"] != "", -numbers(known["p_active"])]
    last = [numbers(known["price_usd_per_kg"]), numbers(known[E_HULL])]  # lexsort: the weakest key first
    return known.iloc[np.lexsort([*last, *reversed(keys)])]


def ranking(rows: pd.DataFrame, sigma: float) -> Columns:
    """The columns p_active, candidate_class, rank and pareto.

    Args:
        rows: table with all that the ranking reads.
        sigma: error of an oracle that states none, eV.
    """
    rows = rows.assign(p_active=p_active(rows, sigma))
    rows["pareto"] = pareto_front(pareto_costs(rows))
    best = ranked(rows)
    best = best.assign(candidate_class=candidate_class(best), rank=range(1, len(best) + 1))
    found = {name: {"pareto": front} for name, front in zip(rows["material_id"], rows["pareto"])}
    for row in records(best, ("material_id", "p_active", "candidate_class", "rank")):
        found[row.pop("material_id")] |= row
    return found


def pareto_costs(rows: pd.DataFrame) -> np.ndarray:
    """[n, 3] |ΔG_H| by the oracle, E_hull, −P_synth; NaN where a structure cannot be on the front."""
    costs = np.column_stack([abs(numbers(rows[ORACLE])), numbers(rows[E_HULL]), -numbers(rows["p_synth"])])
    costs[~competing_phase_known(rows) | ~is_true(rows["converged"])] = np.nan
    costs[:, 1] = np.maximum(costs[:, 1], 0)  # what lies a little below the hull lies on it
    return costs


def agreement(rows: pd.DataFrame, seed: int = 0) -> dict:
    """How often the second potential's ΔG_H is within AGREE of the oracle's, of the rows that have both, and
    the mean distance.
    """
    both = rows[[ORACLE, SECOND]].dropna()
    apart = numbers(abs(both[ORACLE] - both[SECOND]))
    return {
        "both_within_0.2eV": interval((apart <= AGREE).astype(float), seed, rate=True),
        "mean_distance_eV": interval(apart, seed),
        "both_active_0.2eV": int((abs(both) <= AGREE).all(axis=1).sum()),
        "shortlisted": len(rows),
    }
