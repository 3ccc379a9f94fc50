"""The benchmark of natural-size pictures measures what it says, here on a handful."""
import numpy as np
import pytest
from test_explain import compact, some

import bench_lime
import bench_natural
import lime_shap
from decode import decode


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name, value in (("PICTURES", 24), ("SIDE", 48), ("BATCH", 4), ("EPOCHS", 1)):
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
        "loader alone": 10, "EfficientNet-B0 alone": 10, "both": 10}  # 20 pictures in 2 s
    assert all(row["unit"] == "pictures/s" for row in rates.values())


def test_lime_is_timed_for_each_network_and_the_interval_of_the_difference_is_kept(monkeypatch):
    pictures, networks = some(2), {"base_model": compact(), "compact": compact()}
    clock = iter(np.cumsum([0, 0.020, 0, 0.004] * 2 * len(networks)))  # package, then ours, in turn
    monkeypatch.setattr(bench_lime.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(bench_lime, "package", lambda network, picture, **options: np.arange(64.0))
    monkeypatch.setattr(bench_lime, "lime", lambda *given: -np.arange(64.0)[lime_shap.cells_of(32, 32)])
    monkeypatch.setattr(bench_lime, "one", lambda name, n: bench_lime.bench(name, networks[name], pictures))
    rows = bench_lime.main([])["rows"]
    assert [(row["tell"], row["reference"], row["ratio"]) for row in rows] == [("4.000", "20.00", "5.0")] * 2
    for name, row in zip(networks, rows, strict=True):
        assert row["measure"] == (f"LIME of one picture, {name}, rank correlation -1.000 (reference 1.000, "
                                  "difference -2.000 [-2.000, -2.000])")
