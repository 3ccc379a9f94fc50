"""Pictures a second at natural size and in bulk, and whether the network or what feeds it is the limit.

    python code/bench_natural.py     some minutes; paper/results/bench-natural.csv

Training on 1-megapixel JPEGs at 224 pixels: the loader by itself, EfficientNet-B0's steps by themselves, and
both together, each over EPOCHS epochs after one of both that is not counted. infer.py: whole runs over
CIFAKE's test files and over 1-megapixel JPEGs, and the share of the time that the network took. The
megapixels are photographs that come with scikit-image.
"""
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

import checkpoints
import infer
from classes import build, feed
from datasets import load
from devices import open_device
from files import Parser, atomic, command_line, save_result
from fitting import Run, train_epoch
from natural import open_pictures
from sample import PHOTOS, photo
from train import RECIPES

PICTURES, SIDE, BATCH = 128, 1024, 16
EPOCHS = 3  # that each part is timed for


def write_megapixels(target: Path) -> Path:
    """PICTURES JPEGs of SIDE x SIDE pixels in target/train/{real,fake}, each another crop of a photograph."""
    random, names = np.random.default_rng(0), sorted(name for names in PHOTOS.values() for name in names)
    for i in range(PICTURES):
        whole = Image.fromarray(photo(names[i % len(names)]))
        side = min(whole.size) * random.uniform(0.7, 1)
        left, top = random.uniform(0, whole.width - side), random.uniform(0, whole.height - side)
        crop = whole.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        with atomic(target / "train" / ("real", "fake")[i % 2] / f"{i}.jpg") as file:
            file.write(simplejpeg.encode_jpeg(np.ascontiguousarray(crop), 90, colorsubsampling="420"))
    return target


def write_files(target: Path) -> Path:
    """CIFAKE's test pictures as 20,000 JPEGs in one folder, as the network has them."""
    target.mkdir()
    data = load("cifake").split("test")
    for i, row in enumerate(data.rows):
        pixels = np.ascontiguousarray(data.pixels[row].transpose(1, 2, 0))
        (target / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 90, colorsubsampling="420"))
    return target


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def training(pictures: Path) -> list[dict]:
    """Rows of training at natural size: what feeds it, the network, and both."""
    data = open_pictures(str(pictures))
    data = data.take(data.splits == "train")
    network = build("Backbone", name="efficientnet_b0", size=224, heads={"fake": 1})
    recipe = RECIPES["finetune"]
    batches = feed(data, network, BATCH, "cpu", seed=0, augment=recipe.augment)
    run = Run(network.to(memory_format=torch.channels_last), recipe, open_device("cpu", recipe.precision),
              {"epoch": 0})
    train_epoch(run, batches, 1, [])  # starts the workers; the first steps are slower
    ready = list(batches.epoch(0))
    parts = {"loader alone": lambda epoch: [len(pixels) for pixels, _ in batches.epoch(epoch)],
             "EfficientNet-B0 alone": lambda epoch: [run.step(*one, 1.0) for one in ready],
             "both": lambda epoch: train_epoch(run, batches, epoch, [])}
    rows = []
    for what, action in parts.items():
        spent = sum(seconds(partial(action, epoch)) for epoch in range(2, 2 + EPOCHS))
        rows.append(row(f"training on 1-megapixel JPEGs at 224 pixels, {what}",
                        EPOCHS * len(batches) * BATCH / spent))
    return rows


def judging(what: str, pictures: Path, model: str, target: Path) -> list[dict]:
    """Rows of a whole run of infer.py after its imports."""
    found = infer.main(["--input", str(pictures), "--output", str(target), "-mf", model])
    target.unlink()
    return [row(f"infer.py, {what}, {model}", found["judged"] / found["seconds"]),
            row(f"infer.py, {what}, {model}: the network's share", found["busy"] / found["seconds"], "share")]


def row(measure: str, value: float, unit: str = "pictures/s") -> dict:
    """Row of paper/results/bench-natural.csv. Prints it."""
    text = f"{value:.2f}" if unit == "share" else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    print(f"{measure:<72} {text:>6} {unit}", flush=True)
    return {"measure": measure, "unit": unit, "tell": text}


def bench() -> list[dict]:
    with tempfile.TemporaryDirectory() as work:
        large, small = write_megapixels(Path(work, "large")), write_files(Path(work, "small"))
        rows = training(large)
        for what, pictures in (("32 pixels", small), ("1 megapixel", large / "train")):
            for model in ("base_model", "compact"):
                rows += judging(what, pictures, model, Path(work, "verdicts.csv"))
    return rows


def main(argv: list[str] | None = None) -> dict:
    Parser(description=__doc__).parse_args(argv)
    rows, about = bench(), checkpoints.surroundings_as_text()
    save_result("bench-natural", [row | about for row in rows])
    return {"rows": rows}


if __name__ == "__main__":
    command_line(main)
