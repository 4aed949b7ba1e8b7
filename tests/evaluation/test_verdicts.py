"""What a structure may be called: stable only where something competes, and a hit only through all gates."""

import itertools

import numpy as np
import pytest

from models.evaluation.funnel import funnel, funnels_markdown, hit_gates
from models.evaluation.metrics import aggregate, metric_samples
from models.evaluation.rows import join, table
from models.evaluation.shortlist import candidate_class, p_active, ranked, ranking
from models.evaluation.verdicts import (
    GATES,
    NEEDED,
    candidates,
    competing_phase_known,
    gates_passed,
    is_hit,
    is_stable,
    is_sun,
)
from models.physics import hull

PERFECT = {
    "two_d": True,
    "valid": True,
    "converged": True,
    "e_hull_eV_per_atom": 0.02,
    "hull_compounds": 4,
    "delta_g_h_oracle_eV": 0.05,
    "h_flags": "adsorbed:3 then adsorbed:1",
    "e_pourbaix_eV_per_atom": 0.1,
    "aqueous": True,
    "phonons": "stable",
    "elastic": "stable",
    "p_synth": 0.8,
    "delta_g_h_dft_eV": 0.12,
    "unique": True,
    "novel": True,
}
FAILS = {  # what makes a perfect structure fail each gate
    "2D": {"two_d": False},
    "valid": {"valid": False},
    "stable": {"e_hull_eV_per_atom": 0.3},
    "H stays": {"delta_g_h_oracle_eV": None, "h_flags": "desorbed:3"},
    "active": {"delta_g_h_oracle_eV": -0.21},
    "aqueous": {"aqueous": False},
    "dynamic": {"phonons": "unstable"},
    "synthesizable": {"p_synth": 0.4},
    "DFT": {"delta_g_h_dft_eV": 0.5},
}
UNKNOWN = {
    "aqueous": {"aqueous": None},
    "dynamic": {"phonons": "failed", "elastic": "failed"},
    "synthesizable": {"p_synth": None},
    "DFT": {"delta_g_h_dft_eV": None},
}


@pytest.mark.parametrize(
    "e_hull, compounds",
    [(-0.657, 0), (-0.623, 0), (-0.024, 0), (0.05, 0), (-0.16, 12)],
    ids=["Ca2Pt", "Sr2Pt", "Li4Tl2Cu", "above the line of the elements", "far below a known hull"],
)
def test_nothing_is_stable_where_nothing_competes(e_hull, compounds):
    """{converged, E_hull −0.657, hull_compounds 0} was called stable, unique, novel and a hit."""
    rows = table([PERFECT | {"e_hull_eV_per_atom": e_hull, "hull_compounds": compounds}])
    assert not is_stable(rows)[0] and not is_sun(rows)[0] and not is_hit(rows)[0]
    metrics = aggregate(rows)
    assert metrics["stable_rate"]["value"] == 0 and metrics["no_competitor_rate"]["value"] == 1
    assert candidate_class(rows)[0] == 4
    assert not join(rows.assign(material_id="a"), ranking(rows.assign(material_id="a"), 0.5))["pareto"][0]


def test_what_the_elements_alone_make_unstable_needs_no_competitor():
    rows = table([PERFECT | {"e_hull_eV_per_atom": 0.79, "hull_compounds": 0}])
    assert aggregate(rows)["no_competitor_rate"]["value"] == 0 and not is_stable(rows)[0]


def test_verdicts_are_those_of_the_hull():
    cases = list(itertools.product([-1.0, -0.15, -0.1501, 0.0, 0.0999, 0.1, 2.0], [0, 1, 7]))
    rows = table([PERFECT | {"e_hull_eV_per_atom": e, "hull_compounds": n} for e, n in cases])
    assert is_stable(rows).tolist() == [hull.is_stable(*case) for case in cases]
    assert competing_phase_known(rows).tolist() == [hull.competing_phase_known(*case) for case in cases]


def test_each_gate_stops_what_fails_it_and_no_other():
    rows = table([PERFECT | {"material_id": "perfect"}] + [FAILS[gate] for gate in ()])
    assert gates_passed(rows).all(axis=None)
    for k, gate in enumerate(GATES):
        failed = table([PERFECT | FAILS[gate] | {"material_id": gate}])
        verdicts = gates_passed(failed).iloc[0]
        later = {"active"} if gate == "H stays" else set()
        assert set(verdicts.index[~verdicts.fillna(True).astype(bool)]) == {gate} | later
        said = candidates(failed)[gate]
        assert said == {"hit": False, "gate_passed": ["", *GATES][k], "stopped_by": gate}


