"""Any picture, folder, or list of files and URLs -> a verdict each, with what it rests on.

    python code/infer.py --input PICTURE.jpg --output verdicts.json
    python code/infer.py --input FOLDER --output verdicts.csv -mf base_model
    python code/infer.py --input LIST.txt --output verdicts.parquet      a path or a URL a line
    python code/infer.py --input FOLDER --output verdicts.csv --explain MAPS    and a heat map of each
                                        (of a picture seen in tiles: each tile in the colour of its score)

A row a file, in sorted order of a folder (names that start with a dot are left out) or in a list's own:
path, verdict (FAKE, REAL, cannot tell; none where the file cannot be read), ..., warnings, error; judge()
says what they mean. What cannot be read has its reason there and never stops the rest.

OUTPUT (.csv, .json, .jsonl, .parquet) appears when it is whole. Until then its rows stand in OUTPUT.partial;
after a crash or Ctrl-C the same command goes on from there. From Python: judge(network, facts, pictures).

CPU a picture (AMD EPYC, 21 November 2026): of 32 pixels 64 us here, half of them base_model's, and 39 us in
the workers; of a megapixel 2.8 ms here and 6 ms in the workers. Memory: 572 MB after 125 files,
at most 579 MB over 100,000.
"""
import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice

import numpy as np
from PIL import Image
from torch import nn
from tqdm import tqdm

import checkpoints
from cache import SIZE
from calibration import calibrated, verdicts
from classes import pick_device
from datasets import SMALL
from decode import DecodeError, decode
from files import Parser, TellError, atomic, command_line, shown, user_path, whole_number
from gather import is_url, names_of, read, reason, root_of
from natural import in_workers, own_cores
from overlays import SHEET, SKETCH, overlay, sheet, sketch
from rows import WRITERS, Rows, partial_of, printable
from scoring import BATCH_SIZE, sigmoid
from tiles import LIMIT, WAYS, Seen, in_words, means, own_way, record, see, size_of, view_logits

COLUMNS = {"path": str, "verdict": str, "probability": float, "threshold": float, "margin": float,
           "logit": float, "width": int, "height": int, "treatment": str, "views": int, "share": float,
           "warnings": list, "error": str}
SMOKE = 500    # files of a smoke run
SKETCHED = 25  # files at a time where each has a picture to draw on
FETCHERS = 8   # URLs at once, in each worker
HEAVY = 70     # JPEG quality; 70 costs base_model 1 point of accuracy, 60 costs 6 (2,000 of CIFAKE)
GREY_SUM = 3688  # of libjpeg's luminance table at quality 50
CIFAKE_QUALITY = 75
BLANK = "no detail to judge by: the picture, or every tile of it, is flat"
SILENT = ("this network always says \"cannot tell\": on sources that it had not seen it was wrong more often "
          "than its calibration promises")
METHODS = ("integrated gradients", "lime, mean colour", "lime", "shap", "hirescam", "occlusion",
           "grad-cam")  # of explain
PREFERRED = ("sturdy", "compact", "base_model")


# --- pictures -> verdicts ----------------------------------------------------------------------

