"""What the documentation says exists, and its numbers are those of results/published."""

import csv
import importlib
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.evaluation.schema import COLUMNS
from models.infra.files import ROOT

PUBLISHED = ROOT / "results" / "published"
READMES = ("README.md", "README.zh-CN.md")
SCRIPTS = "pretrain_dimenet material_dataset optimization structure_generator test evaluate_external".split()
FOREIGN = {"--no-deps"}  # flags of other programs
# drawn by `make dft-data` once its data set is published
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "models/*.md", "models/weights/*.md", "data/*.md")
    for path in ROOT.glob(pattern)
)
CURRENT = [path for path in PAGES if path.name != "CHANGELOG.md"]  # a changelog names what is gone
ids = [str(path.relative_to(ROOT)) for path in PAGES]
current_ids = [str(path.relative_to(ROOT)) for path in CURRENT]

STUDY = {  # column of the tables -> set of study.csv
    "random elements": "random elements",
    "substitution": "substitution",
    "unguided": "unguided",
    "gradient, η = 30": "gradient",
    "CFG, s = 2": "CFG",
    "both": "gradient and CFG",
    "unguided, best of 21": "unguided, filtered",
    "default": "default",
}
STUDY_ROWS = {  # first words of a row of docs/study.md -> metric
    "**hits**": "hit_rate_0.2eV",
    "the same, ≤ 0.1 eV": "hit_rate_0.1eV",
    "distinct materials": "distinct hit_rate_0.2eV",
    "hits of formulas held out": "hit_rate_0.2eV, formulas that no stage learned from",
    "stable, E_hull": "stable_rate",
    "2D": "two_d_rate",
    "valid": "valid_rate",
    "unique over three seeds": "unique_rate",
    "stable, unique, novel": "sun_rate",
    "RMSD": "rmsd_relaxed_A",
    "mean \\|ΔG_H\\| by DimeNet++": "mae_delta_g_h_dimenet_eV",
    "by the oracle, stable layers": "mae_delta_g_h_oracle_eV",
    "oracle minus DimeNet++": "delta_g_h_gap_eV",
    "the same, formulas held out": "delta_g_h_gap_eV, formulas that no stage learned from",
    "function evaluations": "NFE a structure",
}
README_ORDER = ["random elements", "substitution", "unguided", "CFG", "unguided, filtered", "default"]
GENERATOR = {
    "template start": "template start",
    "pure noise": "de novo",
    "substitution (model-free)": "substitution",
    "real held-out layers": "held-out layers",
}
GENERATOR_ROWS = {
    "one 2D component": "one_2d_component_rate",
    "shortest distance": "distance_valid_rate",
    "SMACT": "smact_valid_rate",
    "RMSD": "rmsd_median_A",
    "the same, mean": "rmsd_relaxed_A",
    "stable, E_hull": "stable_rate",
    "unique": "unique_rate",
    "stable, unique and novel": "sun_rate",
    "stablest layer": "match@1",
    "one of 20": "match@20",
}
NUMBER = r"[-−]?\d+(?:\.\d+)?"
QUANTITY = rf"(?<![\w.-]){NUMBER}(?![\w]|\.\d)"  # no part of a name: not 2D, C2DB, OC20, DimeNet++


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def width(line: str) -> int:
    """Columns of a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def code_of(page: str) -> str:
    """Code spans and code blocks of a page, a line each."""
    blocks = re.findall(r"```(.*?)```", page, re.S)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.S))
    return "\n".join([*blocks, *spans])


def table_rows(page: str) -> list[list[str]]:
    """Cells of all table rows of a page; an escaped bar is no border."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def table_under(page: str, first: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table whose first row begins with `first`."""
    lines = page.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {first}"))
    while lines[start - 1].startswith("|"):
        start -= 1
    end = next(k for k in range(start, len(lines) + 1) if k == len(lines) or not lines[k].startswith("|"))
    header, _, *rows = table_rows("\n".join(lines[start:end]))
    return header, rows