def test_a_hit_is_the_chain_up_to_what_was_computed():
    """What is not known after "active" does not stop a hit, and is named; what is known and failed does."""
    rows = [PERFECT | changes | {"material_id": gate} for gate, changes in UNKNOWN.items()]
    rows.append(PERFECT | UNKNOWN["aqueous"] | FAILS["dynamic"] | {"material_id": "unstable"})
    rows.append(PERFECT | {"h_flags": "", "delta_g_h_oracle_eV": None, "material_id": "no oracle"})
    found = candidates(table(rows))
    assert [found[row["material_id"]]["hit"] for row in rows] == [True, True, True, True, False, False]
    assert found["aqueous"]["stopped_by"] == "aqueous (not computed)"
    assert found["aqueous"]["gate_passed"] == "active"
    assert found["no oracle"]["stopped_by"] == "H stays (not computed)"
    assert metric_samples(table(rows))["hit_rate_0.2eV"].tolist() == [1, 1, 1, 1, 0, 0]
    assert hit_gates(table(rows[:1])) == [name for name in GATES if name != "aqueous"]


def test_dft_has_the_last_word_in_the_ranking():
    """A candidate that DFT refutes falls behind one of which the oracle alone says less; one that DFT
    confirms is surer than the oracle can make it.
    """
    said = {"refuted": (0.0, 0.6), "oracle alone": (0.15, None), "confirmed": (0.3, 0.02)}
    rows = []
    for name, (oracle, dft) in said.items():
        rows.append(PERFECT | {"material_id": name, "delta_g_h_oracle_eV": oracle, "delta_g_h_dft_eV": dft})
    rows = table(rows)
    refuted, alone, confirmed = p_active(rows, 0.3)
    assert refuted < 0.001 < alone < 0.3 < 0.9 < confirmed
    ranks = join(rows, ranking(rows, 0.3))["rank"]
    assert ranks.tolist() == [3, 2, 1]


def test_the_funnel_counts_by_hand_and_only_narrows():
    rows = [PERFECT, PERFECT | UNKNOWN["dynamic"], *(PERFECT | changes for changes in FAILS.values())]
    found = {gate["gate"]: gate for gate in funnel(table(rows))}
    proven = [found[gate]["proven"] for gate in GATES]
    possible = [found[gate]["possible"] for gate in GATES]
    assert proven == [10, 9, 8, 7, 6, 5, 3, 2, 1] and possible == [10, 9, 8, 7, 6, 5, 4, 3, 2]
    assert found["dynamic"]["computed"] == 4 and found["2D"]["rate"]["n"] == 11
    assert found["DFT"]["possible"] == is_hit(table(rows)).sum()
    text = funnels_markdown({"ours": list(found.values())})
    assert "| dynamic | 3 (4) |" in text and text.count("\n") == 1 + len(GATES)


@pytest.mark.parametrize("seed", range(5))
def test_hits_are_what_the_funnel_leaves_if_the_needed_gates_are_known(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(60):
        row = dict(PERFECT)
        for gate in GATES:
            choice = rng.random()
            row |= FAILS[gate] if choice < 0.15 else UNKNOWN.get(gate, {}) if choice < 0.4 else {}
        rows.append(row)
    steps = funnel(table(rows))
    assert steps[-1]["possible"] == is_hit(table(rows)).sum()
    for before, after in itertools.pairwise(steps):
        assert after["proven"] <= before["proven"] and after["possible"] <= before["possible"]
    assert steps[NEEDED - 1]["proven"] == steps[NEEDED - 1]["possible"]
    assert funnel(table())[0]["rate"]["value"] is None


def test_water_decides_the_class_and_elements_the_rank():
    """Class 3 dissolves; thallium comes after what is no better but benign; neither loses its row."""
    changes = {
        "thallium": {"avoid_elements": "Tl", "delta_g_h_oracle_eV": 0.0},
        "benign": {"delta_g_h_oracle_eV": 0.15},
        "dissolves": {"aqueous": False, "delta_g_h_oracle_eV": 0.0},
        "not known": {"aqueous": None, "delta_g_h_oracle_eV": 0.3},
        "known layer": {"novel": False},
    }
    rows = table([PERFECT | change | {"material_id": name} for name, change in changes.items()])
    rows = join(rows, ranking(rows, 0.5))
    best = ranked(rows)
    assert list(best["material_id"]) == ["benign", "not known", "thallium", "known layer", "dissolves"]
    assert list(best["candidate_class"]) == [1, 1, 1, 2, 3]


def test_of_equal_candidates_the_cheaper_comes_first():
    prices = {"dear": 30000.0, "cheap": 5.0, "not known": None}
    rows = [PERFECT | {"material_id": name, "price_usd_per_kg": value} for name, value in prices.items()]
    rows = table(rows)
    best = ranked(join(rows, ranking(rows, 0.5)))
    assert list(best["material_id"]) == ["cheap", "dear", "not known"]
