"""The report: its scenes against independent counts, its physics and numbers, escaping, empty sets, and the
page in a browser.
"""

import base64
import io
import json
import math
import re
import shutil
import subprocess
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from ase.data.colors import jmol_colors
from ase.neighborlist import neighbor_list
from layers import known
from matplotlib.image import imread

from models.crystals.layer import flipped
from models.crystals.sites import adsorption_sites, with_hydrogen
from models.evaluation import report
from models.evaluation.metrics import aggregate, metric_samples
from models.evaluation.report import causes, log_exchange_current, parity, points, scene, words, write_html
from models.evaluation.rows import read_table, records, table, write_table
from models.evaluation.schema import SET_METRICS

NASTY = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>'\"&"
LAYERS = ["graphene", "1H-MoS2", "1T-TiS2", "Ti2CO2", "phosphorene", "PdSe2", "h-BN", "FeSe"]


# --- a set of known layers with made-up energies
# ---------------------------------------------------------------------


def on_top(layer, face: int = 1):
    """The pose of H at the first ontop site of the top face, or of the bottom one."""
    upright = layer if face > 0 else flipped(layer)
    pose = with_hydrogen(
        upright, next(site for site in adsorption_sites(upright) if site.kind == "ontop" and site.face > 0)
    )
    return pose if face > 0 else flipped(pose)


def good_row(name: str, formula: str, rng) -> dict:
    oracle = float(rng.normal(0.2, 0.5))
    return {
        "material_id": name,
        "formula": formula,
        "n_atoms": 3,
        "layer_group": "p-3m1",
        "components": 1,
        "periodic_directions": 2,
        "two_d": True,
        "valid": True,
        "smact_valid": True,
        "min_dist_ratio": 0.95,
        "converged": True,
        "e_hull_eV_per_atom": float(rng.normal(0.1, 0.1)),
        "hull_compounds": 4,
        "h_flags": "adsorbed:1",
        "delta_g_h_oracle_eV": oracle,
        "delta_g_h_dimenet_eV": oracle + float(rng.normal(0, 0.3)),
        "delta_g_h_dimenet_std_eV": 0.2,
        "delta_g_h_second_eV": oracle + 0.1,
        "p_synth": 0.6,
        "unique": True,
        "novel": True,
        "stability_score": 0.9,
        "rmsd_relaxed_A": 0.1,
        "h_site": "ontop-top",
        "p_active": 0.3,
    }


def refused_row(name: str) -> dict:
    return {
        "material_id": name,
        "error": "not 2D: 1 component(s), the largest is a 3D network",
        "formula": "NaCl",
        "n_atoms": 8,
        "components": 1,
        "two_d": False,
        "valid": False,
    }


def evaluated(number: int, refused: int = 0):
    """An evaluation of `number` known layers, every third one with H on its bottom face, and of refused
    structures.
    """
    rng = np.random.default_rng(0)
    names = [LAYERS[k % len(LAYERS)] for k in range(number)]
    layers = {name: known(name) for name in set(names)}
    poses = {(name, face): on_top(layers[name], face) for name in layers for face in (1, -1)}
    rows = [
        good_row(f"gen_{k:04d}", layers[name].get_chemical_formula(), rng) for k, name in enumerate(names)
    ]
    relaxed = {row["material_id"]: layers[name] for row, name in zip(rows, names)}
    found = {
        row["material_id"]: poses[name, -1 if k % 3 == 2 else 1]
        for k, (row, name) in enumerate(zip(rows, names))
    }
    rows += [refused_row(f"bad_{k:04d}") for k in range(refused)]
    provenance = {"potential": "SevenNet 7net-l3i5", "checkpoints": {"dimenet.pt": "219fbcfa1b63"}, "seed": 0}
    return SimpleNamespace(rows=table(rows), relaxed=relaxed, poses=found, provenance=provenance)


def listed(rows: pd.DataFrame, size: int = 6) -> list[dict]:
    """A shortlist with a column of its own."""
    keys = ["material_id", "formula", "layer_group", "e_hull_eV_per_atom", "delta_g_h_oracle_eV"]
    keys += ["delta_g_h_dimenet_eV", "p_synth", "p_active"]
    known_rows = rows[rows["delta_g_h_oracle_eV"].notna()][:size]
    return [row | {"imaginary_modes": 0} for row in records(known_rows, keys)]


