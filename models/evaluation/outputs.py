"""Everything that a set is judged by, as files: tables, figures, DFT inputs, report.html."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from ase import Atoms

from models.evaluation import figures
from models.evaluation.dft_inputs import remove_stale, write_handoff
from models.evaluation.funnel import funnel, funnels_markdown, hit_gates
from models.evaluation.metrics import aggregate, compare, flat, markdown, sensitivity
from models.evaluation.provenance import SAME
from models.evaluation.report import write_html
from models.evaluation.rows import is_true, read_table, records, write_table
from models.evaluation.schema import COMPARISON, SHORTLIST_COLUMNS
from models.evaluation.settings import Settings
from models.evaluation.shortlist import agreement, ranked
from models.infra.files import read_json, write_json, write_text

NULLS = ("random_baseline", "substitution")  # model-free baselines
FUNNEL_NOTE = "Structures that pass a gate and all before it; in brackets those that have failed none so far:"


@dataclass
class Evaluation:
    """The table of a set, the relaxed layers and poses of H behind it, and where the numbers come from."""

    rows: pd.DataFrame
    relaxed: dict[str, Atoms] = field(default_factory=dict)
    poses: dict[str, Atoms] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def shortlist(self, count: int) -> pd.DataFrame:
        """The `count` best rows (models.evaluation.shortlist.ranked), or fewer."""
        return ranked(self.rows).head(count)

    def layers_of_best(self, count: int) -> dict[str, Atoms]:
        """The relaxed layers of the shortlist, by material_id, best first."""
        return {name: self.relaxed[name] for name in self.shortlist(count)["material_id"]}


def write_outputs(
    name: str, evaluation: Evaluation, others: dict[str, pd.DataFrame], out: Path, settings: Settings
) -> dict:
    """Writes all files of an evaluation into `out` and prints its headline.

    Args:
        name: of the set.
        others: tables of the sets to compare with, by name.

    Returns:
        the content of metrics.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows, best = evaluation.rows, evaluation.shortlist(settings.shortlist)
    metrics = {name: aggregate(rows, settings.seed)}
    for label, other in others.items():
        metrics[label] = compare(rows, other, settings.seed)
    funnels = {label: funnel(found) for label, found in {name: rows, **others}.items()}
    content = summary(name, evaluation, metrics, funnels, best, settings)
    write_table(out / "metrics.csv", rows)
    write_table(out / "shortlist.csv", best, SHORTLIST_COLUMNS)
    front = ranked(rows)
    write_table(out / "pareto.csv", front[is_true(front["pareto"])], SHORTLIST_COLUMNS)
    write_json(out / "metrics.json", content)
    text = f"{markdown(metrics)}\n\n{FUNNEL_NOTE}\n\n{funnels_markdown(funnels)}"
    write_text(out / "comparison.md", text + "\n")
    write_table(out / "comparison.csv", flat(metrics), [column.name for column in COMPARISON])
    remove_stale(out / "dft", best["material_id"])
    for row in records(best):
        identity = row["material_id"]
        layer, pose = evaluation.relaxed[identity], evaluation.poses.get(identity)
        write_handoff(out / "dft", identity, layer, pose, row, evaluation.provenance)
    drawn = draw(name, evaluation, others, metrics, funnels, out)
    write_html(out / "report.html", name, evaluation, others, metrics, content["shortlist"], drawn)
    print("\n".join([text, "", *headline(content, rows), f"files in {out}"]))
    return content


def summary(
    name: str, evaluation: Evaluation, metrics: dict, funnels: dict, best: pd.DataFrame, settings: Settings
) -> dict:
    """The content of metrics.json (keys: models.evaluation.schema.SUMMARY)."""
    rows = evaluation.rows
    others = {label: found for label, found in metrics.items() if label != name}
    return {
        "set": name,
        "n": len(rows),
        "hit_gates": hit_gates(rows),
        "funnels": funnels,
        "metrics": metrics[name],
        "nulls": {label: found for label, found in others.items() if label in NULLS},
        "compared": {label: found for label, found in others.items() if label not in NULLS},
        "sensitivity_to_correction": sensitivity(rows, settings.seed),
        "second_opinion": agreement(best, settings.seed),
        "dynamic_stability": dict(Counter(verdict for verdict in rows["phonons"] if verdict)),
        "shortlist": records(best, SHORTLIST_COLUMNS),
        "provenance": evaluation.provenance,
    }


