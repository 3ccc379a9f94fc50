"""How long Tell takes, against the way the earlier project works (reference.py), on CIFAKE.

    python code/bench.py              every row; about 15 minutes on two idle cores
    python code/bench.py --repeats 3  the median of three, of rows under two minutes
    python code/bench.py --only cold "train.py -ep 1"     rows whose names begin so; nothing is written

Both sides run on this machine, in turn, in fresh processes, with the same threads, network, pictures
and steps, reading the same folder of files (in the page cache for both); as ours keep a tenth for
validation, the reference is told which to take. Results: paper/results/bench.csv;
bench_natural.py adds its own.
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import bench_lime
import bench_natural
import checkpoints
from datasets import HOW_TO_GET_CIFAKE, find_cifake, load
from files import HERE, Parser, TellError, command_line, read_csv, save_result, whole_number

LONG = 120  # seconds of both sides; what takes longer is measured once

# What runs in the child processes, after the imports that are not counted: {row: (imports, body)}
CHILDREN = {
    "cold load": ("import datasets", "n = len(datasets.load(folder))"),
    "warm start": ("import classes, datasets, torch", """
data = datasets.load(folder).split("train")
pixels, labels = next(classes.Batches(data, 32, {"mean": [.5] * 3, "std": [.5] * 3}, seed=0).epoch(1))
n = len(labels)"""),
    "test": ("import test", "n = test.main(['-mf', 'bench', '--data', folder])['models'][0]['n']"),
}


def child(row: str, data: Path, environment: dict) -> float:
    """Seconds that a piece of ours takes in a fresh process once its modules are imported."""
    imports, body = CHILDREN[row]
    code = (f"import sys, time\nsys.path.insert(0, {str(HERE)!r})\n{imports}\nfolder = {str(data)!r}\n"
            f"start = time.perf_counter()\n{body}\nprint()\nprint(time.perf_counter() - start)")
    return float(run([sys.executable, "-c", code], environment).splitlines()[-1])


def run(command: list[str], environment: dict) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise TellError(f"{' '.join(command[:4])}: exit code {done.returncode}: {last[:300]}")
    return done.stdout


def timed(command: list[str], environment: dict) -> tuple[float, str]:
    """Seconds of a whole process, start and imports included, and what it printed."""
    start = time.perf_counter()
    output = run(command, environment)
    return time.perf_counter() - start, output


def ours(script: str, *flags: str) -> list[str]:
    return [sys.executable, str(HERE / script), *flags]


class Bench:
    """The measurements: name -> (seconds of the reference or None, seconds of ours)."""

    def __init__(self, work: Path, found: Path):
        self.work, self.found, self.cifake = work, found, folder_of(found, work)
        self.environment = {"TELL_CACHE": str(work / "cache"), "TELL_MODELS": str(work / "models"),
                            "TELL_RESULTS": str(work / "results"),
                            "PYTHONDONTWRITEBYTECODE": ""}  # modules compiled once, as Python does by default
        self.lists = {split: self.write_list(split) for split in ("train", "test", "all")}

    def write_list(self, split: str) -> Path:
        data = load(str(self.cifake))
        data = data if split == "all" else data.split(split)
        path = self.work / f"{split}.txt"
        path.write_text("".join(f"{self.cifake / name}\n" for name in data.paths))
        return path

    def reference(self, action: str, *arguments: str) -> tuple[float, dict]:
        seconds, output = timed(ours("reference.py", action, str(self.cifake), *arguments), self.environment)
        return seconds, json.loads(output.splitlines()[-1])

    def cold_load(self) -> tuple[float, float]:
        """Every one of the 120,000 files, from disk to memory (ours: to the cache as well)."""
        run(["rm", "-rf", str(self.work / "cache")], {})
        mine = child("cold load", self.cifake, self.environment)
        _, result = self.reference("train", str(self.lists["all"]), "0", str(self.work / "none.pth"))
        return result["load"], mine

    def warm_start(self, source: Path) -> tuple[None, float]:
        """Cache present, modules imported: to the first training batch."""
        child("warm start", source, self.environment)
        return None, child("warm start", source, self.environment)

    def train(self, epochs: int) -> tuple[float, float]:
        """train.py from start to saved checkpoint, cache present."""
        mine, _ = timed(ours("train.py", "-ep", str(epochs), "-mf", "bench", "--data", str(self.cifake)),
                        self.environment)
        theirs, _ = self.reference("train", str(self.lists["train"]), str(epochs),
                                   str(self.work / "reference.pth"))
        return theirs, mine

    def strong(self) -> tuple[None, float]:
        """train.py with the fast recipe, from start to saved checkpoint; its accuracy goes to `reached`."""
        flags = ("--model", "Compact", "--heads", "fake", "object", "--recipe", "fast", "-mf", "fast")
        mine, _ = timed(ours("train.py", *flags, "--data", str(self.found)), self.environment)
        run(ours("test.py", "-mf", "fast", "--data", str(self.found)), self.environment)
        metrics = next((self.work / "results").glob("metrics-fast-*-test.csv"))
        self.reached = float(read_csv(metrics)[0]["accuracy"])
        return None, mine

    def test_whole(self) -> tuple[float, float]:
        """test.py on the 20,000 test pictures, process start included, cache present."""
        mine, _ = timed(ours("test.py", "-mf", "bench", "--data", str(self.cifake)), self.environment)
        return self.reference("test", str(self.lists["test"]), str(self.work / "reference.pth"))[0], mine

    def test_inside(self, source: Path) -> tuple[float, float]:
        """The same without process start and imports."""
        child("warm start", source, self.environment)  # its cache is present
        mine = child("test", source, self.environment)
        _, result = self.reference("test", str(self.lists["test"]), str(self.work / "reference.pth"))
        return result["seconds"], mine


def measures(bench: Bench) -> dict:
    """Ours on the folder of files that the reference reads, and on the archive where that was found."""
    form = "archive" if bench.found != bench.cifake else "folder"
    return {"cold load of 120,000 files": bench.cold_load,
            "warm start to the first batch, folder": lambda: bench.warm_start(bench.cifake),
            f"warm start to the first batch, {form}": lambda: bench.warm_start(bench.found),
            "train.py -ep 1, whole process": lambda: bench.train(1),
            "train.py -ep 10, whole process": lambda: bench.train(10),
            "train.py --recipe fast, whole process": bench.strong,
            "test.py on 20,000, whole process": bench.test_whole,
            "test.py on 20,000, after imports, folder": lambda: bench.test_inside(bench.cifake),
            f"test.py on 20,000, after imports, {form}": lambda: bench.test_inside(bench.found)}


def folder_of(found: Path, work: Path) -> Path:
    """CIFAKE as a folder of files, which the reference needs; an archive is unpacked into `work`."""
    if found.is_dir():
        return found
    shutil.unpack_archive(found, work / "files")
    return next((work / "files").rglob("train")).parent


def peak_memory(bench: Bench) -> float:
    """MB of resident memory that `train.py -ep 1` needs at most, with the cache mapped."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)")
    command = ours("train.py", "-ep", "1", "--data", str(bench.cifake))
    return float(run([sys.executable, "-c", code, *command], bench.environment).splitlines()[-1])