def page(path, evaluation, others=None, shortlist=None, name="generated", figures=()):
    """Writes the report of an evaluation as the evaluator would."""
    others = others or {}
    metrics = {label: aggregate(rows) for label, rows in {name: evaluation.rows, **others}.items()}
    write_html(
        path,
        name,
        evaluation,
        others,
        metrics,
        listed(evaluation.rows) if shortlist is None else shortlist,
        list(figures),
    )
    return path


def payload(path) -> dict:
    """The JSON of a written page, cut out as an HTML parser would."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


# --- scenes
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, elements, bonds",
    [
        ("graphene", "C", {"C": 3}),
        ("h-BN", "BN", {"B": 3, "N": 3}),
        ("1H-MoS2", "MoS", {"Mo": 6, "S": 3}),
        ("1T-TiS2", "TiS", {"Ti": 6, "S": 3}),
        ("phosphorene", "P", {"P": 3}),
        ("Ti2CO2", "TiCO", {"Ti": 6, "C": 6, "O": 3}),
        ("FeSe", "FeSe", {"Se": 4}),
    ],
)
def test_atoms_inside_have_the_bonds_that_chemistry_gives_them(name, elements, bonds):
    """Coordination numbers of textbooks, counted at the atoms in the middle; no bond joins two like metal
    atoms over an anion.
    """
    drawn = scene(known(name), None)
    degree = np.bincount(np.array(drawn["bonds"]).ravel(), minlength=len(drawn["symbols"]))
    assert degree.min() > 0, "a stray atom at the rim"
    middle = np.linalg.norm(np.array(drawn["positions"])[:, :2], axis=1) < 2.6
    assert set(drawn["symbols"]) == set(re.findall("[A-Z][a-z]?", elements))
    for symbol, expected in bonds.items():
        found = [d for d, s, m in zip(degree, drawn["symbols"], middle) if s == symbol and m]
        assert found and set(found) == {expected}, (symbol, found)
    if name != "FeSe":  # Fe binds Fe, truly
        assert not drawn["contacts"]


def test_a_scene_is_cut_from_the_crystal():
    """Every atom of a scene has the distances to its neighbours that ASE finds in the periodic layer."""
    layer = known("1H-MoS2")
    i, distance = neighbor_list("id", layer, 3.0)
    for k, symbol in enumerate(layer.symbols):
        drawn = scene(layer, None)
        positions = np.array(drawn["positions"])
        centre = min(
            (n for n, s in enumerate(drawn["symbols"]) if s == symbol),
            key=lambda n: np.linalg.norm(positions[n, :2]),
        )
        near = np.linalg.norm(positions - positions[centre], axis=1)
        assert np.allclose(np.sort(near[(near > 0) & (near < 3.0)]), np.sort(distance[i == k]), atol=0.02)


@pytest.mark.parametrize("name", LAYERS)
def test_the_cell_drawn_is_the_unit_cell_and_holds_the_hydrogen(name):
    layer = known(name)
    drawn = scene(layer, on_top(layer))
    corners, h = np.array(drawn["cell"]), np.array(drawn["positions"][drawn["hydrogen"]])
    vectors = corners[[1, 2, 4]] - corners[0]
    assert np.allclose(vectors[:2, :2], layer.cell.array[:2, :2], atol=0.011) and np.allclose(
        vectors[:2, 2], 0
    )
    assert np.isclose(vectors[2, 2], np.ptp(layer.positions[:, 2]) + 2, atol=0.011)
    assert np.allclose(corners[7], corners[0] + vectors.sum(0), atol=0.03)
    frac = (h[:2] - corners[0, :2]) @ np.linalg.inv(vectors[:2, :2])
    assert (frac > -0.02).all() and (frac < 1.02).all()
    span = np.ptp(np.array(drawn["positions"])[:, :2], axis=0)
    assert (span > 0.7 * report.SPAN).all() and len(drawn["positions"]) < 400


@pytest.mark.parametrize("name", LAYERS)
def test_one_hydrogen_on_top_bound_to_what_it_sits_on(name):
    """H is the last atom and the only one added; its bond is the pose's own; it is on top whichever face it
    came from.
    """
    layer = known(name)
    for face in (1, -1):
        pose = on_top(layer, face)
        drawn = scene(layer, pose)
        positions, h = np.array(drawn["positions"]), drawn["hydrogen"]
        assert h == len(positions) - 1 and drawn["symbols"][h] == "H" and drawn["symbols"].count("H") == 1
        assert drawn["turned"] == (face < 0)
        assert positions[h, 2] > positions[:-1, 2].max() - 0.05
        partners = [i for i, j in drawn["bonds"] if j == h]
        drawn_length = np.linalg.norm(positions[partners] - positions[h], axis=1).min()
        assert partners and np.isclose(
            drawn_length, pose.get_distances(-1, range(len(pose) - 1), mic=True).min(), atol=0.02
        )


def test_turning_a_layer_over_keeps_its_hand():
    """A scene with H on the bottom face is the rotated crystal, never its mirror image."""
    layer = known("Janus-MoSSe")
    below, mirrored = scene(layer, on_top(layer, -1)), scene(flipped(layer), on_top(flipped(layer)))
    assert below["turned"] and not mirrored["turned"]

    def hand(drawn):
        cell = np.array(drawn["cell"])
        return np.linalg.det(cell[[1, 2, 4]] - cell[0])

    assert np.isclose(hand(below), hand(scene(layer, None)), rtol=0.02)


def test_colours_are_jmols():
    assert (
        report.element("S")["colour"]
        == "#" + bytes(round(255 * c) for c in jmol_colors[16]).hex()
        == "#ffff30"
    )


# --- numbers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta_g", [-1.0, -0.3, -0.05, 0.0, 0.05, 0.3, 1.0])
def test_the_volcano_is_the_two_branches_of_the_kinetic_model(delta_g):
    """i0 = e k0 / (1 + exp(−ΔG/kT)) where H binds, the same times exp(−ΔG/kT) where it does not (Nørskov et
    al. 2005).
    """
    boltzmann = 8.617333e-5 * 298.15
    branch = 1 / (1 + math.exp(-delta_g / boltzmann)) * (1 if delta_g < 0 else math.exp(-delta_g / boltzmann))
    expected = math.log10(1.602177e-19 * 200 * 1.5e15 * branch)
    assert log_exchange_current(delta_g) == pytest.approx(expected, abs=2e-3)
    assert np.isfinite(log_exchange_current(50.0)), "no overflow far from the peak"


def test_parity_stands_beside_a_mean_that_leaves_one_out():
    pairs = [(0.0, 0.1), (1.0, 1.1), (2.0, 2.1), (None, 1.0)]
    rows = table([{"delta_g_h_oracle_eV": x, "delta_g_h_dimenet_eV": y} for x, y in pairs])
    found = parity(rows, "dimenet")
    assert found["n"] == 3 and found["mae"] == pytest.approx(0.1) and found["bias"] == pytest.approx(0.1)
    assert found["null"] == pytest.approx((1.5 + 0.0 + 1.5) / 3) and found["r"] == pytest.approx(1.0)
    assert parity(rows, "second") is None, "a column that no row has"


def test_points_are_plain_and_stable_means_what_the_evaluator_says():
    cases = [(0.05, True), (0.15, True), (-1.5, True), (0.0, False), (None, True)]
    rows = [{"e_hull_eV_per_atom": e_hull, "converged": done, "hull_compounds": 1} for e_hull, done in cases]
    rows = table(rows)
    found = points(rows)
    assert [point["stable"] for point in found] == metric_samples(rows)["stable_rate"].astype(bool).tolist()
    assert found[4]["hull"] is None and found[0]["oracle_j0"] is None
    json.dumps(found, allow_nan=False)


def test_every_metric_of_the_evaluator_has_words():
    metrics = {"generated": aggregate(evaluated(3, 1).rows)}
    assert set(metrics["generated"]) == {metric.name for metric in SET_METRICS}
    metrics["generated"]["brand_new_rate"] = {"value": 0.5, "ci95": [0.2, 0.8], "n": 4}
    groups = words(metrics)
    assert groups[-1]["title"] == "Further" and groups[-1]["metrics"][0]["label"] == "brand new rate"
    shown = [metric["name"] for group in groups for metric in group["metrics"]]
    assert sorted(shown) == sorted(metrics["generated"])


def test_causes_are_counted_once_whatever_numbers_they_hold():
    alone = "no competing phase known (E_hull {} eV/atom): not called stable"
    errors = [alone.format(-1.2), alone.format(-3) + "; no site adsorbs H", "not 2D: 12 component(s)", ""]
    assert causes(pd.Series(errors)) == [
        ["no competing phase known (E_hull … eV/atom)", 2],
        ["no site adsorbs H", 1],
        ["not 2D", 1],
    ]


# --- the file
# --------------------------------------------------------------------------------------------------------


def test_names_from_files_cannot_leave_the_data(tmp_path):
    """The page holds the two script elements of the template whatever names come in, and the names arrive
    unchanged.
    """
    evaluation = evaluated(2, 1)
    evaluation.rows["error"] = NASTY
    evaluation.rows.loc[2, ["material_id", "formula"]] = NASTY
    shortlist = [{"material_id": "gen_0000", "formula": NASTY, NASTY: NASTY}]
    path = page(tmp_path / "report.html", evaluation, {NASTY + "2": evaluation.rows}, shortlist, NASTY)
    text = path.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script") == 2 and "<img" not in text
    found = payload(path)
    assert found["rows"][2]["material_id"] == found["set"] == found["shortlist"][0][NASTY] == NASTY
    assert [entry["name"] for entry in found["sets"]] == [NASTY, NASTY + "2"]


def test_the_page_names_no_other_file_and_no_server(tmp_path):
    text = page(tmp_path / "report.html", evaluated(1)).read_text(encoding="utf-8")
    namespace = "http://www.w3.org/2000/svg"
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text.replace(namespace, ""))
    assert (
        not re.findall(r"\b(?:fetch|XMLHttpRequest|WebSocket|import)\s*\(", text)
        and "default-src 'none'" in text
    )
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("number, refused", [(0, 0), (0, 3), (1, 0)])
def test_small_and_empty_sets_are_written(tmp_path, number, refused):
    found = payload(page(tmp_path / "report.html", evaluated(number, refused)))
    assert (
        len(found["rows"]) == number + refused
        and len(found["scenes"]) == number
        and len(found["failures"]) == refused
    )


def test_rows_of_a_csv_give_what_rows_of_numbers_give(tmp_path):
    rows = evaluated(4, 1).rows
    write_table(tmp_path / "metrics.csv", rows)
    found = []
    for other in (rows, read_table(tmp_path / "metrics.csv")):
        path = page(tmp_path / "report.html", evaluated(1), {"other": other})
        found.append(payload(path)["sets"][1]["points"])
    assert found[0] == found[1]


def test_five_hundred_rows_stay_small(tmp_path):
    evaluation = evaluated(500)
    png = tmp_path / "her_performance.png"
    png.write_bytes(b"\x89PNG" + bytes(1_500_000))
    large = png.with_name("generated_structures.png")
    large.write_bytes(png.read_bytes())
    others = {f"other {k}": evaluation.rows for k in range(4)}
    path = page(
        tmp_path / "report.html",
        evaluation,
        others,
        listed(evaluation.rows, 50),
        figures=[png, large, tmp_path / "missing.png"],
    )
    assert path.stat().st_size < 6_000_000
    found = payload(path)
    assert len(found["scenes"]) == report.MAX_SCENES and found["undrawn"] == 500 - report.MAX_SCENES
    assert len(found["figures"]) == 1 and found["figures_left_out"] == ["generated_structures.png"]


# --- in a browser
# ----------------------------------------------------------------------------------------------------


class Browser:
    """A headless Chromium through chromedriver, by the plain HTTP of WebDriver."""

    CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
    FLAGS = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]

    def __init__(self, profile):
        self.process = subprocess.Popen(
            [self.DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        port = next(
            match[1]
            for line in self.process.stdout
            if (match := re.search(r"on port (\d+)", line)) and int(match[1])
        )
        self.base = f"http://127.0.0.1:{port}/session"
        chrome = {"binary": self.CHROMIUM, "args": [*self.FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": chrome,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            self.base += "/" + self.ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except OSError:
            self.process.terminate()
            raise

    def ask(self, method: str, command: str, body=None):
        """The value of one WebDriver command."""
        request = urllib.request.Request(
            self.base + command, json.dumps(body or {}).encode() if method == "POST" else None, method=method
        )
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path, width: int = 1280, height: int = 900):
        """Loads a page from disk and waits until it is ready; earlier logs are forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": size})
        for log in ("browser", "performance"):
            self.ask("POST", "/se/log", {"type": log})
        self.ask("POST", "/url", {"url": path.as_uri()})
        for _ in range(100):
            if self.run("return !!(window.report && window.report.ready)"):
                return
            time.sleep(0.1)
        raise AssertionError(f"the page is not ready: {self.errors()}")

    def run(self, script: str, *arguments):
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses of all requests since the page was opened."""
        events = [
            json.loads(entry["message"])["message"]
            for entry in self.ask("POST", "/se/log", {"type": "performance"})
        ]
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def drag(self, selector: str, dx: int, dy: int, pointer: str = "mouse"):
        """Presses the middle of an element and moves."""
        x, y = self.run(
            "const node = document.querySelector(arguments[0]); node.scrollIntoView({block: 'center'});"
            "const box = node.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]",
            selector,
        )
        move = lambda share: {
            "type": "pointerMove",
            "duration": 50,
            "x": round(x + share * dx),
            "y": round(y + share * dy),
        }
        moves = [
            move(0),
            {"type": "pointerDown", "button": 0},
            move(0.5),
            move(1),
            {"type": "pointerUp", "button": 0},
        ]
        actions = {"type": "pointer", "id": pointer, "parameters": {"pointerType": pointer}, "actions": moves}
        self.ask("POST", "/actions", {"actions": [actions]})
        self.settle()

    def settle(self):
        """Waits for the next drawn frame."""
        self.ask(
            "POST",
            "/execute/async",
            {"script": "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))", "args": []},
        )

    def pixels(self, selector: str = "#view") -> np.ndarray:
        """A canvas read back: [H, W, 4] RGBA."""
        uri = self.run("return document.querySelector(arguments[0]).toDataURL()", selector)
        return imread(io.BytesIO(base64.b64decode(uri.split(",")[1])), format="png")

    def screenshot(self, path):
        """The whole page as a PNG, to be looked at."""
        params = {"captureBeyondViewport": True, "format": "png"}
        taken = self.ask("POST", "/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": params})
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self):
        try:
            self.ask("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (Browser.CHROMIUM and Browser.DRIVER):
        pytest.skip("no chromium and chromedriver here: install Debian's chromium and chromium-driver")
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


def assert_quiet(browser, path):
    """No complaint on the console, and no request but the page's own from disk and what it carries itself."""
    assert browser.errors() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [path.as_uri()]


