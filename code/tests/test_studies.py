"""The studies beside the main road: leaks, paired comparison, difficulty."""
import numpy as np
import pytest
from conftest import CODE, jpeg, make_tree, pixels
from scipy import stats

import compare
import difficulty
import leaks
import test
import train
from datasets import load
from files import TellError, folder, read_csv


def test_identical_and_near_pictures_are_found_and_others_not(tmp_path):
    tree = make_tree(tmp_path / "set", train=30, test=10)
    random = np.random.default_rng(4)
    smooth = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    brighter = np.clip(smooth.astype(int) + 6, 0, 255).astype(np.uint8)
    (tree / "train/FAKE/0900.jpg").write_bytes(jpeg(smooth))
    (tree / "test/FAKE/0900.jpg").write_bytes(jpeg(smooth))
    (tree / "train/FAKE/0901.jpg").write_bytes(jpeg(brighter))
    (tree / "train/REAL/0902.jpg").write_bytes(jpeg(smooth))  # another label: no leak of its own
    rows = list(leaks.pairs_of(load(str(tree))))
    found = {(row["kind"], row["one"], row["two"]) for row in rows}
    assert found == {("identical", "test/FAKE/0900.jpg", "train/FAKE/0900.jpg"),
                     ("near", "test/FAKE/0900.jpg", "train/FAKE/0901.jpg"),
                     ("near", "train/FAKE/0900.jpg", "train/FAKE/0901.jpg")}
    assert leaks.twins_in_train(rows) == {"test/FAKE/0900.jpg"}
    assert leaks.count(rows)[2:] == [
        {"label": "FAKE", "kind": "identical", "pairs": 1, "train": 0, "test": 0, "across": 1},
        {"label": "FAKE", "kind": "near", "pairs": 2, "train": 1, "test": 0, "across": 1}]


def test_near_hashes_are_all_pairs():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 700, dtype=np.uint64)
    hashes[600] = hashes[3] ^ np.uint64(0b1011)
    slow = [(i, j) for i in range(700) for j in range(i + 1, 700)
            if bin(hashes[i] ^ hashes[j]).count("1") <= 10]
    assert leaks.near_hashes(hashes).tolist() == [list(pair) for pair in slow]
    assert (3, 600) in slow


def test_the_committed_audit_has_the_known_counts(monkeypatch):
    monkeypatch.setenv("TELL_RESULTS", str(CODE.parent / "paper/results"))
    table = {(row["label"], row["kind"]): row for row in leaks.count(leaks.read_leaks())}
    assert table["FAKE", "identical"] == {"label": "FAKE", "kind": "identical", "pairs": 1336, "train": 920,
                                          "test": 38, "across": 378}
    assert table["REAL", "identical"]["pairs"] == 0


def test_paired_difference_is_the_t_test():
    one, two = np.array([0.90, 0.91, 0.92, 0.915]), np.array([0.912, 0.909, 0.931, 0.92])
    found = compare.paired(two - one)
    assert found["p"] == pytest.approx(stats.ttest_rel(two, one).pvalue)
    assert found["low"] < found["mean"] < found["high"]
    assert compare.mcnemar(10, 10) == 1
    assert compare.mcnemar(0, 0) == 1
    assert compare.mcnemar(2, 20) == pytest.approx(0.000121, rel=0.01)  # 2 * P(X <= 2), X ~ B(22, 1/2)


def test_comparison_of_two_recipes_reads_their_scores(tmp_path):
    tree = make_tree(tmp_path / "tree", train=80, test=20)
    with pytest.raises(TellError, match="scores of 0 common seeds"):
        compare.main(["one", "two", "--data", str(tree)])
    for name, flags in (("one", []), ("two", ["--attn"])):
        train.main(["-ep", "1", "-mf", name, "--seeds", "2", "--data", str(tree), *flags])
        test.main(["-mf", f"{name}-s*", "--data", str(tree)])
    result = compare.main(["one", "two", "--data", str(tree)])
    rows = read_csv(folder("results") / "compare-one-two-tree.csv")
    for row in rows:
        gap = int(row["only_two_right"]) - int(row["only_one_right"])
        assert float(row["difference"]) == pytest.approx(gap / 40)
    assert result["seeds"] == 2


def test_comparison_refuses_what_makes_no_sense(tmp_path):
    with pytest.raises(TellError, match="cannot be compared with itself"):
        compare.main(["one", "one", "--data", "sample"])
    folder("results").mkdir(parents=True)
    for name in ("m-s1", "m-small", "m-s12", "m-s3-x"):
        (folder("results") / f"scores-{name}-cifake-test.csv").write_text("")
    assert compare.seeds_of("m", "cifake") == [1, 12]


def test_features_of_the_simple_models():
    random = np.random.default_rng(0)
    pictures = np.stack([pixels(label, random).transpose(2, 0, 1) for label in ("REAL", "FAKE", "REAL")])
    assert difficulty.linear_features(pictures).shape == (3, 3072)
    colours = difficulty.colour_features(pictures)
    np.testing.assert_allclose((colours**2).sum(axis=1), 1, rtol=1e-5)
    red = pictures[0, :, 0, 0].astype(int) >> 5
    assert colours[0, red[0] * 64 + red[1] * 8 + red[2]] > 0
    assert difficulty.spectrum_features(pictures).shape == (3, 3 * 32 * 17)


@pytest.mark.parametrize("flags", [["simple", "--seeds", "2"], ["simple", "--every", "4"],
                                   ["pictures", "--every", "4"]])
def test_studies_refuse_flags_that_would_change_nothing(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        difficulty.main([*flags, "--data", "none"])
    assert caught.value.code == 2
    assert f"unrecognized arguments: {flags[1]}" in capsys.readouterr().err


def test_difficulty_studies_run(tmp_path, capsys):
    tree = make_tree(tmp_path / "tree", train=200)
    flags = ["--data", str(tree), "--seeds", "2"]
    rows = difficulty.main(["first-epoch", "--every", "4", *flags])["rows"]
    runs = {(row["start"], row["seed"]) for row in rows}
    assert runs == {("default", 0), ("default", 1), ("he", 0), ("he", 1)}
    signal = read_csv(folder("results") / "difficulty-signal.csv")
    spread = {row["start"]: float(row["spread"]) for row in signal if row["layer"] == "fc3"}
    assert spread["he"] > 5 * spread["default"]
    assert {row["pictures"] for row in difficulty.main(["pictures", *flags])["rows"]} == {100, 300}
    simple = difficulty.main(["simple", "--data", str(tree)])["rows"]
    assert all(row["val_accuracy"] > 0.9 for row in simple)
