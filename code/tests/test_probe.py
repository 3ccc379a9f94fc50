"""The linear probe: its features, its regression against scikit-learn's, and sources that it must not see."""
import numpy as np
import pytest
import torch
from conftest import encoded, make_tree
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import checkpoints
import probe
import scoring
import test
from classes import build
from datasets import load
from files import TellError, folder, read_csv

NETWORKS = {
    "CIFAKE_CNN": {"attn": True}, "Compact": {"width": 8, "objects": 10}, "ResNet18": {"objects": 0},
    "Backbone": {"name": "test_vit", "size": 64, "heads": {"object": 3, "fake": 1}}}


def made(name: str):
    torch.manual_seed(0)
    network = build(name, **NETWORKS[name]).eval()
    torch.nn.init.normal_(probe.head_of(network)[1].weight)
    return network


@pytest.fixture
def pictures(tree):
    return load(str(tree))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_on_the_features_gives_the_logits(name, pictures):
    network = made(name)
    before = scoring.outputs(network, pictures)
    found = probe.features(network, pictures)
    _, layer = probe.head_of(network)
    again = found @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    assert found.shape == (len(pictures), layer.in_features)
    assert again == pytest.approx(before, abs=1e-4)
    assert np.array_equal(scoring.outputs(network, pictures), before)  # the network is as it was


def test_set_head_changes_the_logit_of_fake_alone(pictures):
    network = made("Backbone")
    before, found = scoring.outputs(network, pictures), probe.features(network, pictures)
    weights = np.random.default_rng(0).normal(size=found.shape[1])
    probe.set_head(network, weights, 0.5)
    after = scoring.outputs(network, pictures)
    assert np.array_equal(after[:, :3], before[:, :3])
    assert after[:, 3] == pytest.approx(found @ weights + 0.5, abs=1e-4)


def test_features_are_kept_and_belong_to_network_and_pictures(pictures, monkeypatch):
    network, calls = made("CIFAKE_CNN"), []
    monkeypatch.setattr(probe, "outputs", lambda *given: calls.append(1) or scoring.outputs(*given))
    one = probe.features(network, pictures)
    probe.set_head(network, np.zeros(84), 0.0)  # features do not depend on the head
    assert np.array_equal(probe.features(network, pictures), one)
    assert len(calls) == 1
    probe.features(network, pictures.head(5))
    torch.nn.init.zeros_(network.conv1.bias)
    probe.features(network, pictures)
    assert len(calls) == 3


def some_features(n: int, seed: int):
    """Two informative features of forty, on different scales, and one that never moves."""
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.4).astype(np.uint8)
    found = random.normal(size=(n, 40)) * np.logspace(-2, 2, 40) + 3
    found[:, 0] += 0.01 * labels
    found[:, 39] += 80 * labels
    found[:, 20] = 7
    return found.astype(np.float32), labels


def test_the_regression_is_scikit_learns_with_the_c_of_least_validation_loss():
    (train, labels), (val, val_labels) = some_features(300, 0), some_features(200, 1)
    theirs = {c: make_pipeline(StandardScaler(), LogisticRegression(
        C=c, class_weight="balanced", max_iter=1000)).fit(train, labels) for c in probe.STRENGTHS.tolist()}
    losses = {c: log_loss(val_labels, model.predict_proba(val)) for c, model in theirs.items()}
    best = min(losses, key=losses.get)
    weights, bias, chosen = probe.fit(train, labels, val, val_labels)
    assert chosen == best
    assert min(probe.STRENGTHS) < best < max(probe.STRENGTHS)
    assert val @ weights + bias == pytest.approx(theirs[best].decision_function(val), abs=1e-3)
    assert probe.nll(val @ weights + bias, val_labels) == pytest.approx(losses[best], abs=1e-5)


def save(name: str) -> None:
    checkpoints.write(checkpoints.path_of("start"), checkpoints.pack(
        made(name), name, NETWORKS[name], threshold=0.5, threshold_source="", data="", seed=0))


