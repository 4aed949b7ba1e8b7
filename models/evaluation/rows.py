"""Tables of an evaluation: pandas DataFrames with one row a structure and the dtypes of their schema.

They hold whether a table was computed or read back from a CSV: "str" (missing ""), "float" (float64, NaN),
"int" (Int64, NA) and "bool" (boolean, NA). In the files a missing value is an empty cell.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from models.evaluation.schema import COLUMNS, DTYPES, METRICS, Column
from models.infra.files import read_rows, write_rows

TRUTH = {"True": True, "False": False}
Columns = dict[
    str, dict[str, object]
]  # material_id -> {column: value}: what a step of the evaluation returns


def table(records: Iterable[Mapping] = (), schema: tuple[Column, ...] = METRICS) -> pd.DataFrame:
    """Records as a table with all columns of a schema in its order and dtypes; others follow as they are.

    Args:
        records: one mapping a row; None, NaN and a key that is not there are missing.
    """
    frame = pd.DataFrame.from_records(list(records))
    known = {column.name: _typed(frame.get(column.name), column, len(frame)) for column in schema}
    rest = frame[[name for name in frame.columns if name not in known]]
    return pd.concat([pd.DataFrame(known, index=frame.index), rest], axis=1)


def read_table(path: Path, schema: tuple[Column, ...] = METRICS) -> pd.DataFrame:
    """A CSV with the dtypes of its schema; a column that an older file lacks is missing throughout.

    Raises:
        ValueError: names the file, the column and the value that is not of its type.
    """
    try:
        return table(read_rows(path), schema)
    except ValueError as error:
        raise ValueError(f"{path}: {error}: evaluate the set again") from error


def write_table(path: Path, frame: pd.DataFrame, columns: Iterable[str] = COLUMNS) -> None:
    """Some columns of a table as a CSV, by rename; missing values are empty cells."""
    write_rows(path, records(frame, columns), columns)


def join(frame: pd.DataFrame, found: Columns) -> pd.DataFrame:
    """The table with the columns of some structures filled in; an "error" is appended to what stands there.

    Args:
        found: structures and columns that it lacks, and None, stay as they are.
    """
    frame, place = frame.copy(), {name: k for k, name in enumerate(frame["material_id"])}
    for name, columns in found.items():
        for column, value in columns.items():
            at = place[name], frame.columns.get_loc(column)
            if column == "error":
                value = "; ".join(filter(None, [frame.iat[at], value]))
            if value is not None:
                frame.iat[at] = value
    return frame


def records(frame: pd.DataFrame, columns: Iterable[str] | None = None) -> list[dict]:
    """Rows as plain Python values, a missing number or truth value as None."""
    chosen = frame if columns is None else frame[list(columns)]
    plain = chosen.astype(object)
    return plain.where(chosen.notna(), None).to_dict("records")


def is_true(column: pd.Series) -> np.ndarray:
    """[n] bool of a boolean column; missing counts as no."""
    return column.fillna(False).to_numpy(bool)


def numbers(column: pd.Series) -> np.ndarray:
    """[n] float of a number column; missing is NaN."""
    return column.to_numpy(float, na_value=np.nan)


def _typed(found: pd.Series | None, column: Column, n: int) -> pd.Series:
    """A column in its dtype, from values or from the text of a CSV."""
    dtype = DTYPES[column.kind]
    values = [None] * n if found is None else [_parsed(value, column) for value in found]
    series = pd.Series(values, dtype=dtype)
    return series.fillna("") if column.kind == "str" else series


def _parsed(value, column: Column):
    """One cell as Python's own type, None where it is missing."""
    if pd.isna(value) or value == "":
        return None
    try:
        if column.kind == "bool":
            return TRUTH[str(value)]
        return {"str": str, "int": int, "float": float}[column.kind](value)
    except (KeyError, ValueError) as error:
        raise ValueError(f"column {column.name} holds {value!r}, which is no {column.kind}") from error
