"""What is said of a structure from its row: stable, active, novel, and how far it gets in the chain of gates.

A structure is *proven* up to a gate if it passes this one and all before; it is still *possible* if it has
failed none of them, though some were not computed for it (phonons, for instance, are for the best few). A hit
is proven up to the gate "active" and has failed none of those behind it that were computed.
"""

import math

import numpy as np
import pandas as pd

from models.crystals.thresholds import ACTIVE, BELOW_HULL, STABLE, SYNTHESIZABLE
from models.evaluation.rows import Columns, is_true, numbers

ORACLE, DIMENET, DFT = "delta_g_h_oracle_eV", "delta_g_h_dimenet_eV", "delta_g_h_dft_eV"
POTENTIAL, ORACLE_STD = "delta_g_h_potential_eV", "delta_g_h_oracle_std_eV"
GAP, GAP_STD = "gap_eV", "gap_std_eV"
E_HULL = "e_hull_eV_per_atom"
GATES = {  # in the order of the chain: what passes
    "2D": "free-standing two-dimensional crystal",
    "valid": "no overlapping atoms, charges can balance",
    "stable": "converged, less than 0.1 eV/atom above known competing phases and not far below them",
    "H stays": "hydrogen adsorbs, the layer keeps its atoms and its structure",
    "active": "|ΔG_H| ≤ 0.2 eV by the oracle",
    "aqueous": "within the metastability bound of the Pourbaix hull at the working point",
    "dynamic": "no imaginary phonons, positive elastic tensor",
    "synthesizable": "P_synth ≥ 0.5",
    "DFT": "|ΔG_H| ≤ 0.2 eV by DFT",
}
NEEDED = 5  # a hit is proven up to this many gates


def stability_score(e_hull: float) -> float:
    """exp(−max(0, E_form − E_stable^ref)), energies in eV/atom."""
    return math.exp(-max(0.0, e_hull))


def is_active(rows: pd.DataFrame, bound: float = ACTIVE) -> np.ndarray:
    """[n] whether |ΔG_H| by the oracle is at most `bound` eV."""
    return abs(numbers(rows[ORACLE])) <= bound


def competing_phase_known(rows: pd.DataFrame) -> np.ndarray:
    """[n] whether E_hull means anything: something competes, and the structure does not lie so far below the
    hull that what it decomposes to must be missing (models.physics.hull.competing_phase_known).
    """
    return (numbers(rows["hull_compounds"]) > 0) & (numbers(rows[E_HULL]) >= BELOW_HULL)


def is_stable(rows: pd.DataFrame) -> np.ndarray:
    """[n] whether a converged relaxation ended less than STABLE above the hull of known competing phases."""
    return is_true(rows["converged"]) & competing_phase_known(rows) & (numbers(rows[E_HULL]) < STABLE)


def is_sun(rows: pd.DataFrame) -> np.ndarray:
    """[n] whether stable, unique in its set, and novel."""
    return is_stable(rows) & is_true(rows["unique"]) & is_true(rows["novel"])


def gates_passed(rows: pd.DataFrame, active: float = ACTIVE) -> pd.DataFrame:
    """[n, GATES] whether each structure passes each gate by itself; NA where that was not computed.

    Args:
        rows: table with the columns of models.evaluation.schema.METRICS.
        active: bound of |ΔG_H| of the gate "active", eV.
    """
    oracle = rows["h_flags"] != ""  # it ran
    vibrates = rows["phonons"].isin(["stable", "unstable"])
    columns = {
        "2D": _verdict(is_true(rows["two_d"])),
        "valid": _verdict(is_true(rows["valid"])),
        "stable": _verdict(is_stable(rows)),
        "H stays": _verdict(rows[ORACLE].notna(), oracle),
        "active": _verdict(is_active(rows, active), oracle),
        "aqueous": rows["aqueous"],
        "dynamic": _verdict((rows["phonons"] == "stable") & (rows["elastic"] == "stable"), vibrates),
        "synthesizable": _verdict(numbers(rows["p_synth"]) >= SYNTHESIZABLE, rows["p_synth"].notna()),
        "DFT": _verdict(abs(numbers(rows[DFT])) <= active, rows[DFT].notna()),
    }
    return pd.DataFrame(columns, index=rows.index)


def _verdict(passes, known=True) -> pd.Series:
    """Boolean column of a gate, NA where nothing is known."""
    return pd.Series(np.asarray(passes, bool), dtype="boolean").where(np.broadcast_to(known, len(passes)))


def is_hit(rows: pd.DataFrame, active: float = ACTIVE) -> np.ndarray:
    """[n] whether each structure is proven up to "active" and has failed no gate behind it."""
    gates = gates_passed(rows, active)
    proven, possible = gates.fillna(False).to_numpy(bool), gates.fillna(True).to_numpy(bool)
    return proven[:, :NEEDED].all(axis=1) & possible.all(axis=1)


def candidates(rows: pd.DataFrame) -> Columns:
    """The columns hit, gate_passed (last of the unbroken chain) and stopped_by (first not passed)."""
    names, found = ["", *GATES], {}
    for row, hit in zip(gates_passed(rows).assign(name=rows["material_id"]).to_dict("records"), is_hit(rows)):
        name, passed = row.pop("name"), 0
        while passed < len(GATES) and row[names[passed + 1]] is True:
            passed += 1
        stop = names[passed + 1] if passed < len(GATES) else ""
        unknown = stop and pd.isna(row[stop])
        found[name] = {
            "hit": bool(hit),
            "gate_passed": names[passed],
            "stopped_by": f"{stop} (not computed)" if unknown else stop,
        }
    return found