def judge(network: nn.Module, facts: dict, pictures: list[np.ndarray], names: list[str] | None = None,
          way: str | None = None, files: list[bytes] | None = None) -> list[dict]:
    """Verdicts on pictures, RGB uint8 (h, w, 3) of any sizes; network, facts as checkpoints.load gives them.

    files: the pictures' files where they come from such, to warn of how they were saved.
    way: how a picture of another size than the network's is seen, one of tiles.WAYS (the network's own:
    tiles.own_way). A dictionary each, after "path" where there are names:
      verdict      "FAKE", "REAL" or "cannot tell" (calibration.verdicts); without calibration never the
                   latter, except where there is no detail to see (BLANK)
      probability  calibrated P(fake) at even odds; where the checkpoint has no calibration, sigmoid(logit)
      threshold    the checkpoint's, on the scale of `probability`
      margin       probability - threshold, so positive on the side of FAKE
      logit        of FAKE, as the network has it: the mean over its views
      width, height   of the picture, in pixels
      treatment    what was done to it ("whole", "64 of 192 tiles, 3 flat", "squashed to 32x32", ...)
      views        how many tiles voted; 1 where the picture was seen as a whole
      share        the share of them over the threshold
      warnings     list of str, why the verdict may be worth less
    """
    eye = Eye.of(network, facts, way)
    looks = [eye.look(*one) for one in zip(pictures, files or [b""] * len(pictures), strict=True)]
    if not looks:
        return []
    pixels = np.concatenate([seen.pixels for seen, _ in looks])
    found = decide(network, facts, pixels, [row for _, row in looks])
    return found if names is None else [{"path": name} | row for name, row in zip(names, found, strict=True)]


@dataclass(frozen=True)
class Eye:
    """How a network sees pictures and what to warn of: all that a worker process has to know of it."""
    size: int
    way: str
    limit: int
    trained_on: str  # its data, where it knows pictures of 32 pixels only
    rule: dict       # of its calibration, empty where it has none
    elsewhere: str   # what to say of its verdicts on pictures of another size than its own

    @classmethod
    def of(cls, network: nn.Module, facts: dict, way: str | None = None, limit: int = LIMIT,
           elsewhere: str = "") -> "Eye":
        small = not hasattr(network, "size") or facts["data"] in SMALL
        return cls(size_of(network), way or own_way(network), limit, facts["data"] if small else "",
                   facts.get("calibration", {}), elsewhere)

    def look(self, picture: np.ndarray, file: bytes = b"") -> tuple[Seen, dict]:
        """What the network gets of a picture, and the part of its row that is known without the network."""
        seen = see(picture, self.size, self.way, self.limit)
        warnings = [*self.of_training(seen, file), *self.of_view(seen)]
        return seen, {"width": seen.width, "height": seen.height, "treatment": seen.treatment,
                      "views": len(seen.pixels), "warnings": warnings}

    def of_training(self, seen: Seen, file: bytes) -> Iterator[str]:
        """What sets a picture and its file (empty: unknown) apart from those that the network learnt from."""
        if not self.rule:
            yield "not calibrated"
        elif self.rule["real_bound"] == np.inf and self.rule["fake_bound"] == -np.inf:
            yield SILENT
        if self.trained_on == "sample":
            yield "trained on the built-in sample: for smoke runs, not for conclusions"
        quality = jpeg_quality(file)
        if self.trained_on and (seen.height, seen.width) != (SIZE, SIZE):
            yield f"trained on pictures of {SIZE}x{SIZE} pixels only ({self.trained_on})"
        elif self.trained_on.startswith("cifake") and file and abs((quality or 0) - CIFAKE_QUALITY) > 10:
            yield f"trained on JPEG files of quality {CIFAKE_QUALITY} only ({self.trained_on})"
        if quality is not None and quality < HEAVY:
            yield f"heavily compressed: JPEG quality {quality:.0f}"

    def of_view(self, seen: Seen) -> Iterator[str]:
        """What the network does not get to see of a picture."""
        if seen.blank:
            yield BLANK
        if seen.treatment == "whole":
            return
        if self.elsewhere:
            yield self.elsewhere
        if min(seen.height, seen.width) < self.size:
            yield f"small: below the {self.size}x{self.size} pixels that the network takes"
        if len(seen.boxes) > 1 and seen.looked_at < 0.5:
            yield f"only {percent(seen.looked_at)} of the picture was looked at"
        if self.way == "fit" and max(seen.height, seen.width) > 2 * min(seen.height, seen.width):
            yield "long: less than half of it was seen"


def percent(share: float) -> str:
    """Two digits: "12 %", "0.14 %"."""
    return f"{100 * share:.2g} %"


