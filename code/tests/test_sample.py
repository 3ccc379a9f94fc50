"""The built-in sample: the same bytes everywhere, and nothing but the pictures tells the classes."""
import hashlib
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import processor_seconds
from torch import nn

import files
import sample
from decode import decode

CODE = Path(sample.__file__).parent
COUNTS = {"train/REAL": 2400, "train/FAKE": 2400, "val/REAL": 400, "val/FAKE": 400,
          "test/REAL": 800, "test/FAKE": 800}


@pytest.fixture(scope="module")
def pictures(made_sample):
    with tarfile.open(made_sample[0]) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def partner(name: str) -> str:
    return name.replace("/REAL/", "/FAKE/")


def real_names(pictures) -> list[str]:
    return [name for name in pictures if "/REAL/" in name]


def test_is_made_in_time_and_has_the_stated_hash(made_sample, tmp_path):
    seconds = made_sample[1]
    if seconds >= 30:  # two processes on one core's two threads take up to twice the processor's time
        start = processor_seconds()
        sample.make_sample(tmp_path / "again.tar")
        seconds = processor_seconds() - start
    assert seconds < 30
    assert hashlib.sha256(made_sample[0].read_bytes()).hexdigest() == sample.SAMPLE_SHA256


def test_other_process_without_simd_and_with_more_threads_makes_the_same_bytes(made_sample, tmp_path):
    script = "import sample, sys, pathlib; sample.make_sample(pathlib.Path(sys.argv[1]))"
    slow = {"JSIMD_FORCENONE": "1", "OPENBLAS_CORETYPE": "Prescott", "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", script, tmp_path / "again.tar"], cwd=CODE,
                         env=os.environ | slow, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "again.tar").read_bytes() == made_sample[0].read_bytes()


def test_archive_says_nothing_of_the_machine(made_sample):
    with tarfile.open(made_sample[0]) as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)}
    assert [m.name for m in members] == sorted(m.name for m in members)


def test_counts(pictures):
    assert Counter(name.rsplit("/", 1)[0] for name in pictures) == COUNTS


def test_no_photo_on_two_sides(pictures):
    sides = {}
    for name in pictures:
        sides.setdefault(name.split("/")[2].rsplit("-", 1)[0], set()).add(name.split("/")[0])
    assert all(len(splits) == 1 for splits in sides.values())
    assert set(sides) == {Path(name).stem for photos in sample.PHOTOS.values() for name in photos}


def test_no_two_pictures_are_identical(pictures):
    assert len(set(pictures.values())) == len(pictures)
    assert len({decode(data)[0].tobytes() for data in pictures.values()}) == len(pictures)


def test_pairs_have_one_size_and_nearly_one_mean_colour(pictures):
    for name in real_names(pictures):
        real, fake = pictures[name], pictures[partner(name)]
        assert len(real) == len(fake)
        assert np.abs(sample.mean_colour(real) - sample.mean_colour(fake)).max() <= 1


def test_jpegs_are_plain_and_share_one_header(pictures):
    assert {decode(data)[1] for data in pictures.values()} == {""}
    assert {decode(data)[0].shape for data in pictures.values()} == {(32, 32, 3)}
    assert len({data[:data.index(b"\xff\xda") + 14] for data in pictures.values()}) == 1


def test_size_and_mean_colour_tell_nothing(pictures):
    results = sample.baselines(pictures)
    assert len(results) == 6
    assert all(0.45 <= value <= 0.55 for value in results.values()), results


def tensors(pictures, split):
    names = [name for name in pictures if name.startswith(split)]
    pixels = np.stack([decode(pictures[name])[0] for name in names])
    x = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    return x, torch.tensor(["/FAKE/" in name for name in names]).float()


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, 1), nn.Flatten(0))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other make a busy machine crawl
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_base_network_learns_it(pictures):
    torch.manual_seed(1)
    network = lenet()
    optimizer = torch.optim.SGD(network.parameters(), 0.001, 0.9)
    x, y = tensors(pictures, "train")
    for _ in range(7):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.binary_cross_entropy_with_logits(network(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x, y = tensors(pictures, "test")
    with torch.no_grad():
        assert ((network(x) > 0) == y.bool()).float().mean() >= 0.8


def test_integer_autoencoder_is_the_one_that_was_trained():
    weights, network = sample.weights(), sample.autoencoder()
    with torch.no_grad():
        for name, conv in zip(("encode", "squeeze", "decode"), network[1:6:2], strict=True):
            k = conv.kernel_size[0]
            weight = torch.tensor(weights[name] / sample.SCALE).reshape(k, k, -1, conv.out_channels)
            conv.weight.copy_(weight.permute(3, 2, 0, 1))
            bias = (weights[f"{name}_bias"] - sample.SCALE // 2) / sample.SCALE
            conv.bias.copy_(torch.tensor(bias))
        centred = np.random.default_rng(0).integers(-128, 128, (8, 32, 32, 3)).astype(np.float64)
        expected = network(torch.tensor(centred).permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1)
    found = sample.reconstruct(centred, weights)
    assert np.abs(found - expected.numpy()).max() < 8  # three roundings to whole levels


def test_autoencoder_is_small_and_its_sums_are_exact():
    weights = sample.weights()
    assert (files.folder("library") / sample.WEIGHTS).stat().st_size < 100_000
    reach = 255.0
    for name in ("encode", "squeeze", "decode"):
        assert np.abs(weights[name]).max() < 2**15
        total = np.abs(weights[name]).sum(0).max() * reach + np.abs(weights[f"{name}_bias"]).max()
        assert total < 2**43
        reach = total / sample.SCALE


def test_other_bytes_are_refused_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "pictures", lambda: [("test/REAL/a-0000.jpg", b"other")])
    with pytest.raises(files.TellError, match="numpy 2.4.6") as caught:
        sample.make_sample(tmp_path / "sample.tar")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # conftest made it


def test_missing_package_is_one_clear_line():
    with pytest.raises(files.TellError, match="scikit-image"):
        sample.photo("no_such_package/data/astronaut.png")


def test_command_says_that_it_is_no_evidence(capsys, monkeypatch, pictures):
    monkeypatch.setattr(sample, "pictures", lambda: pictures)
    result = sample.main([])
    assert sum(result["counts"].values()) == 7200
    printed = capsys.readouterr().out
    assert "NOT FOR CONCLUSIONS" in printed
    assert "n = 1,600" in printed
    assert sample.SAMPLE_SHA256 in printed