def measure(name: str, action, repeats: int) -> dict:
    pairs = [action()]
    while len(pairs) < repeats and sum(filter(None, pairs[0])) < LONG:
        pairs.append(action())
    theirs, mine = ([pair[i] for pair in pairs] for i in (0, 1))
    reference = statistics.median(theirs) if theirs[0] is not None else None
    tell = statistics.median(mine)
    row = {"measure": name, "unit": "s", "reference": f"{reference:.2f}" if reference else "",
           "tell": f"{tell:.3f}", "ratio": f"{reference / tell:.1f}" if reference else "",
           "repeats": len(pairs)}
    print(f"{name:<42} reference {row['reference']:>7} s   Tell {row['tell']:>7} s   x {row['ratio']}",
          flush=True)
    return row


def single(name: str, unit: str, value: str) -> dict:
    print(f"{name:<42} {value} {unit}")
    return {"measure": name, "unit": unit, "reference": "", "tell": value, "ratio": "", "repeats": 1}


@contextmanager
def own_cache(path: str):
    """TELL_CACHE as it is asked for, and afterwards as it was."""
    before = os.environ.get("TELL_CACHE")
    os.environ["TELL_CACHE"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["TELL_CACHE"]
        else:
            os.environ["TELL_CACHE"] = before


def main(argv: list[str] | None = None) -> dict:
    flags = Parser(description=__doc__)
    flags.add_argument("--repeats", type=whole_number(1), default=1, help="median of so many (1)")
    flags.add_argument("--only", nargs="+", metavar="ROW",
                       help="rows that begin so (test.py needs one of train.py before); nothing is written")
    args = flags.parse_args(argv)
    found = find_cifake()
    if not found:
        raise TellError(f"the benchmark needs CIFAKE; {HOW_TO_GET_CIFAKE}")
    with tempfile.TemporaryDirectory() as work, own_cache(f"{work}/cache"):
        bench = Bench(Path(work), found)
        rows = [measure(name, action, args.repeats) for name, action in measures(bench).items()
                if not args.only or name.startswith(tuple(args.only))]
        if args.only:
            return {"rows": rows}
        rows += [single("peak resident memory of train.py", "MB", f"{peak_memory(bench):.0f}"),
                 single("test accuracy of --recipe fast", "share", f"{bench.reached:.4f}")]
        rows += bench_lime.main([])["rows"]
        bench_natural.main([])
    about = checkpoints.surroundings_as_text()
    save_result("bench", [row | about for row in rows])
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