@cache
def published(name: str) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of a table of results/published by (set, metric)."""
    with open(PUBLISHED / name, newline="", encoding="utf-8") as handle:
        return {(row["set"], row["metric"]): row for row in csv.DictReader(handle)}


def assert_says(cell: str, entry: dict[str, str], where: str):
    """A cell `value [low, high]` or `value` holds an entry's numbers, rounded as they are printed."""
    found = re.findall(NUMBER, cell.replace("−", "-").replace("**", ""))
    wanted = [entry["value"], entry["low95"], entry["high95"]][: len(found)]
    assert found and len(found) in (1, 3), f"{where}: {cell}"
    for printed, exact in zip(found, wanted):
        decimals = len(printed.partition(".")[2])
        # half a unit of the last digit, and a hair for values that lie on the half itself
        assert abs(float(printed) - float(exact)) <= 0.5 * 10**-decimals + 1e-9, (
            f"{where}: {printed}, {exact}"
        )


# --- one screen, two languages
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READMES)
def test_readme_is_one_screen(name):
    lines = text(name).splitlines()
    assert len(lines) <= 150
    assert not [(number, line) for number, line in enumerate(lines, 1) if width(line) > 110]


def test_both_readmes_hold_the_same_numbers():
    counts = []
    for name in READMES:
        apart = re.sub(r"([\u4e00-\u9fff])", r" \1 ", text(name).replace("−", "-"))
        counts.append(Counter(re.findall(QUANTITY, apart)))
    assert counts[0] == counts[1], (counts[0] - counts[1], counts[1] - counts[0])


def test_both_readmes_hold_the_same_code_and_pictures():
    spans = []
    for name in READMES:
        page = text(name)
        spans.append(
            Counter(re.findall(r"`([^`\n]+)`", page)) + Counter(re.findall(r"!\[[^]]*\]\(([^)]+)\)", page))
        )
    assert spans[0] == spans[1], (spans[0] - spans[1], spans[1] - spans[0])


# --- numbers
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, first", [(READMES[0], "random elements"), (READMES[1], "随机元素")])
def test_results_of_the_readme_are_the_studys(name, first):
    header, rows = table_under(text(name), first)
    assert len(header) == 4 and len(rows) == len(README_ORDER)
    for (label, hits, stable, unique), arm in zip(rows, README_ORDER):
        entry = published("study.csv")[arm, "hit_rate_0.2eV"]
        count, rate = hits.split(": ")
        n = int(entry["n"])
        assert count == f"{round(float(entry['value']) * n)}/{n}", label
        assert_says(rate, entry, label)
        assert_says(stable, published("study.csv")[arm, "stable_rate"], label)
        assert_says(unique, published("study.csv")[arm, "unique_rate"], label)


@pytest.mark.parametrize("name", [*READMES, "docs/study.md"])
def test_ratios_are_the_studys(name):
    """Every `x [low, high]` outside the tables that belongs to the default's hit rate over another set."""
    page = text(name)
    for rival, printed in {
        "random elements": "5.8 [2.9, 11.9]",
        "unguided": "6.6 [3.7, 11.6]",
        "unguided, filtered": "1.75 [1.05, 2.92]",
    }.items():
        assert_says(printed, published("study.csv")["default", f"hit_rate_0.2eV over {rival}"], rival)
        value, interval = printed.split(" ", 1)
        assert value in page and interval in page.replace("\n", " "), f"{name} lacks {printed}"


def test_study_page_is_the_study():
    header, rows = table_under(text("docs/study.md"), "structures")
    sets = [STUDY[label] for label in header[1:]]
    seen = set()
    for label, *cells in rows:
        start = next((start for start in STUDY_ROWS if label.startswith(start)), None)
        for arm, cell in zip(sets, cells):
            if start:
                assert_says(cell, published("study.csv")[arm, STUDY_ROWS[start]], f"{label}, {arm}")
                seen.add(start)
            elif label == "structures":
                assert cell == published("study.csv")[arm, "hit_rate_0.2eV"]["n"]
    assert seen == set(STUDY_ROWS)


