"""What the study of guidance counts: pairs, power, rankings, distinct hits, and what makes it draw or judge
anew.
"""

import math

import pytest
from layers import known
from scipy.stats import norm

from benchmarks.guidance import study as guidance
from models.crystals.layer import pack_atoms
from models.evaluation.rows import table
from models.infra.shards import Shard


def row(number: int, seed: int = 11, hit: bool = True, template: str = "a", **changes) -> dict:
    """A structure that is stable, and active or not."""
    filled = {
        "material_id": f"gen_{number:04d}_X",
        "two_d": True,
        "valid": True,
        "h_flags": "adsorbed:1",
        "converged": True,
        "e_hull_eV_per_atom": 0.0,
        "hull_compounds": 3,
        "unique": True,
        "formula": "MoS2",
        "delta_g_h_oracle_eV": 0.1 if hit else 0.9,
        "template": template,
        "nfe": 50.0,
        "folder": f"x/{seed}",
    }
    return filled | changes


def rows_of(found: list[dict]):
    return table(found, guidance.JUDGED_SCHEMA)


def test_pairs_share_seed_number_and_template():
    """Five gained, one lost; what started elsewhere is no pair: McNemar's exact p is that of six tosses."""
    own = [row(k, hit=k != 5) for k in range(8)] + [row(0, seed=12), row(1, seed=12, template="b")]
    other = [row(k, hit=k in (5, 6, 7)) for k in range(8)] + [
        row(0, seed=13, hit=False),
        row(1, seed=12, template="c", hit=False),
    ]
    found = guidance.paired_p(rows_of(own), rows_of(other), guidance.HIT)
    assert found["n"] == 8 and found["value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert guidance.paired_p(rows_of(own), rows_of(own), guidance.HIT)["value"] == 1


def test_power_against_the_normal_approximation():
    """Of log ratios, where both rates are far from 0."""
    base, factor, n, base_n, bound = 0.1, 4, 300, 600, 3
    width = ((1 - factor * base) / (n * factor * base) + (1 - base) / (base_n * base)) ** 0.5
    expected = norm.cdf(math.log(factor / bound) / width - 1.96)
    assert guidance.power(base, factor, n, base_n, bound) == pytest.approx(expected, abs=0.05)
    assert guidance.power(0.5, 8, 50, 50, 1.0) > 0.5  # a rate above one is one


def test_rankings_are_by_expected_distance_and_of_unique_rows():
    heads = dict.fromkeys(guidance.HEADS, 0.0)
    heads |= {"head_p_synth": 0.5, "head_delta_g_h_std_eV": 0.1}
    far, unstable = heads | {"head_delta_g_h_eV": 0.5}, heads | {"head_e_hull_eV_per_atom": 0.9}
    rows = [
        row(0, **far, delta_g_h_dimenet_eV=0.0, delta_g_h_dimenet_std_eV=0.9),
        row(1, **heads, delta_g_h_dimenet_eV=0.2, delta_g_h_dimenet_std_eV=0.1),
        row(2, **heads | {"unique": False}, delta_g_h_dimenet_eV=0.0, delta_g_h_dimenet_std_eV=0.01),
        row(3, **unstable | {"e_hull_eV_per_atom": 0.9}, delta_g_h_dimenet_eV=0.0),
    ]
    found = {name: list(best["material_id"]) for name, best in guidance.ranked(rows_of(rows)).items()}
    assert found == {
        "DimeNet++": ["gen_0001_X", "gen_0000_X"],
        "heads": ["gen_0001_X", "gen_0000_X", "gen_0003_X"],
    }
    assert guidance.ranked(rows_of([]))["DimeNet++"].empty


def test_unique_is_told_over_all_seeds(tmp_path):
    rows = []
    for seed, names in (("11", ["1H-MoS2", "graphene"]), ("12", ["1H-MoS2", "1T-MoS2"])):
        shard = Shard(tmp_path / seed / "relaxed.jsonl")
        for k, name in enumerate(names):
            shard.append(f"gen_{k:04d}_X:digest", {"relaxed": pack_atoms(known(name))})
            rows.append(row(k, folder=str(tmp_path / seed)))
    assert list(guidance.unique_over_seeds(rows_of(rows))["unique"]) == [True, True, False, True]


def test_work_is_done_again_when_its_key_changes(tmp_path):
    done = []
    for key in ("a", "a", "b", "a"):
        guidance.unless_done(tmp_path / "key.txt", key, lambda key=key: done.append(key))
    assert done == ["a", "b", "a"]