def test_a_probe_is_an_ordinary_checkpoint():
    make_tree(folder("data") / "CIFAKE")
    save("CIFAKE_CNN")
    reached = probe.main(["--from", "start", "-mf", "probed"])
    row = test.main(["-mf", "probed"])["models"][0]
    assert row["accuracy"] == 1.0  # bright against dark noise
    assert row["threshold"] == reached["threshold"]
    network, facts = checkpoints.load("probed")
    val = load("cifake").split("val")
    loss = log_loss(val.labels, scoring.predict(network, val))
    assert reached["val_loss"] == pytest.approx(loss, abs=1e-4)
    assert (facts["pictures"], facts["recipe"]["start"]) == ({"train": 60, "val": 20}, "start")
    assert facts["calibration"]["n"] == 20


# --- sources ------------------------------------------------------------------------------------

def test_a_sources_own_pictures_have_no_part_in_its_scores():
    found, labels = some_features(120, 2)
    groups = np.repeat(["a", "b", "c", "d"], 30)
    before = probe.unseen_sources(found, labels, groups)
    mine = groups == "b"
    labels[mine] = 1 - labels[mine]
    after = probe.unseen_sources(found, labels, groups)
    assert np.array_equal(after[mine], before[mine])
    assert not np.allclose(after[~mine], before[~mine])


def test_what_only_tells_sources_apart_tells_nothing_of_unseen_ones():
    """Each source has one class; a random split would have everything right."""
    groups = np.repeat(np.arange(8), 20)
    labels = (groups % 2).astype(np.uint8)
    found = np.eye(8, dtype=np.float32)[groups]
    output = probe.unseen_sources(found, labels, groups)
    assert ((output > 0) == labels).mean() <= 0.5
    weights, bias = probe.regression(found, labels, 1.0)
    assert ((found @ weights + bias > 0) == labels).all()


def wild(root, sources=("a", "b", "c")):
    random = np.random.default_rng(0)
    for source in sources:
        for label in ("real", "fake"):
            (root / label / source).mkdir(parents=True)
            for i in range(6):
                low = 0 if label == "fake" else 130
                pixels = random.integers(low, low + 120, (40, 48, 3)).astype(np.uint8)
                (root / label / source / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    return root


def test_each_source_is_judged_without_it(tmp_path, capsys):
    save("Backbone")
    found = probe.main(["--from", "start", "--data", str(wild(tmp_path / "set")), "--by-source"])
    assert [(row["source"], row["n_real"], row["n_fake"]) for row in found["rows"]] == [
        *((source, 6, 6) for source in "abc"), ("AVG", 18, 18)]
    assert min(found["accuracy"], found["balanced_accuracy"], found["roc_auc"]) > 0.9  # bright in each source
    assert (found["n"], found["majority"]) == (36, 0.5)
    written = read_csv(folder("results") / "probe-start-set.csv")[0]
    assert float(written["balanced_accuracy_low"]) < found["balanced_accuracy"]
    assert list(folder("results").glob("probe-start-set-by-source.csv"))
    said = capsys.readouterr().out
    for words in ("metadata only ", "folds by source", "balanced accuracy ", "(oracle)", "by source "):
        assert words in said, words
    assert "checkpoint" not in said  # there is none that a calibration could be added to


@pytest.mark.parametrize(("flags", "words"), [
    (["--model", "test_vit", "--weights", "nothing.pth", "-mf", "x"], "nothing.pth: no such file"),
    (["--model", "no_such_net", "-mf", "x"], "no network is called"),
    (["--from", "nothing", "-mf", "x"], "no such checkpoint"),
    (["--from", "start"], "give -mf NAME"),
    (["--from", "start", "--by-source", "--data", "two"], "three sources")])
def test_mistakes_are_one_clear_line(tmp_path, monkeypatch, flags, words):
    save("Backbone")
    wild(tmp_path / "two", ("a", "b"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TellError, match=words) as refused:
        probe.main(flags)
    assert "\n" not in str(refused.value)


def test_without_a_network_pretrained_weights_are_one_clear_line(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TellError, match="no pretrained weights from hub"):
        probe.main(["--model", "test_vit.r160_in1k", "-mf", "x"])
