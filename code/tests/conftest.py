"""Every test has folders of its own; pictures are made here, small and learnable."""
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

# Before torch is imported: two test processes with two threads each would wait for each other on two cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

CODE = Path(__file__).resolve().parents[1]
SETTINGS = ("DATA", "CACHE", "MODELS", "RESULTS", "FIGURES")
OUTSIDE = {name: os.environ.get(f"TELL_{name}") for name in SETTINGS}


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test sees or writes the user's data, models and results, or leaves figures to the next."""
    for name in SETTINGS:
        monkeypatch.setenv(f"TELL_{name}", str(tmp_path / name.lower()))
    (tmp_path / "data").mkdir()  # one that is not there is refused
    yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def same_threads():
    """A function that computes with one thread (ablation, difficulty) leaves as many as it found."""
    import torch
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_cifake():
    """The path of the complete CIFAKE, where the machine has it."""
    from datasets import find_cifake
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TELL_DATA", raising=False)
        if OUTSIDE["DATA"]:
            patch.setenv("TELL_DATA", OUTSIDE["DATA"])
        path = find_cifake()
    return path or pytest.skip("CIFAKE is not on this machine")


@pytest.fixture(scope="session")
def made_sample(tmp_path_factory):
    """The built-in sample's file, which takes ten seconds to make, and the seconds of processors it took."""
    import sample
    start = processor_seconds()
    path = sample.make_sample(tmp_path_factory.mktemp("sample") / "sample.tar")
    return path, processor_seconds() - start


def processor_seconds() -> float:
    """Of this process and its children; on a busy machine the clock on the wall says little."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.fixture
def sample_is_made(own_folders, made_sample):
    """For tests that need the sample, not the making of it."""
    from sample import SAMPLE_SHA256
    (own_folders / "cache").mkdir()
    (own_folders / "cache" / f"sample-{SAMPLE_SHA256[:8]}.tar").hardlink_to(made_sample[0])


def jpeg(pixels: np.ndarray, **options) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", quality=75, **options)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(label: str, random: np.random.Generator) -> np.ndarray:
    """REAL: bright noise; FAKE: dark noise. Easy, so that a few steps learn it."""
    low, high = (120, 256) if label == "REAL" else (0, 136)
    return random.integers(low, high, (32, 32, 3)).astype(np.uint8)


def make_tree(root: Path, train: int = 40, test: int = 10, seed: int = 0) -> Path:
    """A folder in CIFAKE's layout and naming, with so many pictures a label."""
    random = np.random.default_rng(seed)
    for split, n in (("train", train), ("test", test)):
        for label in ("REAL", "FAKE"):
            where = root / split / label
            where.mkdir(parents=True)
            for i in range(n):
                suffix = "" if i % 10 == 0 else f" ({i % 10 + 1})"
                (where / f"{i // 10:04d}{suffix}.jpg").write_bytes(jpeg(pixels(label, random)))
    return root


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "tree")


def run_tell(script: str, *flags, cwd=None, **environment) -> subprocess.CompletedProcess:
    """A command line as a user runs it, in a process of its own."""
    return subprocess.run([sys.executable, str(CODE / script), *map(str, flags)], cwd=cwd, text=True,
                          capture_output=True, env=os.environ | environment, timeout=300)


def assert_one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one line on stderr that holds all of `words`."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(lines) == 1, done.stderr
    missing = [word for word in words if str(word) not in lines[0]]
    assert not missing, (missing, lines[0])