def decide(network: nn.Module, facts: dict, pixels: np.ndarray, looks: list[dict]) -> list[dict]:
    """judge()'s rows of pictures whose views, uint8 (k, s, s, 3), follow one another as `looks` counts."""
    counts, cut = [row["views"] for row in looks], facts["threshold"]
    found = view_logits(network, pixels)
    if not np.isfinite(found).all():
        raise TellError("the network gives logits that are not finite; train it anew")
    logits, shares = means(found, counts), means(sigmoid(found) >= cut, counts)
    said, scores, threshold = said_of(logits, cut, facts.get("calibration"))
    columns = zip(looks, said.tolist(), scores.tolist(), logits.tolist(), shares.tolist(), strict=True)
    return [{"verdict": "cannot tell" if BLANK in row["warnings"] else verdict,
             "probability": round(p, 6), "threshold": round(threshold, 6), "margin": round(p - threshold, 6),
             "logit": float(f"{z:.9g}"), "share": round(share, 4), **row}
            for row, verdict, p, z, share in columns]


def said_of(logits: np.ndarray, cut: float, rule: dict | None) -> tuple[np.ndarray, np.ndarray, float]:
    """Verdicts str (n,), P(fake) float64 (n,), and the threshold `cut` of sigmoid(logits) on their scale."""
    if not rule:
        scores = sigmoid(logits)
        return np.where(scores >= cut, "FAKE", "REAL"), scores, cut
    with np.errstate(divide="ignore"):
        cut = np.log(cut) - np.log1p(-min(cut, 1.0))  # infinite at 0 and at 1
    return verdicts(logits, rule), calibrated(logits, rule), float(calibrated(np.array([cut]), rule)[0])


# --- files -> what a network sees, in worker processes -----------------------------------------

