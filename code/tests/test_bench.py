"""The benchmark of natural-size pictures measures what it says, here on a handful."""
import numpy as np
import pytest

import bench_natural
from decode import decode


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name, value in (("PICTURES", 24), ("SIDE", 48), ("BATCH", 4), ("STEPS", 1)):
        monkeypatch.setattr(bench_natural, name, value)
    return bench_natural.write_megapixels(tmp_path / "pictures")


def test_each_picture_is_another_crop_of_a_photograph(small):
    pictures = [decode(path.read_bytes())[0] for path in small.rglob("*.jpg")]
    assert len(pictures) == 24
    assert all(picture.shape == (48, 48, 3) for picture in pictures)
    assert min(picture.std() for picture in pictures) > 5
    assert len({picture.tobytes() for picture in pictures}) == 24


def test_rates_of_training(small, monkeypatch):
    clock = iter(np.arange(0, 1000, 2.0))
    monkeypatch.setattr(bench_natural.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench_natural, "train_epoch", lambda run, batches, epoch, history: None)
    rates = {row["measure"].rsplit(", ", 1)[1]: row for row in bench_natural.training(small)}
    assert {name: float(row["tell"]) for name, row in rates.items()} == {
        "loader alone": 10, "EfficientNet-B0 alone": 2, "both": 10}  # 20 or 4 pictures in 2 s
    assert all(row["unit"] == "pictures/s" for row in rates.values())
