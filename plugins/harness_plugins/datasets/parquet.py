"""Parquet files in the image schema of Hugging Face datasets."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from harness.api import Field, HarnessError, Split, Splits, find_file, hash_file
from harness_plugins.datasets._images import ImageFiles, group_reader, grouped, stack
from harness_plugins.datasets._splits import by_split, content_hash, name_classes

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class Parquet(ImageFiles):
    """Parquet files as Hugging Face datasets writes them: an image column struct{bytes, path} and labels.

    path is a folder with train*.parquet (or training*), and maybe val* (valid*, validation*, dev*) and test*
    (testing*), in whatever case, in it or in its subfolder data; shards are read in the order of their names.
    Or path is one .parquet file, taken as train. The image column is found by its type, the label column by
    its ClassLabel metadata, else by the name `label`; class names come from that metadata, else are the
    numbers themselves. A file that numbers the classes otherwise than the first one is read by their names.
    Pixels are uint8, upright by the EXIF orientation, converted to `channels`, and resized to (size, size) only
    where size is given; images of different sizes are else an error.

    Splits: those that have files. Missing test and val are held out of train: test_fraction, then
    val_fraction, of its records, whole groups only, stratified by class, seeded by split_seed. The patient or
    site is named by the value in `group_column`, an integer or text, or by `groups`, a regular expression searched
    in each image's path: its first capture group, else the whole match.

    Needs pyarrow (`pip install 'psr-harness[hf]'`). Raises HarnessError where files, columns or image bytes
    are missing or unreadable, where two names mean one split, where files name different classes, and where a record
    has no group. The fingerprint hashes the files' bytes.
    """

    name = "parquet"
    extras: ClassVar[dict[str, str]] = {"pyarrow": "psr-harness[hf]"}

    path: str = Field(
        description="a folder or one file; relative paths as in the scenario, $VARIABLES allowed"
    )
    image_column: str | None = Field(None, description="the image column; default: the one of the image type")
    label_column: str | None = Field(None, description="the label column; default: ClassLabel, or `label`")
    class_names: tuple[str, ...] | None = Field(
        None, strict=False, description="names of classes 0, 1, ...; default: those in the file"
    )
    groups: str | None = Field(
        None, description="regular expression for the patient or site in an image's path"
    )
    group_column: str | None = Field(
        None, description="the column that holds the patient or site, instead of groups"
    )

    @model_validator(mode="after")
    def _one_source_of_groups(self) -> Self:
        if self.groups is not None and self.group_column is not None:
            raise ValueError("groups and group_column both say who a record belongs to; set one of them")
        return self

    def load(self, root: Path | None = None) -> Splits:
        import numpy as np

        read_groups = group_reader(self.name, self.groups)
        parts: dict[str, Split] = {}
        groups: dict[str, np.ndarray] = {}
        names = _Names()
        for split, files in self._files(root).items():
            tables = _read(files)
            image = self._image_column(tables[0], files[0])
            label = self._label_column(tables[0], files[0])
            labels = [
                names.numbered(file, table, label, _labels(table, label, file))
                for file, table in zip(files, tables, strict=True)
            ]
            records = [
                record
                for file, table in zip(files, tables, strict=True)
                for record in _records(file, table, image)
            ]
            paths = [str(_get(record, "path") or "") for record in records]
            decoded = (
                (f"{split} row {i}", self._decode(record, split, i)) for i, record in enumerate(records)
            )
            parts[split] = Split(stack(self.name, decoded, len(records)), np.concatenate(labels))
            if read_groups is not None:
                groups[split] = read_groups(paths)
            elif self.group_column is not None:
                groups[split] = _groups(files, tables, self.group_column)
        where = f"dataset parquet: {self.path}"
        parts = grouped(where, parts, groups)
        given = names.known if self.class_names is None else self.class_names
        classes = name_classes(where, given, (part.labels for part in parts.values()))
        return self.completed(parts, classes)

    def fingerprint(self, root: Path | None = None) -> str:
        content = [
            f"{split}:{hash_file(file)}" for split, files in self._files(root).items() for file in files
        ]
        return content_hash(content, self.model_dump(mode="json", exclude={"path"}))

    def _files(self, root: Path | None) -> dict[str, list[Path]]:
        base = find_file(self.path, root)
        if base.is_file():
            return {"train": [base]}
        for folder in (base, base / "data"):
            shards = _shards(folder)
            found = by_split(f"dataset parquet: {folder}", shards)
            if "train" in found:
                return {split: shards[prefix] for split, prefix in found.items()}
        raise HarnessError(f"dataset parquet: no train*.parquet in {base}")

    def _image_column(self, table: pa.Table, file: Path) -> str:
        import pyarrow as pa

        def is_image(kind: Any) -> bool:
            return pa.types.is_struct(kind) and any(
                kind.field(i).name == "bytes" for i in range(kind.num_fields)
            )

        found = [field.name for field in table.schema if is_image(field.type)]
        asked = self.image_column
        if not found or (asked in table.column_names and asked not in found):
            columns = ", ".join(f"{field.name} ({field.type})" for field in table.schema)
            raise HarnessError(
                f"dataset parquet: {file} has no {asked or 'column'} of the type struct{{bytes, path}}, as in Hugging "
                f"Face datasets; it has {columns}"
            )
        return _one("image", "struct{bytes, path}", asked, found, table, file)

    def _label_column(self, table: pa.Table, file: Path) -> str:
        features = _features(table)
        found = [c for c in table.column_names if features.get(c, {}).get("_type") == "ClassLabel"]
        if len(found) != 1 and "label" in table.column_names:
            found = ["label"]
        return _one("label", "ClassLabel", self.label_column, found, table, file)

    def _decode(self, record: Any, split: str, row: int) -> np.ndarray:
        where = f"dataset parquet, {split} row {row}"
        content = _get(record, "bytes")
        if not content:
            raise HarnessError(f"{where}: no image bytes; files that only name paths are not supported")
        return self.pixels(io.BytesIO(content), where)


class _Names:
    """The class names that the first file with any gives to 0, 1, ...; every file's labels are numbered by them."""

    known: Sequence[str] | None = None
    file: Path | None = None

    def numbered(self, file: Path, table: pa.Table, label: str, labels: np.ndarray) -> np.ndarray:
        """The file's labels by those names. Raises HarnessError where it names other classes."""
        import numpy as np

        own = _features(table).get(label, {}).get("names")
        if own is None or own == self.known:
            return labels
        if self.known is None:
            self.known, self.file = own, file
            return labels
        if sorted(own) != sorted(self.known):
            other = ", ".join(sorted(set(own) ^ set(self.known))[:5])
            raise HarnessError(
                f"dataset parquet: {file} and {self.file} name different classes in {label} (only one has {other}); "
                "write both with the same ClassLabel names"
            )
        order = np.array([self.known.index(name) for name in own])
        named = (labels >= 0) & (labels < len(own))
        labels[named] = order[labels[named]]
        return labels


