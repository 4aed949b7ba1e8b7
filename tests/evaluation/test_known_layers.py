"""Novelty against templates, databases and what the generator learned; uniqueness in any order of files."""

import gzip
import itertools
from dataclasses import replace

import ase.db
import numpy as np
import pytest
from layers import disguised, known

from models.crystals.layer import extract_layer
from models.crystals.matching import Fingerprint
from models.evaluation.columns import novelty
from models.evaluation.known import known_register, learned_layers, pack, unique_of, unpack, write_known
from models.evaluation.rows import table
from models.evaluation.settings import Settings, check_files
from models.infra.files import ROOT, UnreadableFile

LAYERS = ("graphene", "h-BN", "1H-MoS2", "1T-MoS2", "1T-TiS2", "Ti2CO2", "phosphorene", "PdSe2", "CrI3")


def database(path, names):
    with ase.db.connect(path) as db:
        for name in names:
            db.write(known(name), uid=name)
    return path


@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_layer_matches_the_layer_and_no_other(name):
    """Rounded to 0.01 Å it is still the same material, in any description, and 1H is not 1T."""
    uid, stored = unpack(pack(name, known(name)))
    assert uid == name and stored.group == Fingerprint(known(name)).group
    assert stored.same(Fingerprint(extract_layer(disguised(known(name), 7)).atoms))
    others = [other for other in LAYERS if other != name]
    assert not any(stored.same(Fingerprint(known(other))) for other in others)


def test_what_the_generator_learned_is_not_novel(tmp_path):
    """Template, novelty database and training set each make a layer known, and known_as says which."""
    settings = Settings(
        template_db=database(tmp_path / "templates.db", ["graphene"]),
        novelty_db=database(tmp_path / "novelty.db", ["h-BN"]),
        learned=tmp_path / "model.known.json.gz",
    )
    write_known(settings.learned, [database(tmp_path / "c2db.db", ["1H-MoS2"])])
    layers = {name: known(name) for name in ("graphene", "h-BN", "1H-MoS2", "1T-MoS2")}
    rows = table([{"material_id": name} for name in layers])
    found = novelty(rows, layers, settings)
    assert {name: columns["known_as"] for name, columns in found.items()} == {
        "graphene": "graphene (templates)",
        "h-BN": "h-BN (novelty)",
        "1H-MoS2": "1H-MoS2 (c2db, learned)",
        "1T-MoS2": None,
    }
    assert [columns["novel"] for columns in found.values()] == [False, False, False, True]


def test_the_shipped_fingerprints_hold_c2db(tmp_path):
    """15,000 layers in less than 3 MB; MoS2, graphene and Ti2CO2 of C2DB are among them."""
    path = ROOT / Settings().learned
    assert path.stat().st_size < 3_000_000
    structures = {name: known(name) for name in ("graphene", "1H-MoS2", "1T-MoS2", "Ti2CO2", "h-BN")}
    formulas = {Fingerprint(atoms).formula for atoms in structures.values()}
    register = known_register([], path, formulas)
    for name, atoms in structures.items():
        assert "(c2db, learned)" in register.find(Fingerprint(atoms)), name
    strange = known("1H-MoS2")
    strange.symbols = ["Au", "Xe", "Xe"]
    assert not list(learned_layers(path, {Fingerprint(strange).formula}))


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b"[]"), gzip.compress(b'{"sources"')],
    ids=["no gzip", "a list", "cut short"],
)
def test_a_broken_file_of_fingerprints_is_named(tmp_path, content):
    path = tmp_path / "x.known.json.gz"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="x.known.json.gz"):
        list(learned_layers(path, {"MoS2"}))


def test_an_empty_database_of_known_layers_is_an_error(tmp_path, monkeypatch):
    """Against nothing everything is novel."""
    monkeypatch.chdir(ROOT)
    empty = tmp_path / "empty.db"
    ase.db.connect(empty).metadata = {"title": "nothing"}
    with pytest.raises(ValueError, match="empty.db holds no row"):
        check_files(replace(Settings(), novelty_db=empty))
    with pytest.raises(FileNotFoundError, match="--help"):
        check_files(replace(Settings(), novelty_db=tmp_path / ""))
    check_files(Settings())


def test_unique_does_not_depend_on_the_order_of_files():
    """Of twins the stabler one is unique, in whatever order and under whatever name they come."""
    stretched = known("1H-MoS2")
    stretched.set_cell(stretched.cell.array * [[1.02], [1.02], [1]], scale_atoms=True)
    layers = {
        "a": stretched,
        "b": known("1H-MoS2"),
        "c": known("1T-MoS2"),
        "d": disguised(known("1H-MoS2"), 2),
    }
    layers["d"] = extract_layer(layers["d"]).atoms
    energies = {"a": 0.05, "b": 0.0, "c": 0.3, "d": 0.01}
    for order in itertools.permutations(layers):
        prints = {name: Fingerprint(layers[name]) for name in order}
        assert unique_of(prints, {name: energies[name] for name in order}) == {"b", "c"}
    assert unique_of({name: Fingerprint(layers[name]) for name in "abd"}, {"a": np.nan, "d": 0.2}) == {"d"}


class Chain:
    """A fingerprint that matches its neighbours on a line, so that sameness is not transitive."""

    def __init__(self, place: float):
        self.place = place

    def same(self, other) -> bool:
        return abs(self.place - other.place) < 1.5


@pytest.mark.parametrize("seed", range(6))
def test_chains_of_likeness_are_one_material(seed):
    places = {"a": 0, "b": 1, "c": 2, "d": 3, "x": 9, "y": 10, "z": 20}
    names = np.random.default_rng(seed).permutation(list("abcdxyz"))
    renamed = {str(new): Chain(places[old]) for new, old in zip(names, places)}
    assert len(unique_of(renamed, {})) == 3
