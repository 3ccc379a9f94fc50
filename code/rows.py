"""Rows of a long run: kept as they come, finished as CSV, JSON, JSON lines or Parquet.

While it runs, rows stand as JSON lines in OUTPUT.partial, whose first line says of which run they are. A
killed run is gone on with after its last whole portion; OUTPUT appears at the end, whole or not at all.
"""
import csv
import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path

from files import TellError, atomic, make_folder, remove

GROUP = 10_000  # rows of a Parquet row group


class Rows:
    """Rows, dictionaries by `columns` {name: type}, on their way to `output`; a list's items are strings.

    run: what has to be the same for an interrupted run to be gone on with. TellError where OUTPUT.partial
    is that of another run, or is being written by one.
    """

    def __init__(self, output: Path, columns: dict[str, type], run: dict):
        self.output, self.columns = output, columns
        self.partial = partial_of(output)
        make_folder(output.parent, "--output")
        try:
            self.file = open(self.partial, "a+b")  # noqa: SIM115 (until finish)
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would inherit
        except BlockingIOError as error:
            raise TellError(f"{self.partial}: another run is writing it; let it end, or name another "
                            "--output") from error
        except OSError as error:
            raise unwritten(self.partial, error) from error
        self.begin(json.dumps(run).encode() + b"\n")

    def begin(self, header: bytes) -> None:
        self.file.seek(0)
        found = self.file.readline()
        if not found.endswith(b"\n"):  # new, or killed at once
            self.file.truncate(0)
            self.write(header)
        elif found != header:
            raise TellError(f"{self.partial}: of an interrupted run with another model, other flags or "
                            "files; repeat that command to finish it, or delete the file")

    def resume(self, paths: Iterable[str], total: int, portion: int) -> int:
        """How many of the rows of `paths` are there, in whole portions; what comes after them is cut off."""
        done = whole = 0
        self.file.seek(0)
        end = place = len(self.file.readline())
        for line, path in zip(self.file, paths, strict=False):
            if not line.endswith(b"\n"):
                break
            if json.loads(line)["path"] != path:
                raise TellError(f"{self.partial}: the files changed after that run was interrupted (at "
                                f"{path}); delete it to begin anew")
            done, place = done + 1, place + len(line)
            if done % portion == 0 or done == total:
                whole, end = done, place
        self.file.truncate(end)
        return whole

    def add(self, rows: list[dict]) -> None:
        self.write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
            self.file.flush()
        except OSError as error:
            raise unwritten(self.partial, error) from error

    def finish(self, counted: str) -> Counter:
        """Write the output and delete its partial file; how many rows have which value of one column."""
        counts, (write, mode) = Counter(), WRITERS[self.output.suffix]
        with atomic(self.output, mode) as file:
            write(file, self.read(counted, counts), self.columns)
        remove(self.partial)
        self.file.close()
        return counts

    def read(self, counted: str, counts: Counter) -> Iterator[dict]:
        self.file.seek(0)
        self.file.readline()
        empty = dict.fromkeys(self.columns)
        for line in self.file:
            row = empty | json.loads(line.decode())  # of bytes, json would guess the encoding each time
            counts[row[counted]] += 1
            yield row


def printable(name: str) -> str:
    """A path as text, whatever bytes it is made of."""
    return name.encode(errors="backslashreplace").decode()


def partial_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def unwritten(path: Path, error: OSError) -> TellError:
    return TellError(f"{path}: cannot be written ({error.strerror or error}); set that right, and the same "
                     "command goes on")


# --- the formats -------------------------------------------------------------------------------

def as_csv(file, rows: Iterator[dict], columns: dict[str, type]) -> None:
    """A list is joined by "; "."""
    writer, pick = csv.writer(file, lineterminator="\n"), itemgetter(*columns)
    lists = [name for name, kind in columns.items() if kind is list]
    writer.writerow(columns)
    for row in rows:
        for name in lists:
            row[name] = "; ".join(row[name] or ())
        writer.writerow(pick(row))


def as_json(file, rows: Iterator[dict], columns: dict[str, type]) -> None:
    before = "[\n"
    for row in rows:
        file.write(before + json.dumps(row))
        before = ",\n"
    file.write("\n]\n")


def as_lines(file, rows: Iterator[dict], columns: dict[str, type]) -> None:
    file.writelines(json.dumps(row) + "\n" for row in rows)


def as_parquet(file, rows: Iterator[dict], columns: dict[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    kinds = {float: pa.float64(), int: pa.int64(), str: pa.string(), list: pa.list_(pa.string())}
    schema = pa.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


WRITERS = {".csv": (as_csv, "w"), ".json": (as_json, "w"), ".jsonl": (as_lines, "w"),
           ".parquet": (as_parquet, "wb")}
