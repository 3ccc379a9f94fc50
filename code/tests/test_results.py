"""The committed results: what the tables say is what the files hold, and what the network does."""
import re

import numpy as np
import pytest
from conftest import CODE

import checkpoints
import scoring
from datasets import CIFAKE_FINGERPRINT, load
from files import read_csv

ROOT = CODE.parent
RESULTS = ROOT / "paper/results"
# name: (epochs, arguments of the network)
MODELS = {"base_model": (10, {"attn": False}), "mini_model": (1, {"attn": False}),
          "attn_model": (10, {"attn": True}), "compact": (16, {"objects": 10}), "wide": (16, {"objects": 10}),
          "wide28": (12, {"objects": 10}),
          "fast": (5, {"objects": 10}), "robust": (5, {"objects": 10}), "sturdy": (10, {"objects": 10}),
          "dual": (12, {"objects": 10}),
          "effnet": (2, {"name": "efficientnet_b0", "size": 32, "heads": {"fake": 1}})}


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    monkeypatch.setenv("TELL_MODELS", str(ROOT / "models"))
    monkeypatch.setenv("TELL_RESULTS", str(RESULTS))


def metrics(name):
    return read_csv(RESULTS / f"metrics-{name}-cifake-test.csv")[0]


@pytest.mark.parametrize("name", MODELS)
def test_numbers_follow_from_the_scores(name):
    paths, labels, logits = scoring.read_scores(RESULTS / f"scores-{name}-cifake-test.csv")
    row = metrics(name)
    assert len(set(paths)) == int(row["n"]) == 20_000
    assert labels.sum() == 10_000
    again = scoring.score(labels, scoring.sigmoid(logits), float(row["threshold"]))
    for key, value in again.items():
        assert float(row[key]) == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("name", MODELS)
def test_the_checkpoint_says_what_it_is(name):
    _, facts = checkpoints.load(name)
    assert facts["data"] == "cifake"
    assert facts["fingerprint"] == CIFAKE_FINGERPRINT == metrics(name)["fingerprint"]
    assert facts["pictures"] == {"train": 90_000, "val": 10_000}
    assert (facts["epochs"], facts["arguments"]) == MODELS[name]
    assert facts["threshold"] == float(metrics(name)["threshold"])
    assert not facts["commit"].endswith("+")


@pytest.mark.parametrize("name", MODELS)
def test_the_checkpoint_gives_its_scores_again(name, real_cifake):
    """Every fifth picture: all take ten minutes. Another machine may round the last bits otherwise."""
    data = load(str(real_cifake)).split("test")
    chosen = np.arange(0, len(data), 5)
    network, _ = checkpoints.load(name)
    found = scoring.logits(network, data.take(chosen))
    paths, _, logits = scoring.read_scores(RESULTS / f"scores-{name}-cifake-test.csv")
    assert paths.tolist() == data.paths.tolist()
    np.testing.assert_allclose(found, logits[chosen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["README.md", "models/README.md"])
def test_the_tables_print_the_measured_numbers(where):
    text = (ROOT / where).read_text()
    for name in MODELS:
        row = metrics(name)
        line = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        for key in ("accuracy", "accuracy_low", "accuracy_high"):
            assert f"{float(row[key]) * 100:.2f}" in line, (name, key, line)
        said, = re.findall(r"20\d\d-\d\d-\d\d", line)
        assert said <= row["date"]  # who tests it again on another day gets the same numbers


@pytest.mark.parametrize(("model", "seeds", "least"), [("base_model", 10, 91.0), ("compact", 5, 98.0),
                                                       ("wide", 5, 98.2), ("wide28", 5, 98.2)])
def test_the_readme_prints_the_seeds(model, seeds, least):
    rows = [metrics(f"{model}-s{seed}") for seed in range(seeds)]
    values = np.array([float(row["accuracy"]) for row in rows]) * 100
    expected = f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
    assert re.search(re.escape(expected), (ROOT / "README.md").read_text()), expected
    assert values.min() >= least
