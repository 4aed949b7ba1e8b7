"""What an evaluation needs last is read first: a broken file costs no hours of work."""

from dataclasses import replace
from pathlib import Path

import ase.db
import pytest
import stages
import torch

from models.evaluation.settings import Settings, check_files
from models.infra.files import write_json

FIELDS = ("dimenet", "synthesis", "references", "novelty_db", "template_db", "validation")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Settings:
    root = tmp_path_factory.mktemp("inputs")
    stages.write_inputs(root)
    write_json(root / "validation.json", {})
    (root / "learned.json.gz").touch()
    names = {"dimenet": "dimenet.pt", "synthesis": "synthesis.pt", "references": "phases.db"}
    names |= {"novelty_db": "layers.db", "template_db": "layers.db", "validation": "validation.json"}
    paths = {field: root / name for field, name in names.items()} | {"learned": root / "learned.json.gz"}
    check_files(replace(Settings(), **paths))
    return replace(Settings(), **paths)


def broken(kind: str, path: Path) -> Path:
    """A file of some kind that is no such file."""
    path.unlink(missing_ok=True)
    match kind:
        case "missing":
            pass
        case "empty":
            path.touch()
        case "a folder":
            path.mkdir()
        case "text":
            path.write_text("version https://git-lfs.github.com/spec/v1\n" * 30)
        case "another checkpoint":
            torch.save({"model": {}, "hparams": {}}, path)
        case "a checkpoint of other parts":
            content = {"hyper_parameters": {"what": 1}, "state_dict": {}, "features": [], "model": {}}
            torch.save(content, path)
        case "a database of other tables":
            ase.db.connect(path, type="db").write(stages.layers()[0])
            path.write_bytes(path.read_bytes()[:2000])
    return path


KINDS = ("missing", "empty", "a folder", "text", "another checkpoint", "a checkpoint of other parts")
KINDS += ("a database of other tables",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_late_files_are_read_first(good, tmp_path, field, kind):
    path = broken(kind, tmp_path / Path(getattr(good, field)).name)
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        check_files(replace(good, **{field: path}))
    assert path.name in str(refusal.value) and "\n" not in str(refusal.value)