def test_generator_page_is_the_benchmark():
    header, rows = table_under(text("docs/generator.md"), "one 2D component")
    sets = [GENERATOR[label] for label in header[1:-1]]
    for label, *cells in rows:
        starts = [start for start in GENERATOR_ROWS if label.startswith(start)]
        metric = GENERATOR_ROWS[max(starts, key=len)]
        for arm, cell in zip(sets, cells[:-1]):
            if cell:
                assert_says(cell, published("benchmark_generator.csv")[arm, metric], f"{label}, {arm}")


@cache
def dft() -> list[dict[str, str]]:
    with open(PUBLISHED / "dft_single_points.csv", newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_errors_against_dft_follow_from_the_single_points():
    """Bias, MAE, slope and correlation of docs/limits.md, computed again."""
    header, rows = table_under(text("docs/limits.md"), "03_Sr2Pt")
    printed = {row[0].strip("*"): row[2:] for row in rows}
    truth = np.array([float(row["dft_eV"]) for row in dft()])
    for column, name in enumerate(["7net-l3i5", "7net-0", "chgnet", "diep"]):
        guess = np.array([float(row[f"{name}_eV"]) for row in dft()])
        slope, r = np.polyfit(truth, guess, 1)[0], np.corrcoef(truth, guess)[0, 1]
        says = [printed["bias"][column], printed["MAE"][column], *printed["slope, r"][column].split(", ")]
        found = [float(number.replace("−", "-")) for number in says]
        exact = [(guess - truth).mean(), abs(guess - truth).mean(), slope, r]
        assert np.allclose(found, exact, atol=0.0051), name
    for cells, row in zip(rows, dft()):
        assert cells[0].split()[0] == row["layer"]
        assert [float(cell.replace("−", "-")) for cell in cells[1:]] == [
            float(v) for v in list(row.values())[1:]
        ]


@pytest.mark.parametrize("name", READMES)
def test_what_dft_says_of_the_top_20(name):
    """ΔG_H of the named layers is that of the DFT data set, and active means within 0.2 eV."""
    with open(PUBLISHED / "dft_top20.csv", newline="", encoding="utf-8") as handle:
        judged = [row for row in csv.DictReader(handle) if row["delta_g_h_dft_eV"]]
    assert len(judged) == 19
    energies = {row["formula"]: float(row["delta_g_h_dft_eV"]) for row in judged}
    named = re.findall(r"([A-Z]\w+)\s*[（(]\s*([−-]?\d\.\d+) eV[)）]", text(name))
    assert {layer for layer, _ in named} == {"BaTlP", "RhS2", "Ca2Pt", "Sr2Pt", "Li4Tl2Cu"}
    for layer, printed in named:
        assert float(printed.replace("−", "-")) == pytest.approx(energies[layer], abs=0.0051), layer
    active = {row["formula"] for row in judged if row["active_0.2eV"] == "True"}
    keeps = active - {row["formula"] for row in judged if row["h_abstracts"] == "True"}
    assert active == {formula for formula, energy in energies.items() if abs(energy) <= 0.2}
    assert keeps == {"Ca2Pt", "Sr2Pt", "Li4Tl2Cu"}


def test_what_is_left_of_the_published_hits():
    """The table of docs/study.md is that of the script, and both READMEs name what is left."""
    with open(PUBLISHED / "top20_rejudged.csv", newline="", encoding="utf-8") as handle:
        rows = {row["material_id"]: row for row in csv.DictReader(handle) if row["published_hit"] == "True"}
    _, table = table_under(text("docs/study.md"), "02_CoCl3")
    assert {cells[0] for cells in table} == set(rows)
    for name, published, today, compounds, *verdicts in table:
        row = rows[name]
        energies = [float(cell.replace("−", "-")) for cell in (published, today)]
        assert energies == [float(row[f"e_hull{key}_eV_per_atom"]) for key in ("_published", "")], name
        assert compounds == row["hull_compounds"]
        said = [{"yes": "True", "no": "False", "not known": ""}[verdict] for verdict in verdicts]
        assert said == [row["stable"], row["aqueous"], row["hit"]], name
    for name in ("03_Sr2Pt", "05_Ca2Pt"):  # "are active, but dissolve"
        assert rows[name]["aqueous"] == "False"
    left = {name.split("_")[1] for name, row in rows.items() if row["hit"] == "True"}
    assert left == {"RhS2"}
    assert re.search(r"only\s+RhS2\s+is\s+left", text("README.md")) and "只剩 RhS2" in text("README.zh-CN.md")


# --- links, flags, targets, files, columns
# ---------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_link_leads_somewhere(path: Path):
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", path.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), f"{path.name}: {target}"


@cache
def flags() -> dict[str, set[str]]:
    """Option strings of every script, by its name; of the benchmarks those that stand in their source."""
    found = {}
    for module in SCRIPTS:
        parser = importlib.import_module(module).build_parser()
        found[f"{module}.py"] = set(parser._option_string_actions)
    found["data.build"] = set(
        importlib.import_module("data.build.__main__").build_parser()._option_string_actions
    )
    for path in [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "data" / "build").rglob("*.py")]:
        folder = path.parent if path.stem == "__main__" else path
        found[f"{folder.parent.name}.{folder.stem}"] = set(re.findall(r'"(--[a-z][\w-]*)"', path.read_text()))
    return found


