"""What survives, counted: python -m tests.robustness [--long] writes docs/reliability.md.

Runs the tests of hostile files, bad structures, bad databases, interruptions and environments, and counts
their cases. A case that fails is lost or wrong; `executed` counts inputs of which anything ran.
"""

import argparse
import os
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime

import pytest

from models.infra.files import ROOT, markdown_table, write_text

KINDS = {  # kind -> parts of test ids
    "Checkpoints that name code, truncated, foreign, compressed or too large": (
        "test_no_checkpoint_runs",
        "test_broken_checkpoints",
        "test_a_checkpoint_takes_no_more",
    ),
    "Processed folders (`.pt`) that name code or hold no graphs": ("test_processed.py",),
    "LMDB records that name code": ("test_malicious_pickle", "test_opcodes", "test_array_type"),
    "LMDB records and files that are bombs, broken or incomplete": (
        "test_a_bomb_costs",
        "test_tensor_bounds",
        "test_truncated_record",
        "test_incomplete_record",
        "test_missing_and_damaged",
    ),
    "ASE databases: bad rows, foreign, truncated, locked, empty": ("test_ase_database.py",),
    "Resume files (shards), CSV and JSON of strangers": (
        "test_a_foreign_line",
        "test_broken_json",
        "test_no_cell_is_a_formula",
        "test_a_name_stays_in_its_cell",
    ),
    "Structures that are none": (
        "test_what_is_no_crystal",
        "test_a_molecule_and",
        "test_files_that_are_none",
    ),
    "Structures as people write them, read as what they mean": (
        "test_a_file_that_means",
        "test_odd_cifs",
        "test_two_origins",
        "test_every_block",
        "test_names_of_files",
        "test_other_formats",
        "test_what_a_generator",
        "test_nested",
        "test_formats_that",
        "test_nothing_to_read",
    ),
    "Processes that die, hang or eat memory; errors of tasks": (
        "test_only_the_item",
        "test_a_second_run",
        "test_a_death",
        "test_an_item_that",
        "test_memory_of",
        "test_errors_of_tasks",
        "test_lost_items",
    ),
    "Signals to the parent alone: all ends within 5 s": ("test_a_signal_to_the_parent",),
    "Kills of stages 1 to 5 at random moments, the same bytes after --resume": ("test_a_killed_stage",),
    "Two runs into one output": ("test_two_runs", "test_the_second_run", "test_files_of_one_folder"),
    "Environment: locale, names, closed stdout, full disk, other folders": (
        "test_environment.py",
        "test_any_name",
        "test_a_reader_that",
        "test_text_of_any",
        "test_a_full_disk",
        "test_a_failed_writing",
        "test_what_a_killed_writer",
        "test_a_shard_loses",
    ),
    "Flags out of range, and files that are needed last, refused before the work": (
        "test_flags_out_of_range",
        "test_an_error_is_one_line",
        "test_late",
    ),
}
TESTS = ("infra", "robustness", "datasets/test_lmdb_data.py")
TESTS += ("crystals/test_structure_files.py", "crystals/test_ase_database.py")


def kind_of(test: str) -> str | None:
    """Kind of a test by its id; None for those that are not counted."""
    for kind, parts in KINDS.items():
        if any(part in test for part in parts):
            return kind
    return None


class Counts:
    """A pytest plugin: cases, failures and executions of each kind."""

    def __init__(self):
        self.cases, self.lost, self.executed = Counter(), Counter(), Counter()
        self.failed, self.skipped = defaultdict(list), Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        kind = next(
            (kind for kind, parts in KINDS.items() if any(part in report.nodeid for part in parts)), None
        )
        if kind is None or (report.when != "call" and report.passed):
            return
        if report.skipped:
            self.skipped[kind] += 1
            return
        properties = dict(report.user_properties)
        self.cases[kind] += properties.get("cases", 1)
        self.executed[kind] += properties.get("executed", 0)
        if report.failed:
            self.lost[kind] += 1
            self.failed[kind].append(report.nodeid)


def document(counts: Counts, long: bool, seconds: float) -> str:
    """docs/reliability.md."""
    form = "the long form" if long else "the short form"
    lines = [
        "# Reliability: hostile files, bad input, interruptions",
        "",
        f"Made by `python -m tests.robustness{' --long' if long else ''}` ({form}, "
        f"{os.environ['HER2D_KILLS']} kills a stage, {seconds:.0f} s) on {datetime.now(UTC):%Y-%m-%d}. "
        "`make test` runs the short form, `make test-long` the long one.",
        "A case is one input, or one kill. *Handled*: refused or counted with a message that says what to "
        "do, or read as what it means. *Lost or wrong*: anything else. *Executed*: something in it ran.",
        "",
    ]
    rows = []
    for kind in KINDS:
        cases, lost = counts.cases[kind], counts.lost[kind]
        rows.append([kind, cases, cases - lost, lost, counts.executed[kind]])
    total, lost = counts.cases.total(), counts.lost.total()
    rows.append(["**all**", total, total - lost, lost, counts.executed.total()])
    lines += [markdown_table(["kind", "cases", "handled", "lost or wrong", "executed"], rows), ""]
    failed = [name for names in counts.failed.values() for name in names]
    lines += [f"Lost or wrong: {', '.join(failed)}.", ""] if failed else []
    if counts.skipped:
        lines += [f"Skipped for want of reference data or time: {counts.skipped.total()} tests.", ""]
    return "\n".join(lines + BOUNDS)


BOUNDS = [
    "## Bounds",
    "",
    "| what | bound | where |",
    "|---|---|---|",
    "| a structure | 500 atoms, lengths 0.5–1000 Å, lattice planes ≥ 1 Å, no two nuclei within 0.5 Å "
    "| `models/crystals/cif.py` |",
    "| a structure file | 16 MB unpacked | `models/crystals/structure_files.py` |",
    "| an item of a pool (relaxation, adsorption, phonons) | 1 h, 8 GiB beside the model; where a process "
    "dies its item is tried once more | `models/infra/jobs.py` |",
    "| an LMDB record | 2,000 atoms, 64 MB, 256 MiB + 100 × its size in memory "
    "| `models/datasets/lmdb_data.py` |",
    "| a row of a database | 256 MiB in memory | `models/crystals/ase_database.py` |",
    "| a checkpoint | 1 GiB + 4 × its size in memory, no compressed archive | `models/infra/files.py` |",
    "",
    "Memory is bounded by the kernel (RLIMIT_DATA, Linux). Exit status: 0 done, 1 an error in one line, 2 a "
    "wrong flag, 3 done but some items are lost (`--resume` tries them again), 130 and 143 stopped. "
    "`HER2D_DEBUG=1` shows tracebacks.",
    "",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="50 kills a stage, and the tests marked long")
    parser.add_argument("--kills", type=int, help="kills a stage, 1 or 50 by default")
    args = parser.parse_args()
    os.environ["HER2D_KILLS"] = str(args.kills or (50 if args.long else 1))
    counts, begin = Counts(), datetime.now(UTC)
    marks = ["-m", ""] if args.long else []
    status = pytest.main([*marks, *(str(ROOT / "tests" / name) for name in TESTS)], plugins=[counts])
    seconds = (datetime.now(UTC) - begin).total_seconds()
    write_text(ROOT / "docs" / "reliability.md", document(counts, args.long, seconds))
    sys.exit(status)


if __name__ == "__main__":
    main()
