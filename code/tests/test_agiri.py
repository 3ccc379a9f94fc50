"""agiri.py: which pictures are found, that none is lost, and that each number is the scores'."""
import numpy as np
import pytest
import torch
from conftest import encoded
from PIL import Image
from sklearn import metrics
from test_tiles import FACTS, network, noise, tree_of_sizes

import agiri
import checkpoints
import metadata
import tiles
from files import folder, read_csv
from natural import open_pictures
from trust import short_hashes


def places(root, name: str, sizes=((70, 90), (64, 40), (200, 64), (20, 31))):
    return tree_of_sizes(root / "data" / name / "test", sizes)


def test_agiri_goes_before_its_stand_in_and_only_all_of_it_bears_the_name(tmp_path, monkeypatch):
    monkeypatch.setattr(agiri, "sample_archive", lambda: places(tmp_path, "made"))  # in place of a slow one
    assert agiri.title(agiri.open_test()).startswith("BUILT-IN SAMPLE")
    places(tmp_path, "wild")
    wanted = "stand-in `wild` in place of AGIRI: n = 8 (4 real, 4 fake)"
    assert agiri.title(agiri.open_test()).startswith(wanted)
    place = places(tmp_path, "AGIRI")
    assert agiri.title(agiri.open_test()).startswith("AGIRI's name but NOT its 12,000 test files")
    (place / "fake" / "broken.jpg").write_bytes(b"no")
    monkeypatch.setattr(agiri, "TEST_FILES", 9)  # the unreadable one counts
    assert agiri.title(agiri.open_test()).startswith("AGIRI, test half: n = 8 (4 real, 4 fake)")


def test_any_format_is_scored_and_what_is_no_picture_is_named():
    rows = {row["file"]: row for row in agiri.odd_files()}
    assert [name for name, row in rows.items() if row["becomes"] == "named"] == ["JPEG, cut in half",
                                                                                 "text named .jpg"]
    assert rows["JPEG, CMYK"]["as"] == "600x400 RGB, CMYK to RGB"
    assert "0x" not in rows["text named .jpg"]["as"]  # an address, another in each run


def test_the_published_counts_are_the_only_ones_that_give_the_published_numbers():
    for row in agiri.published():
        accuracy, fake_recall, real_recall = agiri.PUBLISHED[row["model"]]
        fakes, reals = row["fakes"], row["scored"] - row["fakes"]
        assert (fakes, reals) == (3510, 5096)
        right = round(fake_recall * fakes) + round(real_recall * reals)
        assert right / row["scored"] == pytest.approx(accuracy, abs=1e-4)
        assert row["always REAL"] == reals / (fakes + reals)


def test_what_learnt_from_these_pictures_is_not_scored(tmp_path, capsys):
    data = open_pictures(str(places(tmp_path, "wild")))
    learnt = {"other": {}, "same": {"fingerprint": data.fingerprint}, "mixed": {"data": "a+wild"}}
    for name, facts in learnt.items():
        content = checkpoints.pack(network(), "CIFAKE_CNN", {}, **FACTS | facts)
        checkpoints.write(checkpoints.path_of(name), content)
    learnt["part"] = {"fitted_pictures": torch.from_numpy(short_hashes(data.sha256[:1]))}
    checkpoints.write(checkpoints.path_of("part"), checkpoints.pack(
        network(), "CIFAKE_CNN", {}, **FACTS | learnt["part"]))
    renamed = agiri.natural.replace(data, name="wild")
    assert agiri.fair(["other", "same", "mixed", "part"], renamed) == ["other"]
    assert "same, mixed, part" in capsys.readouterr().out


def test_command_line(tmp_path, capsys):
    root = places(tmp_path, "wild", ((70, 90), (64, 40), (200, 64), (20, 31), (90, 90), (33, 64)))
    (root / "real" / "grey.png").write_bytes(encoded(Image.fromarray(noise(50, 60)[..., 0]), "PNG"))
    (root / "fake" / "broken.png").write_bytes(b"no")
    made = {"small": (network(), "CIFAKE_CNN"), "large": (network("Natural"), "Natural")}
    checkpoints.NETWORKS["Natural"] = type(made["large"][0])
    try:
        for name, (one, kind) in made.items():
            checkpoints.write(checkpoints.path_of(name), checkpoints.pack(one, kind, {}, **FACTS))
        found = agiri.main(["-mf", "small", "large"])
    finally:
        del checkpoints.NETWORKS["Natural"]
    assert "broken.png: not a readable picture" in capsys.readouterr().out
    pictures = read_csv(folder("results") / "agiri-scores-wild.csv")
    labels = np.array([int(row["label"]) for row in pictures])
    assert (len(pictures), labels.sum()) == (13, 6)
    rows = {(row["model"], row["way"]): row for row in found["rows"]}
    assert [way for model, way in rows if model == "large"] == ["fit"]
    cuts = {("small", "squash"): 0.4, ("small", "tiles' share"): 0.5, ("large", "fit"): 0.4}
    for (model, way), cut in cuts.items():
        scores = np.array([float(row[f"{model}: {way}"]) for row in pictures])
        row = rows[model, way]
        assert row["accuracy"] == pytest.approx(metrics.accuracy_score(labels, scores >= cut))
        assert row["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert row["majority"] == 7 / 13
        assert row["best_balanced_accuracy"] == pytest.approx(
            max(metrics.balanced_accuracy_score(labels, scores >= at) for at in [*scores, 2]))
    assert rows["small", "tiles minus squash"]["best_balanced_accuracy"] == ""
    data = agiri.open_test()
    votes = tiles.both_ways(made["small"][0], data, tiles.LIMIT)
    for way in ("squash", "tiles"):
        scores = [float(row[f"small: {way}"]) for row in pictures]
        wanted = agiri.sigmoid(np.array([one.logit for one in votes[way]]))
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    average = [row for row in found["sources"] if row["source"] == "AVG"]
    assert {(row["n_real"], row["n_fake"]) for row in average} == {(7, 6)}
    kept = metadata.baseline(data, metadata.read_headers(data))[0]
    assert rows["metadata only", "folds by picture"]["roc_auc"] == kept["roc_auc"]