def jpeg_quality(data: bytes) -> float | None:
    """The IJG quality (jcparam.c) nearest to a JPEG's luminance table; None for any other file."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while data[at:at + 1] == b"\xff" and data[at + 1:at + 2] not in (b"\xdb", b"\xda", b""):
        at += 2 + int.from_bytes(data[at + 2:at + 4])
    table = data[at + 5:at + 69]
    if data[at:at + 2] != b"\xff\xdb" or len(table) < 64 or data[at + 4] >> 4:
        return None
    percent = max(100 * sum(table) / GREY_SUM, 1)
    return 100 - percent / 2 if percent <= 100 else 5000 / percent


@dataclass(frozen=True)
class Portion:
    """Some files as a worker hands them over: a row each; views and a sketch of those that are pictures."""
    rows: list[dict]    # with "error" where it is no picture
    pixels: np.ndarray  # uint8 (k, s, s, 3)
    sketches: list[tuple[np.ndarray, np.ndarray]]  # as overlay() takes them, where maps are wanted


@dataclass(frozen=True)
class Reader:
    """reader[names] -> Portion."""
    root: str
    eye: Eye
    sketching: bool

    def __getitem__(self, names: list[str]) -> Portion:
        if any(map(is_url, names)):
            with ThreadPoolExecutor(FETCHERS) as pool:
                found = list(pool.map(self.one, names))
        else:
            found = [self.one(name) for name in names]
        readable = [one for one in found if one[1] is not None]
        empty = np.empty((0, self.eye.size, self.eye.size, 3), np.uint8)
        pixels = np.concatenate([empty, *(views for _, views, _ in readable)])
        return Portion([row for row, *_ in found], pixels, [drawn for *_, drawn in readable if drawn])

    def one(self, name: str) -> tuple[dict, np.ndarray | None, tuple | None]:
        path = {"path": printable(name)}
        try:
            data = read(self.root, name)
            picture, note = decode(data)
        except (DecodeError, OSError, ValueError, HTTPException) as error:
            return path | {"error": reason(error)}, None, None
        seen, row = self.eye.look(picture, data)
        if note:
            row["treatment"] = f"{note}; {row['treatment']}"
        side = SHEET if len(seen.boxes) > 1 else SKETCH
        return path | row, seen.pixels, sketch(picture, seen.boxes, side) if self.sketching else None


# --- a run over many files ---------------------------------------------------------------------

class Run:
    """One network over the files of one input."""

    def __init__(self, args):
        self.args, self.root = args, root_of(args.input)
        args.mf = args.mf or preferred()
        self.output = output = user_path(args.output)
        if output.suffix not in WRITERS:
            raise TellError(f"--output {args.output}: ends in none of {', '.join(WRITERS)}")
        self.maps = user_path(args.explain) if args.explain else None
        self.own = tuple(f"{path}/" for path in (output, partial_of(output), self.maps) if path)
        self.network, self.facts = checkpoints.load(args.mf, pick_device(args.device))
        self.total = sum(1 for _ in self.names())
        if not self.total:
            raise TellError(f"{args.input}: no files there")
        self.busy = self.drawing = 0.0  # seconds that judging and heat maps took

    def names(self) -> Iterator[str]:
        return islice(names_of(self.args.input, self.own), SMOKE if self.args.smoke else None)

    def key(self) -> dict:
        """What must be the same for an interrupted run to be gone on with."""
        model = hashlib.sha256(checkpoints.path_of(self.args.mf).read_bytes()).hexdigest()
        source = self.args.input if is_url(self.args.input) else str(user_path(self.args.input))
        return {"input": source, "files": self.total, "model": model, "way": self.args.way,
                "tiles": self.args.tiles, "explain": f"{self.args.method}: {self.maps}" if self.maps else ""}

    def stream(self, rows: Rows) -> int:
        """Judge what is left, a portion at a time; returns how many files that were."""
        size = SKETCHED if self.maps else BATCH_SIZE
        done = first = rows.resume(map(printable, self.names()), self.total, size)
        if first:
            print(f"{first:,} of {self.total:,} rows are there from an interrupted run")
        way, model = self.args.way or own_way(self.network), checkpoints.model_name(self.args.mf)
        eye = Eye.of(self.network, self.facts, way, self.args.tiles, in_words(record(model, way)))
        jobs = portions(islice(self.names(), first, self.total), size)
        with tqdm(total=self.total, initial=first, unit=" files", disable=None, leave=False) as bar:
            for portion in in_workers(Reader(str(self.root), eye, bool(self.maps)), jobs, self.args.workers):
                rows.add(self.judged(portion, done))
                done += len(portion.rows)
                bar.update(len(portion.rows))
        return done - first

    def judged(self, portion: Portion, first: int) -> list[dict]:
        """The rows of a portion, in its order; first: the number of the first in the whole run."""
        start, looks = time.perf_counter(), [row for row in portion.rows if "error" not in row]
        found = iter(decide(self.network, self.facts, portion.pixels, looks) if looks else ())
        self.busy += time.perf_counter() - start
        if self.maps and looks:
            start = time.perf_counter()
            self.explain(portion, first)
            self.drawing += time.perf_counter() - start
        return [row if "error" in row else {"path": row["path"]} | next(found) for row in portion.rows]

    def explain(self, portion: Portion, first: int) -> None:
        """A heat map of each picture, NUMBER-NAME.png, NUMBER being its row's, from 0."""
        numbers = [i for i, row in enumerate(portion.rows, first) if "error" not in row]
        names = [re.sub(r"[^\w.-]+", "_", row["path"])[-80:] for row in portion.rows if "error" not in row]
        for number, name, drawn in zip(numbers, names, self.drawn(portion), strict=True):
            with atomic(self.maps / f"{number:06d}-{name}.png") as file:
                drawn.save(file, "PNG")

    def drawn(self, portion: Portion) -> Iterator[Image.Image]:
        """The map of one view by --method; of several tiles their own scores, since maps inside tiles of a
        larger picture are specks that nobody can read."""
        views = np.split(portion.pixels, np.cumsum([len(boxes) for _, boxes in portion.sketches])[:-1])
        whole = [view for view in views if len(view) == 1]
        maps = iter(self.maps_of(np.concatenate(whole)) if whole else ())
        for (picture, boxes), view in zip(portion.sketches, views, strict=True):
            yield (overlay(picture, boxes, next(maps)[None]) if len(view) == 1
                   else sheet(picture, boxes, view_logits(self.network, view)))

    def maps_of(self, pixels: np.ndarray) -> np.ndarray:
        """Maps (n, s, s) of views uint8 (n, s, s, 3) by --method."""
        import explain  # seconds, with its packages
        return explain.METHODS[self.args.method](self.network, pixels.transpose(0, 3, 1, 2))