@pytest.mark.parametrize("path", CURRENT, ids=current_ids)
def test_every_flag_exists(path: Path):
    """In the parser of the script on whose line it stands; alone, in the parser of any."""
    known = set().union(*flags().values()) | FOREIGN
    for line in code_of(path.read_text(encoding="utf-8")).replace("\\\n", " ").splitlines():
        script = re.search(r"\b(\w+\.py|data\.build(?:\.\w+)?|benchmarks\.\w+)\b", line)
        own = flags().get(script.group(1).replace("data.build.", "build.")) if script else None
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
            if flag.endswith("-"):  # a family, as in --weight-…
                assert any(name.startswith(flag) for name in known), f"{path.name}: {line}"
            else:
                assert flag in (own or known) | FOREIGN, f"{path.name}: {flag} in {line}"


@pytest.mark.parametrize("path", CURRENT, ids=current_ids)
def test_every_make_target_exists(path: Path):
    targets = set(re.findall(r"^([a-z][a-z-]*):", text("Makefile"), re.M))
    for target in re.findall(
        r"\bmake (?:[A-Z]+=\S+ )*([a-z][a-z-]*)", code_of(path.read_text(encoding="utf-8"))
    ):
        assert target in targets, f"{path.name} names make {target}"


@pytest.mark.parametrize("path", CURRENT, ids=current_ids)
def test_every_source_file_that_is_named_exists(path: Path):
    named = re.findall(
        r"\b(?:models|tests|benchmarks|data/build)/[\w/]+\.py\b", path.read_text(encoding="utf-8")
    )
    for file in named:
        assert (ROOT / file).is_file(), f"{path.name} names {file}"


def test_every_column_that_is_named_is_in_the_schema():
    """Columns of docs/evaluation.md and of the README's paragraph on metrics.csv."""
    _, rows = table_under(text("docs/evaluation.md"), "`two_d`")
    named = re.findall(r"`([a-z]\w+)`", " ".join(row[0] for row in rows))
    paragraph = text("README.md").split("`OUT/metrics.csv`")[1].split("[docs/")[0]
    named += re.findall(r"`([a-z]\w+)`", paragraph)
    assert len(named) > 25
    assert set(named) <= set(COLUMNS)
