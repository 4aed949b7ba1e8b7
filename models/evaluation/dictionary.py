"""Writes docs/outputs.md, the dictionary of all that an evaluation leaves, from the schema.

python -m models.evaluation.dictionary > docs/outputs.md
"""

from collections.abc import Iterable

from models.evaluation.schema import (
    COMPARISON,
    GENERATED,
    METRICS,
    SET_METRICS,
    SHORTLIST_COLUMNS,
    SUMMARY,
    Column,
)
from models.infra.files import markdown_table

TYPES = {"str": "text", "float": "number", "int": "integer", "bool": "True / False"}
BEGIN = """\
# What comes out, column by column

Generated from the schema in `models/evaluation/schema.py` by
`python -m models.evaluation.dictionary > docs/outputs.md`; do not edit.
Missing values are empty cells in the CSVs and `null` in JSON. `models.evaluation.rows.read_table` reads a CSV
with the types below. `test.py` writes into `results/`, `evaluate_external.py` into `results_external/`."""
FILES = """\
## Other files

| file | what it holds |
|---|---|
| `report.html` | all of it on one page that opens offline, structures that turn in 3D |
| `comparison.md` | comparison.csv as a table to read |
| `her_performance.png`, `stability_curve.png` | figures: activity, stability |
| `baseline_comparison.png`, `generated_structures.png` | figures: metrics of all sets, the best structures |
| `funnel.png` | figure: structures that pass each gate |
| `dft/<material_id>/` | VASP and GPAW inputs of slab and slab + H of the shortlist |
| `relaxed`, `adsorbed`, `poses`, `second`, `phonons` (`.jsonl`) | what `--resume` continues from |
| `dft.jsonl` | the same of `--dft`; `python -m data.build.dft --evaluated` adds it to the DFT data set |
| `phases.jsonl` | competing phases relaxed with another potential, kept for every set |
| `config.json` | the resolved flags |"""


def columns_table(columns: Iterable[Column]) -> str:
    """Markdown of columns."""
    rows = []
    for column in columns:
        rows.append([f"`{column.name}`", TYPES[column.kind], column.unit, column.meaning, column.missing])
    return markdown_table(["column", "type", "unit", "meaning", "empty where"], rows)


def metrics_table() -> str:
    """Markdown of the metrics of a set."""
    rows = []
    for metric in SET_METRICS:
        kind = "rate" if metric.is_rate else f"mean ({metric.unit})" if metric.unit else "mean"
        rows.append([f"`{metric.name}`", kind, ": ".join(filter(None, [metric.label, metric.note]))])
    return markdown_table(["metric", "kind", "meaning"], rows)


def summary_table() -> str:
    """Markdown of the keys of metrics.json."""
    return markdown_table(["key", "meaning"], [[f"`{key}`", meaning] for key, meaning in SUMMARY.items()])


def document() -> str:
    """The text of docs/outputs.md."""
    shortlist = ", ".join(f"`{name}`" for name in SHORTLIST_COLUMNS)
    parts = [
        BEGIN,
        "## metrics.csv: one row a structure",
        columns_table(METRICS),
        "## shortlist.csv and pareto.csv: the best ranked structures, and the Pareto front",
        f"Columns of metrics.csv: {shortlist}.",
        "## comparison.csv: one row a set and metric",
        columns_table(COMPARISON),
        "## metrics.json",
        summary_table(),
        "## Metrics of a set",
        "A rate is over all submitted structures, failures included, with Wilson's 95 % interval;\n"
        "a mean is over the structures that have the quantity, with a bootstrap interval.",
        metrics_table(),
        "## generated.csv: what structure_generator.py drew, one row a structure",
        columns_table(GENERATED),
        FILES,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(document(), end="")