def portions(names: Iterator[str], size: int) -> Iterator[list[str]]:
    while portion := list(islice(names, size)):
        yield portion


def report(run: Run, counts: Counter, judged: int, seconds: float) -> dict:
    """Print how it went; TellError where not one file could be read."""
    unreadable = counts.pop(None, 0)
    numbers = {verdict: counts[verdict] for verdict in ("FAKE", "REAL", "cannot tell")}
    print(f"{run.total:,} files: " + ", ".join(f"{n:,} {verdict}" for verdict, n in numbers.items())
          + f", {unreadable:,} unreadable (column `error` says why)")
    maps = f", heat maps {run.drawing:.1f} s" if run.maps else ""
    print(f"{judged:,} in {seconds:.1f} s, {judged / seconds:,.0f} a second; judging took "
          f"{run.busy / seconds:.0%} of the time{maps}\nverdicts: {shown(run.output)}")
    if unreadable == run.total:
        raise TellError(f"{run.args.input}: none of its {run.total:,} files is a readable picture; "
                        f"{shown(run.output)} says why")
    return {"files": run.total, **numbers, "unreadable": unreadable, "seconds": seconds, "busy": run.busy,
            "drawing": run.drawing, "judged": judged, "output": str(run.output)}


def preferred() -> str:
    """The strongest network here of those whose limits were measured most widely."""
    return next((name for name in PREFERRED if checkpoints.path_of(name).exists()), PREFERRED[-1])


def parser() -> Parser:
    flags = Parser(description=__doc__)
    add = flags.add_argument
    add("--input", required=True, metavar="WHAT", help="a picture, a folder, a .txt of paths or URLs, a URL")
    add("--output", required=True, metavar="FILE", help="what to write: .csv, .json, .jsonl or .parquet")
    add("-mf", "--modelfile", dest="mf", metavar="NAME", help=f"checkpoint ({', else '.join(PREFERRED)})")
    add("--way", choices=list(WAYS), help="how to see pictures of another size than the network's (tiles for "
        "networks of 32 pixels, fit for others; tiles.py --help says what they are)")
    add("--tiles", type=whole_number(1, 100_000), default=LIMIT, metavar="N", help=f"at most ({LIMIT})")
    add("--explain", metavar="FOLDER", help="write a heat map of each picture there")
    add("--method", choices=METHODS, default=METHODS[0], help=f"of the heat maps ({METHODS[0]})")
    flags.add_device()
    add("--workers", type=whole_number(0, 256), default=own_cores(), metavar="N",
        help="processes that decode (one a core)")
    add("--smoke", action="store_true", help=f"the first {SMOKE} files only")
    return flags


def main(argv: list[str] | None = None) -> dict:
    run = Run(parser().parse_args(argv))
    rows, start = Rows(run.output, COLUMNS, run.key()), time.perf_counter()
    try:
        judged = run.stream(rows)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TellError("a decoding process was killed, perhaps for want of memory; free some, and the same "
                        "command goes on") from error
    return report(run, rows.finish("verdict"), judged, time.perf_counter() - start)


if __name__ == "__main__":
    command_line(main)
