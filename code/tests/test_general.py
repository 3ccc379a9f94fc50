"""The general detector: nothing of a source leaks into its own score, and what is saved can be used."""
import csv
import io
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import encoded
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

import checkpoints
import general
import test as commands
import unseen
from classes import build
from decode import decode
from files import TellError, folder, read_csv
from forensic import forensics
from infer import said_of
from resaved import LEAST, VIEWS, Pool, gather, read, resaved
from scoring import sigmoid
from unseen import (
    even,
    halfway,
    judged,
    numbers,
    own_sources,
    promised,
    regression,
    rule,
    verdicts,
    weights_of,
)

SMALL = {**general.NETWORK, "size": 64}


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of untrained weights in timm's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(timm.create_model(SMALL["name"]).state_dict(), path)
    return path


@pytest.fixture
def wild(tmp_path):
    """Three sources with both classes and two with one, six pictures each: fakes are smooth, reals noisy."""
    root, rows = tmp_path / "wild", []
    for source, labels in {"a": "rf", "b": "rf", "c": "rf", "d": "r", "e": "f"}.items():
        for i in range(6):
            label = {"r": "real", "f": "fake"}[labels[i % len(labels)]]
            noise = np.random.default_rng([ord(source), i]).integers(0, 256, (70, 70, 3), dtype=np.uint8)
            picture = Image.fromarray(noise if label == "real" else noise[:7, :7]).resize((70, 70))
            path = root / "test" / label / f"{source}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture, "PNG"))
            rows.append({"path": f"test/{label}/{path.name}", "set": source})
    with open(root / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "set"])
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_from_pictures_to_a_checkpoint_that_test_py_scores(wild, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(general, "NETWORK", SMALL)
    monkeypatch.setattr(unseen, "DRAWS", 5)
    compare, kept = general.compare, []

    def once(*args):
        kept.extend(kept or compare(*args))
        return kept[:2]
    monkeypatch.setattr(general, "compare", once)
    flags = ["--data", str(wild), "--questions", "--seeds", "1"]
    found = general.main([*flags, "--weights", str(weights)])
    rows = read_csv(folder("results") / "general.csv")
    mean = {row["method"]: row for row in rows
            if row["source"] == "MEAN" and row["pictures"] == "as they are"}
    for method in ("middle", "forensic"):
        assert float(mean[method]["roc_auc"]) > 0.9, method
    assert {"a", "b", "c", "one-class sources", "MEAN"} == {row["source"] for row in rows}
    assert found["calibration"]["n"] == 18  # those of a, b, c: real and fake of one place
    assert {row["source"] for row in read_csv(folder("results") / "general-verdicts.csv")} == set("abc")
    row = commands.main(["-mf", "general", "--data", str(wild)])["models"][0]
    assert row["roc_auc"] > 0.9
    assert "2 scores each of 18 pictures whose source was left out" in row["threshold_source"]
    before, facts = checkpoints.load("general")
    assert facts["fitted_on"] == [row["fingerprint"]]  # so that a test can say that it is none
    some = tmp_path / "some"  # of the same pictures, and new ones: other names, another fingerprint
    shutil.copytree(wild / "test", some)
    (some / "real" / "a0.png").rename(some / "real" / "renamed.png")
    for name in ("b2", "c4"):
        shutil.copy(some / "real" / f"{name}.png", some / "real" / f"new {name}.png")
        with open(some / "real" / f"new {name}.png", "ab") as file:
            file.write(b"another file")
    capsys.readouterr()
    part = commands.main(["-mf", "general", "--data", str(some)])["models"][0]
    assert (part["in_training"], part["n"]) == (30, 32)
    assert "30 of these 32 pictures were used in training: no measure" in capsys.readouterr().out
    general.main(flags)  # again, from its own network, which was kept in half precision
    after, x = checkpoints.load("general")[0], torch.randn(4, 3, 64, 64)
    assert torch.allclose(before(x), after(x), atol=0.05)


def test_another_network_in_its_place_is_one_line():
    checkpoints.write(checkpoints.path_of("other"), checkpoints.pack(
        build("CIFAKE_CNN"), "CIFAKE_CNN", {}, threshold=0.5, threshold_source="test", data="x", seed=0))
    with pytest.raises(TellError, match="-mf other: not a General but a CIFAKE_CNN; give --weights FILE"):
        general.main(["-mf", "other"])


def test_the_network_reads_the_stages_that_it_says(weights):
    network = build("General", **SMALL, weights=str(weights)).eval()
    squares = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    whole, seen = timm.create_model(SMALL["name"]).eval(), []
    whole.load_state_dict(torch.load(weights, weights_only=True))
    for i in SMALL["blocks"]:
        whole.blocks[i].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.inference_mode():
        whole((torch.from_numpy(squares).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    flat = [stage.flatten(2).numpy() for stage in seen]
    wanted = np.concatenate([part for x in flat for part in (x.mean(axis=2), x.std(axis=2))], axis=1)
    np.testing.assert_allclose(read(network, squares), wanted, rtol=1e-3, atol=1e-4)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def pool_of(labels, sources):
    return Pool([], labels, sources, np.full(len(labels), ""), np.zeros((len(labels), 32), np.uint8))


def test_no_picture_is_scored_by_what_saw_its_source():
    groups, labels, seen = np.repeat(["a", "b", "c"], 20), np.tile([True, False], 30), []
    x = np.arange(60.0).reshape(60, 1, 1).repeat(1 + VIEWS, axis=1)

    def spy(rows, labels, groups):
        seen.append((set(rows[:, 0]), set(groups)))
        return lambda rows: rows[:, 0]
    logits, cuts = judged(x, pool_of(labels, groups), spy, seeds=1)
    assert (logits[0] == x[:, :2, 0]).all()
    assert [groups for _, groups in seen] == [{"b", "c"}, {"a", "c"}, {"a", "b"}]
    rest = np.array(sorted(set(range(40)) - seen[2][0]))  # a fifth of each source and class chooses the cut
    assert [(labels[rest] & (groups[rest] == group)).sum() for group in "abc"] == [2, 2, 0]
    assert len(rest) == 8
    assert (cuts[0, 40:] == halfway(labels[rest], rest.astype(float))).all()
    seen.clear()
    judged(x, pool_of(labels, np.repeat(["a", "one-class sources", "vqa"], 20)), spy, seeds=1)
    assert [groups for _, groups in seen] == [{"one-class sources", "vqa"}, {"a"}, {"a"}]


def test_a_rule_counts_real_and_fake_of_each_source_alike_and_is_silent_where_nothing_can_be_told():
    random, sources = np.random.default_rng(0), np.repeat(["a", "b", "one-class sources"], (300, 100, 50))
    labels = np.concatenate((np.arange(300) < 250, np.arange(100) < 20, np.arange(50) < 25))
    logits = random.normal(size=(2, 450, 2)) + 3 * (sources == "b")[:, None]  # b's reals look like a's fakes
    pool = pool_of(labels, sources)
    chosen = even(pool, own_sources(pool))
    assert [(labels[chosen] & (sources[chosen] == name)).sum() for name in ("a", "b")] == [50, 20]
    assert len(set(chosen)) == len(chosen) == 140
    found, cut = rule(pool, logits - 5 * labels[:, None], ["a", "b"])
    said, scores, _ = said_of(logits.ravel(), float(sigmoid(np.array(cut))), found)
    assert (set(said), set(scores), found["n"]) == ({"cannot tell"}, {0.5}, 140)
    found, cut = rule(pool, logits + 8 * labels[:, None], ["a", "b"])
    assert 3 < found["real_bound"] < cut < found["fake_bound"] < 8
    a, b = verdicts(pool, logits + 20 * labels[:, None])
    assert sum(a[key] for key in a if "_as_" in key) == 300 * 4
    assert a["real_as_REAL"] > 190  # of 200, below b's real ones
    assert b["fake_as_FAKE"] > 70   # of 80, above a's fakes
    assert b["real_as_REAL"] + b["real_as_FAKE"] < 40  # of 320, between them: neither's like
    assert promised(found, [a, b]) == found
    turned = logits + (np.where(sources == "a", 8, -8) * labels)[:, None]  # b's fakes below its real ones
    said = verdicts(pool, turned)
    assert promised(found, said) == found | {"real_bound": np.inf, "fake_bound": -np.inf}


def test_what_differs_between_sources_only_is_not_learnt():
    random = np.random.default_rng(0)
    groups, labels = np.repeat([0, 1], 200), np.concatenate((np.arange(200) < 180, np.arange(200) < 20))
    x = random.normal(size=(400, 2)) + np.stack((-5.0 * groups, labels), axis=1)
    w, b = regression(x, labels, groups)
    assert w[1] > 0.3 > 6 * abs(w[0])
    assert abs(np.average(x @ w + b, weights=weights_of(labels, groups))) < 0.2
    weights = weights_of(labels, groups)
    assert weights[labels].sum() == pytest.approx(weights[~labels].sum()) == pytest.approx(200)


def test_numbers_agree_with_scikit_learn():
    random = np.random.default_rng(1)
    labels = random.random(300) < 0.3
    logits = random.normal(size=(2, 300)) + labels
    row = numbers([(labels, logits)])
    assert row["roc_auc"] == pytest.approx(np.mean([roc_auc_score(labels, one) for one in logits]))
    assert row["balanced_accuracy"] == pytest.approx(
        np.mean([balanced_accuracy_score(labels, one >= 0) for one in logits]))
    assert row["roc_auc_low"] < row["roc_auc"] < row["roc_auc_high"]
    assert row["roc_auc_high"] - row["roc_auc_low"] == pytest.approx(0.12, abs=0.04)


def test_resaving_depends_on_chance_alone_and_keeps_a_least_size():
    pixels = np.random.default_rng(0).integers(0, 256, (240, 400, 3), dtype=np.uint8)
    files = [resaved(pixels, np.random.default_rng(seed)) for seed in range(60)]
    assert files[7] == resaved(pixels.copy(), np.random.default_rng(7))
    kinds = [Image.open(io.BytesIO(file)).format for file in files]
    assert {"JPEG", "PNG", "WEBP"} == set(kinds)
    assert 24 <= kinds.count("JPEG") <= 48
    assert min(min(decode(file)[0].shape[:2]) for file in files) == LEAST


def test_forensics_of_noise_has_its_closed_form():
    grey = np.random.default_rng(0).normal(128, 10, (256, 256, 1)).round().clip(0, 255).astype(np.uint8)
    found = forensics(grey.repeat(3, axis=2))
    assert found[0] == pytest.approx(np.log(10 * 2**0.5 + 0.05), abs=0.02)  # differences of white noise
    agreement = found[36:39]
    np.testing.assert_allclose(agreement, 1, atol=0.02)  # the three colours are one
    for flat in (0, 255):
        assert np.isfinite(forensics(np.full((64, 64, 3), flat, np.uint8))).all()


def test_files_under_both_labels_are_left_out_and_named(wild, capsys):
    twin = wild / "test" / "fake" / "b9.png"
    twin.write_bytes((wild / "test" / "real" / "a0.png").read_bytes())
    assert len(gather([str(wild)], [])) == 29
    assert "the same file is there as real and as fake: test/FAKE/b9.png" in capsys.readouterr().out


def test_too_few_sources_are_one_line(wild):
    (wild / "manifest.csv").unlink()
    with pytest.raises(TellError, match="three or more with real and fake"):
        gather([str(wild)], [])
    with pytest.raises(TellError, match="no such checkpoint"):
        general.main(["--data", str(wild), "--questions"])


