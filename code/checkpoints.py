"""Checkpoints that describe themselves: save, load, and import of the course project's files.

A checkpoint is one dictionary of plain values and tensors (FORMAT names its layout), written whole
or not at all, read with weights_only=True, so that a file can hold numbers but never run code.
"""
import argparse
import hashlib
import io
import math
import os
import pickle
import platform
import re
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from classes import NETWORKS, build
from files import HERE, TellError, atomic, folder, user_path

FORMAT = "tell-checkpoint-1"
LABELS = "fake = 1, real = 0; sigmoid(logit of head 'fake') is P(fake)"
COURSE_KEYS = {"conv1.weight", "conv2.weight", "fc1.weight", "fc3.weight", "fc3.bias"}
NEEDED = {"architecture", "arguments", "heads", "normalisation", "threshold", "threshold_source", "data",
          "seed", "weights"}
LARGE = 2_000_000  # parameters


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_counts(value) -> bool:
    """{name: whole number}."""
    return isinstance(value, dict) and {*map(type, value)} <= {str} and {*map(type, value.values())} <= {int}


def is_normalisation(value) -> bool:
    """{"mean", "std"}, three numbers each, those of std above 0."""
    if not isinstance(value, dict) or value.keys() != {"mean", "std"}:
        return False
    rows = value.values()
    three = all(isinstance(row, list | tuple) and len(row) == 3 and all(map(is_number, row)) for row in rows)
    return three and min(value["std"]) > 0


# What others rely on without a look: {fact: (whether a value is one, in words)}
KINDS = {
    "architecture": (lambda value: isinstance(value, str), "a name"),
    "arguments": (lambda value: isinstance(value, dict), "a dictionary"),
    "heads": (is_counts, "names with their columns"),
    "normalisation": (is_normalisation, "mean and std, three numbers each"),
    "threshold": (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "threshold_source": (lambda value: isinstance(value, str), "text"),
    "data": (lambda value: isinstance(value, str), "text"),
    "pictures": (lambda value: is_counts(value) and "train" in value, "numbers of train and val"),
    "calibration": (lambda value: isinstance(value, dict), "a dictionary"),
    "recipe": (lambda value: isinstance(value, dict), "a dictionary"),
}


def path_of(name: str) -> Path:
    """NAME -> models/NAME.pth; NAME.pth of a file that exists or with a folder is taken as it is."""
    known = user_path(name)  # refuses what no file can be called
    given = known if name.startswith("~") else Path(name)
    if given.suffix == ".pth" and (given.parent != Path(".") or given.exists()):
        return given.resolve()
    return folder("models") / f"{name.removesuffix('.pth')}.pth"


def model_name(name: str) -> str:
    """What a checkpoint is called in results: its file's name, and for one from elsewhere a mark of where."""
    path = path_of(name)
    if path.parent == folder("models"):
        return path.stem
    return f"{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"


def name_to_save(text: str) -> str:
    """An argparse type: a plain file name, with or without .pth."""
    name = text.removesuffix(".pth")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain file name")
    return name


def pack(network: nn.Module, architecture: str, arguments: dict, **facts) -> dict:
    """Everything that loading `network` again needs, with `facts` about how it came to be."""
    return {"format": FORMAT, "architecture": architecture, "arguments": arguments,
            "heads": dict(network.heads), "normalisation": network.normalisation,
            "labels": LABELS, **facts, "weights": weights_of(network)}


def weights_of(network: nn.Module) -> dict:
    """Its weights on the CPU; of a LARGE network convolutions in half precision, for files half as large."""
    weights = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    if sum(value.numel() for value in weights.values()) < LARGE:
        return weights
    return {key: value.half() if value.ndim == 4 else value for key, value in weights.items()}


def write(path: Path, content: dict) -> None:
    """Save a dictionary with torch, atomically: a full disk leaves the old file as it was."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())


def read(path: Path) -> dict:
    """A dictionary that `write` saved; one clear line for whatever else the file may be."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.pth"))) or "none"
        raise TellError(f"{path}: no such checkpoint; in that folder: {known}")
    try:
        with open(path, "rb") as file:
            start = file.read(40)
    except OSError as error:
        raise TellError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"version https://git-lfs"):
        raise TellError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, all of which mean this
        raise TellError(f"{path}: not a checkpoint that can be loaded safely: {why_not(error)}") from error
    if not isinstance(content, dict):
        raise TellError(f"{path}: holds a {type(content).__name__}, not a checkpoint of Tell")
    return content


def why_not(error: Exception) -> str:
    """What torch.load's refusal says about the file; its own words are of its flags."""
    if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
        return "it holds code, not only numbers"
    return "damaged, cut short, or not written by torch.save"