def _read(files: list[Path]) -> list[pa.Table]:
    """One table a file, all of one schema."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise HarnessError("dataset parquet needs pyarrow: pip install 'psr-harness[hf]'") from None
    try:
        tables = [pq.read_table(file) for file in files]
        pa.concat_tables(tables)  # refuses other columns; copies nothing
    except (pa.ArrowInvalid, OSError) as error:
        raise HarnessError(f"dataset parquet: cannot read {', '.join(map(str, files))}: {error}") from None
    return tables


def _records(file: Path, table: pa.Table, column: str) -> list[Any]:
    try:
        records: list[Any] = table.column(column).to_pylist()
    except ValueError as error:
        raise HarnessError(f"dataset parquet: cannot read {column} of {file}: {error}") from None
    return records


def _get(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _groups(files: list[Path], tables: list[pa.Table], column: str) -> np.ndarray:
    """What the column says, record by record. Raises HarnessError where it is missing or says nothing."""
    import numpy as np

    found: list[Any] = []
    for file, table in zip(files, tables, strict=True):
        values = table.column(_known(column, table, file)).to_pylist()
        if empty := [row for row, value in enumerate(values) if value is None or value == ""]:
            raise HarnessError(f"dataset parquet: {column} of {file} names nobody in row {empty[0]}")
        found += values
    return np.array(found)


def _one(what: str, kind: str, asked: str | None, found: list[str], table: pa.Table, file: Path) -> str:
    """The column asked for, else the only one found."""
    if asked is not None:
        return _known(asked, table, file)
    if len(found) != 1:
        columns = ", ".join(table.column_names)
        raise HarnessError(
            f"dataset parquet: {file} has {len(found)} {kind} columns; set {what}_column to one of {columns}"
        )
    return found[0]


def _known(column: str, table: pa.Table, file: Path) -> str:
    """The column, which the file has. Raises HarnessError where it has not."""
    if column not in table.column_names:
        columns = ", ".join(table.column_names)
        raise HarnessError(f"dataset parquet: {file} has no column {column!r}; it has {columns}")
    return column


def _features(table: pa.Table) -> dict[str, Any]:
    """Column -> feature, as Hugging Face datasets writes them into the schema's metadata; {} without it."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    try:
        features = json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _labels(table: pa.Table, column: str, file: Path) -> np.ndarray:
    import numpy as np
    import pyarrow as pa

    labels = table.column(column)
    if labels.null_count or not pa.types.is_integer(labels.type):
        rows = labels.to_pylist()
        wrong = next(i for i, value in enumerate(rows) if value is None or not labels.null_count)
        raise HarnessError(
            f"dataset parquet: {column} of {file} holds {labels.type}, such as {rows[wrong]!r} in row {wrong}; "
            "it must hold integers from 0, and no nulls"
        )
    return labels.to_numpy().astype(np.int64)


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The files by what their names begin with: train.parquet and train-00000-of-00002.parquet with `train`."""
    shards: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        shards.setdefault(file.name.partition(".")[0].partition("-")[0], []).append(file)
    return shards


PLUGINS = (Parquet,)
