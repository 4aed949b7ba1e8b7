"""The funnel: how many structures of a set get how far in the chain of gates (models.evaluation.verdicts)."""

import numpy as np
import pandas as pd

from models.evaluation.metrics import interval
from models.evaluation.rows import is_true
from models.evaluation.verdicts import GATES, NEEDED, gates_passed
from models.infra.files import markdown_table


def funnel(rows: pd.DataFrame) -> list[dict]:
    """How many structures get how far.

    Returns:
        for each gate {"gate", "meaning", "proven", "possible", "computed": numbers of structures (computed:
        of those possible before it), "rate": that of the proven with its interval}.
    """
    gates = gates_passed(rows)
    proven = possible = np.ones(len(rows), bool)
    found = []
    for name, meaning in GATES.items():
        computed = possible & gates[name].notna().to_numpy()
        proven = proven & is_true(gates[name])
        possible = possible & gates[name].fillna(True).to_numpy(bool)
        found.append(
            {
                "gate": name,
                "meaning": meaning,
                "proven": int(proven.sum()),
                "possible": int(possible.sum()),
                "computed": int(computed.sum()),
                "rate": interval(proven.astype(float), rate=True),
            }
        )
    return found


def hit_gates(rows: pd.DataFrame) -> list[str]:
    """Gates that a hit of this set has passed: those needed, and those computed for any structure."""
    gates = gates_passed(rows)
    return [name for k, name in enumerate(GATES) if k < NEEDED or gates[name].notna().any()]


def funnels_markdown(funnels: dict[str, list[dict]]) -> str:
    """A table of several sets: structures proven up to each gate, in brackets those still possible."""
    rows = []
    for k, (name, meaning) in enumerate(GATES.items()):
        cells = []
        for found in funnels.values():
            proven, possible = found[k]["proven"], found[k]["possible"]
            cells.append(f"{proven}" + (f" ({possible})" if possible != proven else ""))
        rows.append([name, *cells, meaning])
    return markdown_table(["gate", *funnels, "passes"], rows)