def load(name: str, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """Network in evaluation mode, and what its checkpoint says about it.

    `name` as in path_of. Reads our own checkpoints of any architecture and the course project's
    bare state dictionaries. Raises TellError for everything else.
    """
    path = path_of(name)
    content = read(path)
    if content.keys() >= COURSE_KEYS:
        content = from_course_project(path, content)
    if content.get("format") != FORMAT:
        raise TellError(f"{path}: not a checkpoint of Tell (it holds: "
                        f"{', '.join(map(str, list(content)[:4])) or 'nothing'})")
    missing = sorted(NEEDED - content.keys())
    if missing:
        raise TellError(f"{path}: an incomplete checkpoint, without {', '.join(missing)}")
    require_kinds(path, content)
    if content["architecture"] not in NETWORKS:
        raise TellError(f"{path}: made for the network {content['architecture']!r}, which this "
                        f"version does not have ({', '.join(NETWORKS)})")
    try:
        network = build(content["architecture"], **content["arguments"])
        network.load_state_dict(content.pop("weights"), strict=True)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise TellError(f"{path}: its weights do not fit {content['architecture']} "
                        f"({str(error).strip().splitlines()[-1].strip()[:120]})") from error
    require_sound(path, network, content["heads"])
    network.normalisation = content["normalisation"]
    return network.to(device).eval(), content


def require_kinds(path: Path, content: dict) -> None:
    """TellError for the first fact that is not of its kind."""
    for key, (fits, words) in KINDS.items():
        if key in content and not fits(content[key]):
            found = " ".join(repr(content[key]).split())[:60]
            raise TellError(f"{path}: a malformed checkpoint: its {key} is {found}, not {words}")


def require_sound(path: Path, network: nn.Module, heads: dict) -> None:
    """TellError unless the weights just loaded are finite and `heads` are the network's own."""
    if heads != network.heads:
        raise TellError(f"{path}: its heads are {str(heads)[:60]}, those of its network {network.heads}")
    odd = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    if odd:
        raise TellError(f"{path}: {len(odd)} of its weights are not finite, the first: {odd[0]}; a run that "
                        "diverged, or a damaged file")


def trained_on(facts: dict) -> str:
    """The set that a checkpoint was trained on, as it is printed: "cifake", of a smoke run with a mark."""
    if not (facts.get("smoke") and "pictures" in facts):
        return facts["data"]
    return f"{facts['data']} (smoke run: {facts['pictures']['train']:,} pictures)"


def add(name: str, **facts) -> Path:
    """Keep more facts in the checkpoint `name`, everything else as it was; returns its path."""
    path = path_of(name)
    content = read(path)
    if content.get("format") != FORMAT:
        raise TellError(f"{path}: not a checkpoint of Tell, so nothing can be added to it")
    write(path, content | facts)
    return path


def from_course_project(path: Path, weights: dict) -> dict:
    """A bare state dictionary of the course project as a checkpoint of ours.

    Its networks give P(real), so the last layer is negated: sigmoid(-z) = 1 - sigmoid(z). It stores
    the attention layer always; that it was used shows in its BatchNorm having counted batches.
    TellError for what is no tensor.
    """
    odd = [key for key, value in weights.items() if not (isinstance(key, str) and torch.is_tensor(value))]
    if odd:
        raise TellError(f"{path}: a malformed checkpoint: its {odd[0]!r} is a "
                        f"{type(weights[odd[0]]).__name__}, no tensor")
    weights = dict(weights)
    attention = bool(weights.get("attend.bn.num_batches_tracked", torch.zeros(1)).any())
    if not attention:
        weights = {key: value for key, value in weights.items() if not key.startswith("attend.")}
    for key in ("fc3.weight", "fc3.bias"):
        weights[key] = -1 * weights[key]  # of bools, "-" is an error
    return {"format": FORMAT, "architecture": "CIFAKE_CNN", "arguments": {"attn": attention},
            "heads": {"fake": 1}, "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
            "labels": LABELS, "threshold": 0.5, "data": "not recorded", "seed": None,
            "threshold_source": "default: the course project's file has none", "weights": weights}


# --- where and how a run took place ------------------------------------------------------------

def surroundings() -> dict:
    """What a number depends on besides code and data: versions, machine, command, commit, date."""
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "command": command(),
            "commit": commit(), "versions": versions(), "machine": machine()}


def surroundings_as_text() -> dict[str, str]:
    """surroundings() as columns of a CSV file."""
    found = surroundings()
    return found | {"versions": " ".join(f"{key} {value}" for key, value in found["versions"].items())}


def command() -> str:
    script = HERE / Path(sys.argv[0]).name
    return " ".join(["python", f"code/{script.name}", *sys.argv[1:]]) if script.is_file() else "from Python"


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def machine() -> str:
    """Processor, cores and torch's threads (bits may depend on the latter), and the GPU if any."""
    parts = [processor(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def commit() -> str:
    """The commit of this code, with "+" where a file that this process loaded differs; "none" outside git."""
    loaded = [file for module in tuple(sys.modules.values())
              if (file := getattr(module, "__file__", None)) and os.path.dirname(file) == str(HERE)]
    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + "+" * bool(git("status", "--porcelain", "--", *loaded))
    except (OSError, subprocess.CalledProcessError):
        return "none"


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True)
    return done.stdout.strip()