def draw(
    name: str,
    evaluation: Evaluation,
    others: dict[str, pd.DataFrame],
    metrics: dict,
    funnels: dict,
    out: Path,
) -> list[Path]:
    """The figures; their paths."""
    sets, potential = {name: evaluation.rows, **others}, evaluation.provenance["potential"]
    names = ("her_performance", "stability_curve", "baseline_comparison", "generated_structures", "funnel")
    paths = [out / f"{figure}.png" for figure in names]
    corrected = not evaluation.provenance["dft_correction"].startswith("none")
    oracle = f"H relaxed with {potential}" + (", corrected to DFT" if corrected else "")
    figures.her_performance(sets, oracle, paths[0])
    figures.stability_curve(sets, potential, paths[1])
    figures.baseline_comparison(metrics, paths[2])
    figures.generated_structures(evaluation.rows, evaluation.relaxed, evaluation.poses, paths[3])
    figures.draw_funnel(funnels, paths[4])
    return paths


def headline(content: dict, rows: pd.DataFrame) -> list[str]:
    """What a reader wants to know first, in lines."""
    n, source = content["n"], content["provenance"]
    count = {}
    for name, metric in content["metrics"].items():
        count[name] = "" if metric["value"] is None else f"{metric['value'] * n:.0f}/{n}"
    lines = [
        f"2D: {count['one_2d_component_rate']} are one layer periodic in two directions, "
        f"{count['two_d_rate']} a free-standing one"
    ]
    refused = Counter(kind or "unreadable" for kind in rows["verdict"][~is_true(rows["two_d"])])
    if refused:
        kinds = ", ".join(f"{number} {kind}" for kind, number in refused.most_common())
        lines.append(f"refused as 2D catalysts: {refused.total()} ({kinds})")
    shifts = []
    for shift, found in content["sensitivity_to_correction"].items():
        shifts.append(f"{shift}: {found['hit_rate_0.2eV']['value'] * n:.0f}")
    lines += [
        f"stable: {count['stable_rate']} (no competing phase known: {count['no_competitor_rate']}); "
        f"stable, unique and novel: {count['sun_rate']}",
        f"hits ({', '.join(content['hit_gates'])}): {count['hit_rate_0.2eV']} "
        f"(with the correction moved by {', '.join(shifts)}); "
        f"layers that reconstruct under H: {count['reconstructed_rate']}",
        *map(shortlist_line, content["shortlist"]),
    ]
    agree = content["second_opinion"]["both_within_0.2eV"]
    if agree["n"]:
        same = f"{agree['value'] * agree['n']:.0f}/{agree['n']}"
        lines.append(f"both potentials within 0.2 eV on the shortlist: {same} that have both")
    second = source["second_potential"].split(" (")[0]
    models = (
        f"potential: {source['potential']}; second: {second}; correction to DFT: {source['dft_correction']}; "
        f"synthesizability: {source['synthesizability']}"
    )
    return [*lines, models]


def shortlist_line(row: dict) -> str:
    """A candidate in a line."""
    said, std = [], row["delta_g_h_oracle_std_eV"]
    for column, label in (
        ("oracle", "oracle" if std is None else f"± {std:.2f} oracle"),
        ("dimenet", "DimeNet++"),
        ("second", "second"),
    ):
        said.append(f"{_signed(row[f'delta_g_h_{column}_eV'])} {label}")
    if row["delta_g_h_dft_eV"] is not None:
        said.append(f"{_signed(row['delta_g_h_dft_eV'])} DFT")
    chance = f"P(|ΔG_H| <= 0.1 eV) {row['p_active']:.2f}"
    line = f"{row['rank']}. {row['material_id']} (class {row['candidate_class']}): {chance}"
    line += f", ΔG_H {', '.join(said)}"
    line += f"; E_hull {_signed(row['e_hull_eV_per_atom'])}"
    error, cost = row["e_hull_std_eV_per_atom"], row["price_usd_per_kg"]
    line += f" ± {error:.2f} eV/atom" if error is not None else " eV/atom"
    line += f"; {cost:,.0f} USD/kg" if cost is not None else ""
    line += f"; holds {row['avoid_elements']}" if row["avoid_elements"] else ""
    line += f"; stopped by: {row['stopped_by']}" if row["stopped_by"] else ""
    return line + (f"; phonons {row['phonons']}" if row["phonons"] else "")


def _signed(number: float | None) -> str:
    return "–" if number is None else f"{number:+.2f}"


def compared_sets(paths: list[Path], own: str, provenance: dict) -> dict[str, pd.DataFrame]:
    """Tables of other sets by name; one that was scored otherwise, or is missing, is left out and said so."""
    sets = {}
    for path in paths:
        summary_path = path.with_name("metrics.json")
        if not (path.is_file() and summary_path.is_file()):
            print(f"not compared: {path} (or its metrics.json) does not exist")
            continue
        content = read_json(summary_path)
        other = [key for key in SAME if content["provenance"].get(key) != provenance[key]]
        if other:
            print(f"not compared: {path} was scored with another {', '.join(other)}: score it again")
            continue
        name = content["set"]
        sets[name if name != own and name not in sets else f"{name} ({path.parent})"] = read_table(path)
    return sets
