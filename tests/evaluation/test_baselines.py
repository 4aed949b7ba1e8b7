"""What was computed for the two sets that never change, and travels with them."""

import pytest

from models.infra.files import ROOT
from models.infra.shards import Shard

SCORED = ROOT / "results" / "published" / "baselines"


@pytest.mark.parametrize("name", ["random_baseline", "substitution"])
def test_every_structure_of_a_baseline_is_there(name):
    """Keys begin with the name of the structure; a key of other code is passed over by the evaluator."""
    relaxed = Shard(SCORED / name / "relaxed.jsonl").rows
    named = {key.rpartition(":")[0] for key in relaxed}
    files = {path.stem for path in (ROOT / "results_external" / name).glob("*.cif")}
    assert files and files == named
    for shard in ("adsorbed", "poses", "second"):
        assert {key.rpartition(":")[0] for key in Shard(SCORED / name / f"{shard}.jsonl").rows} <= files
