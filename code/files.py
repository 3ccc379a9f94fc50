"""Where files lie, how they are written, and how a command line says no.

Folders come from config.json beside this file (relative to it), so that every command works from
any folder. TELL_DATA, TELL_CACHE, TELL_MODELS, TELL_RESULTS and TELL_FIGURES override one each.
"""
import argparse
import atexit
import csv
import gc
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent


class TellError(Exception):
    """A mistake in the input: one line that says what, where and what to do."""


def config() -> dict:
    return json.loads((HERE / "config.json").read_text())


def folder(name: str) -> Path:
    """Absolute path of a folder of config.json ("data", "cache", "models", ...)."""
    override = os.environ.get(f"TELL_{name.upper()}")
    if override:
        return Path(override).expanduser().resolve()
    return (HERE / config()["folders"][name]).resolve()


def shown(path: Path | str) -> str:
    """A path as it is printed: from the repository or the overriding setting on, where it lies inside."""
    path = Path(path)
    for name in config()["folders"]:
        if f"TELL_{name.upper()}" in os.environ and path.is_relative_to(folder(name)):
            return str(Path(f"$TELL_{name.upper()}") / path.relative_to(folder(name)))
    root = HERE.parent
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def user_path(text: str) -> Path:
    """What a user typed as a path, made absolute; TellError for what can be none."""
    if not text:
        raise TellError("an empty name is no path; is a variable of the shell unset?")
    try:
        path = Path(text).expanduser().resolve()
        path.exists()
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise TellError(f"{text[:60]!r} cannot be a path ({error})"[:200]) from error


def smoke() -> bool:
    """TELL_SMOKE=1 asks notebooks to take seconds."""
    return os.environ.get("TELL_SMOKE") == "1"


def make_folder(path: Path, setting: str) -> Path:
    """Create `path`; where that is impossible, say which setting moves it elsewhere."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TellError(f"{path}: cannot be created ({error.strerror}); "
                        f"set {setting} to a folder that can be written") from error
    return path


def require_writable(path: Path, setting: str) -> None:
    """TellError where nothing can be written to the folder `path`, whether it is there yet or not."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        raise TellError(f"{path}: cannot be written ({error.strerror}); "
                        f"set {setting} to a folder that can be") from error


@contextmanager
def atomic(path: Path, mode: str = "wb"):
    """Open a file that appears under its name only when it is whole.

    A crash, a kill or a full disk leaves the former file as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise TellError(f"{path}: not written ({error.strerror or error}); "
                        "what stood there before is untouched") from error
    finally:
        remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Temporary files that killed processes left beside `path`."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            remove(leftover)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write dictionaries of equal keys as CSV, atomically."""
    if not rows:
        raise TellError(f"{path}: nothing to write; there was too little data for a single row")
    with atomic(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def save_result(stem: str, rows: list[dict]) -> Path:
    """Write rows to STEM.csv in the folder of results, and say so."""
    path = folder("results") / f"{stem}.csv"
    write_csv(path, rows)
    print(f"written: {shown(path)}")
    return path


def save_models(stem: str, rows: list[dict]) -> Path:
    """save_result, beside the rows of the models in STEM.csv that `rows` does not measure anew."""
    path, measured = folder("results") / f"{stem}.csv", {row["model"] for row in rows}
    others = [row for row in (read_csv(path) if path.exists() else ())
              if row["model"] not in measured and row.keys() == rows[0].keys()]
    return save_result(stem, others + rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, every value as its text; TellError where there is no such file."""
    if not path.exists():
        raise TellError(f"{shown(path)}: not there; the lab log and --help say which command writes it")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TellError(f"{shown(path)}: no CSV file in UTF-8 ({error})") from error


def remove(path: Path) -> None:
    """Delete a file if it can be deleted: cleaning up must not hide the error before it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


class Parser(argparse.ArgumentParser):
    """Strict: no abbreviations; a mistake is one line and exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")

    def add_data(self) -> None:
        self.add_argument("--data", default="auto", metavar="SET", help="cifake, sample, or a folder or "
                          "archive; auto: CIFAKE where it is, else the sample")

    def add_device(self) -> None:
        self.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    def add_models(self, default: list[str] | None, what: str) -> None:
        """-mf with one checkpoint or more; `what` the help says of the default."""
        self.add_argument("-mf", "--modelfile", dest="mf", nargs="+", default=default, metavar="NAME",
                          help=f"checkpoints ({what})")


def whole_number(low: int, high: int = 2**31 - 1):
    """An argparse type: a whole number in [low, high]."""
    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdecimal() else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}"
                                              + (f" and at most {high}" if high < 2**31 - 1 else ""))
        return value
    return parse


def number_between(low: float, high: float):
    """An argparse type: a finite number in [low, high]."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value
    return parse


def keep_all() -> None:
    """At exit Python looks for garbage among all objects: 0.4 s for torch's, for nothing."""
    if "triton" not in sys.modules:  # which prints a page of complaints when its objects are kept
        gc.freeze()


def command_line(main) -> None:
    """Run main(); a TellError becomes one line on stderr and exit code 2."""
    atexit.register(keep_all)
    # A log shows each epoch as it ends; a file name that is no text is printed all the same.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        main()
    except TellError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