def drawn_share(pixels) -> float:
    return float((pixels[..., 3] > 0).mean())


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_from_disk_and_draws(browser, tmp_path, width):
    evaluation = evaluated(8, 3)
    path = page(tmp_path / "report.html", evaluation, {"random_baseline": evaluated(5, 2).rows})
    browser.open(path, width)
    state = browser.run("return window.report")
    assert state["selected"] == "gen_0000" and state["thumbnails"] == 6
    assert state["atoms"] == len(
        scene(evaluation.relaxed["gen_0000"], evaluation.poses["gen_0000"])["symbols"]
    )
    assert drawn_share(browser.pixels()) > 0.05
    assert drawn_share(browser.pixels("canvas.thumbnail")) > 0.05
    number = lambda selector: browser.run("return document.querySelectorAll(arguments[0]).length", selector)
    assert number(".chart svg") == 5 and number("circle.own") > 8
    assert number("tr.pick") == 6 and number(".metrics tbody tr:not(.group)") == len(SET_METRICS)
    browser.screenshot(tmp_path / f"report_{width}.png")
    overflow = browser.run(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0, "the page itself never scrolls sideways"
    assert_quiet(browser, path)


def test_hydrogen_is_where_the_page_says_and_marked(browser, tmp_path):
    path = page(tmp_path / "report.html", evaluated(3))
    browser.open(path)
    pixels = browser.pixels()
    x, y = browser.run("return window.report.hydrogen")
    around = pixels[int(y) - 25 : int(y) + 25, int(x) - 25 : int(x) + 25, :3]
    mark = np.array([0xD6, 0x33, 0x6C]) / 255
    assert (abs(around - mark).max(-1) < 0.08).sum() > 30


@pytest.mark.parametrize("pointer, width", [("mouse", 1280), ("touch", 390)])
def test_dragging_turns_the_structure(browser, tmp_path, pointer, width):
    path = page(tmp_path / "report.html", evaluated(3))
    browser.open(path, width)
    before, state = browser.pixels(), browser.run("return window.report")
    browser.drag("#view", 80, 30, pointer)
    after, turned = browser.pixels(), browser.run("return window.report")
    assert turned["yaw"] == pytest.approx(state["yaw"] + 36, abs=1) and turned["pitch"] == pytest.approx(
        state["pitch"] + 13.5, abs=1
    )
    changed = (abs(before - after).max(-1) > 0.1).mean()
    assert changed > 0.03 and drawn_share(after) > 0.05
    assert_quiet(browser, path)


def test_a_row_changes_the_view_and_top_and_side_are_exact(browser, tmp_path):
    """Seen from the side a flat layer is a line; seen from the top it is not."""
    evaluation = evaluated(3)
    evaluation.poses.pop("gen_0000")
    path = page(tmp_path / "report.html", evaluation)
    browser.open(path)
    heights = {}
    for name in ("Side", "Top"):
        browser.run(
            "[...document.querySelectorAll('.stage button')]"
            ".find(b => b.textContent === arguments[0]).click()",
            name,
        )
        browser.settle()
        heights[name] = np.ptp(np.flatnonzero((browser.pixels()[..., 3] > 0).any(1)))
    assert heights["Side"] < 0.35 * heights["Top"]
    first = browser.pixels()
    browser.run("document.querySelectorAll('.list tbody tr.pick')[1].click()")
    browser.settle()
    assert browser.run("return window.report.selected") == "gen_0001"
    assert browser.run("return document.querySelector('.facts h3').textContent") == "MoS₂"
    assert (abs(first - browser.pixels()).max(-1) > 0.1).mean() > 0.03
    browser.run("[...document.querySelectorAll('circle.own')].at(-1).dispatchEvent(new MouseEvent('click'))")
    assert browser.run("return window.report.selected") in evaluation.relaxed
    assert_quiet(browser, path)


def test_names_from_files_run_nothing(browser, tmp_path):
    evaluation = evaluated(2, 1)
    evaluation.rows[["error", "formula"]] = NASTY
    evaluation.rows.loc[2, "material_id"] = "__proto__"
    evaluation.provenance[NASTY] = NASTY
    shortlist = [{"material_id": "gen_0000", "formula": NASTY, NASTY: NASTY}]
    path = page(tmp_path / "report.html", evaluation, {NASTY + "2": evaluation.rows}, shortlist, NASTY)
    browser.open(path)
    for selector in (".choice button", "tr.pick"):
        browser.run("document.querySelectorAll(arguments[0]).forEach(node => node.click())", selector)
    browser.settle()
    assert browser.run(
        "return [window.hacked === undefined, document.scripts.length, document.images.length]"
    ) == [True, 2, 0]
    assert "<img src=x" in browser.run("return document.querySelector('main').textContent"), (
        "shown as the text that it is"
    )
    assert_quiet(browser, path)


@pytest.mark.parametrize("number, refused", [(0, 0), (0, 3), (1, 0), (500, 20)])
def test_sets_of_any_size_open(browser, tmp_path, number, refused):
    evaluation = evaluated(number, refused)
    path = page(
        tmp_path / "report.html", evaluation, {"random_baseline": evaluation.rows} if number > 1 else {}
    )
    browser.open(path, 390)
    text = browser.run("return document.querySelector('main').innerText")
    assert not re.search(r"\bNaN\b|undefined|Infinity|\[object|\bnull\b", text), text[:500]
    assert ("No structure has a ΔG" in text) == (number == 0)
    if number:
        assert drawn_share(browser.pixels()) > 0.03
    browser.run(
        "[...document.querySelectorAll('.choice button')]"
        ".filter(b => b.textContent.startsWith('All')).forEach(b => b.click())"
    )
    assert browser.run("return document.querySelectorAll('tr.pick').length") == number + refused
    assert_quiet(browser, path)
