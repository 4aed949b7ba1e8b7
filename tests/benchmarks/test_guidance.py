"""What the study of guidance counts: pairs, power, rankings, distinct hits, and what makes it draw or judge
anew.
"""

import math

import pytest
from layers import known
from scipy.stats import norm

from benchmarks import guidance
from geo_utils import COLUMNS
from models.crystals.layer import pack_atoms
from models.infra.shards import Shard


def row(number: int, seed: int = 11, hit: bool = True, template: str = "a", **changes) -> dict:
    """A structure that is stable, and active or not."""
    filled = {
        "material_id": f"gen_{number:04d}_X",
        "converged": "True",
        "e_hull_eV_per_atom": "0.0",
        "unique": "True",
        "formula": "MoS2",
        "delta_g_h_oracle_eV": "0.1" if hit else "0.9",
        "template": template,
        "nfe": "50",
        "folder": f"x/{seed}",
    }
    return dict.fromkeys([*COLUMNS, *guidance.EXTRA], "") | filled | changes


def test_pairs_share_seed_number_and_template():
    """Five gained, one lost, and what started elsewhere is no pair: McNemar's p of six tosses."""
    own = [row(k, hit=k != 5) for k in range(8)] + [row(0, seed=12), row(1, seed=12, template="b")]
    other = [row(k, hit=k in (5, 6, 7)) for k in range(8)] + [
        row(0, seed=13, hit=False),
        row(1, seed=12, template="c", hit=False),
    ]
    found = guidance.paired_p(own, other, guidance.HIT)
    assert found["n"] == 8 and found["value"] == pytest.approx(2 * (1 + 6) / 2**6)
    assert guidance.paired_p(own, own, guidance.HIT)["value"] == 1


def test_power_against_the_normal_approximation():
    """Of log ratios, where both rates are far from 0."""
    base, factor, n, base_n, bound = 0.1, 4, 300, 600, 3
    width = ((1 - factor * base) / (n * factor * base) + (1 - base) / (base_n * base)) ** 0.5
    expected = norm.cdf(math.log(factor / bound) / width - 1.96)
    assert guidance.power(base, factor, n, base_n, bound) == pytest.approx(expected, abs=0.05)
    assert guidance.power(0.5, 8, 50, 50, 1.0) > 0.5  # a rate above one is one


def test_rankings_are_by_expected_distance_and_of_unique_rows():
    heads = {
        "head_delta_g_h_eV": "0.0",
        "head_e_hull_eV_per_atom": "0.0",
        "head_p_synth": "0.5",
        "head_delta_g_h_std_eV": "0.1",
    }
    rows = [
        row(
            0,
            **heads | {"head_delta_g_h_eV": "0.5"},
            delta_g_h_dimenet_eV="0.0",
            delta_g_h_dimenet_std_eV="0.9",
        ),
        row(1, **heads, delta_g_h_dimenet_eV="0.2", delta_g_h_dimenet_std_eV="0.1"),
        row(2, **heads | {"unique": "False"}, delta_g_h_dimenet_eV="0.0", delta_g_h_dimenet_std_eV="0.01"),
        row(
            3,
            **heads | {"head_e_hull_eV_per_atom": "0.9", "e_hull_eV_per_atom": "0.9"},
            delta_g_h_dimenet_eV="0.0",
        ),
    ]
    found = {name: [r["material_id"] for r in best] for name, best in guidance.ranked(rows).items()}
    assert found == {
        "DimeNet++": ["gen_0001_X", "gen_0000_X"],
        "heads": ["gen_0001_X", "gen_0000_X", "gen_0003_X"],
    }
    assert guidance.ranked([])["DimeNet++"] == []


def test_unique_is_told_over_all_seeds(tmp_path):
    rows = []
    for seed, names in (("11", ["1H-MoS2", "graphene"]), ("12", ["1H-MoS2", "1T-MoS2"])):
        shard = Shard(tmp_path / seed / "relaxed.jsonl")
        for k, name in enumerate(names):
            shard.append(f"gen_{k:04d}_X:digest", {"relaxed": pack_atoms(known(name))})
            rows.append(row(k, folder=str(tmp_path / seed)))
    guidance.unique_into(rows)
    assert [r["unique"] for r in rows] == ["True", "True", "False", "True"]


def test_work_is_done_again_when_its_key_changes(tmp_path):
    done = []
    for key in ("a", "a", "b", "a"):
        guidance.unless_done(tmp_path / "key.txt", key, lambda key=key: done.append(key))
    assert done == ["a", "b", "a"]
