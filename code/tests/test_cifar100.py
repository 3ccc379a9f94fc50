"""CIFAR-100's files, made here in their exact format; what is refused in them; the study of false alarms."""
import hashlib
import io
import os
import pickle
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.datasets import CIFAR100

import checkpoints
import cifar100
import lossless
import scoring
import transfer
from classes import build
from files import TellError, folder, read_csv, write_csv

N = {"train": 200, "test": 100}


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: every string as a string of bytes, numpy under its names of then."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes | str) -> None:
        text = text.encode() if isinstance(text, str) else text
        self.write((pickle.SHORT_BINSTRING + bytes([len(text)]) if len(text) < 256
                    else pickle.BINSTRING + len(text).to_bytes(4, "little")) + text)

    dispatch[bytes] = dispatch[str] = save_string


def python2(content) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(content)
    return buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


def contents() -> dict[str, dict]:
    """What the three files hold, as in CIFAR-100."""
    random = np.random.default_rng(0)
    parts = {name: {b"filenames": [b"photo_s_%06d.png" % i for i in range(n)], b"batch_label": b"1 of 1",
                    b"fine_labels": [i % 100 for i in range(n)], b"coarse_labels": [i % 20 for i in range(n)],
                    b"data": random.integers(0, 256, (n, 3072)).astype(np.uint8)} for name, n in N.items()}
    return parts | {"meta": {b"fine_label_names": [b"class_%02d" % i for i in range(100)],
                             b"coarse_label_names": [b"group_%02d" % i for i in range(20)]}}


def archive(path, files: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def made(root: Path, **changed: bytes):
    """CIFAR-100's archive with some of its three files exchanged."""
    root.mkdir(parents=True, exist_ok=True)
    files = {name: python2(content) for name, content in contents().items()} | changed
    return archive(root / "cifar-100-python.tar.gz", files)


def test_it_reads_what_torchvision_reads(tmp_path, monkeypatch):
    path = made(tmp_path)
    shutil.unpack_archive(path, tmp_path / "out")  # extractall has no filter before Python 3.11.4
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for source in (path, tmp_path / "out" / "cifar-100-python"):
        data = cifar100.read_cifar100(source)
        for split, n in N.items():
            theirs, ours = CIFAR100(tmp_path / "out", train=split == "train"), data.split(split)
            assert np.array_equal(ours.pixels[ours.rows].transpose(0, 2, 3, 1), theirs.data)
            assert transfer.classes_of(ours)[1].tolist() == [theirs.classes[i] for i in theirs.targets]
            assert len(ours) == n
        assert not ours.labels.any()
    assert data.paths[21] == "train/REAL/group_01/class_21/photo_s_000021.png"
    assert data.name == "cifar100-changed"  # not the published files, and it says so
    assert "NOT as published" in transfer.title(data)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("dumped", [lambda found: python2(found), lambda found: pickle.dumps(found, 4)])
@pytest.mark.parametrize(("function", "arguments", "named"), [
    (os.system, ("touch {}",), "posix.system"), (eval, ("open('{}', 'w')",), "eval"),
    (open, ("{}", "w"), "open"), (np.load, ("{}", None, True), "numpy.load"),
    (np.fromfile, ("{}",), "fromfile"), (getattr, (0, "real"), "getattr")])
def test_a_pickle_that_calls_anything_is_refused_unrun(tmp_path, dumped, function, arguments, named):
    trace = tmp_path / "trace"
    arguments = [text.format(trace) if isinstance(text, str) else text for text in arguments]
    evil = dumped({b"data": Evil(function, *arguments)})
    for name in ("train", "meta"):
        with pytest.raises(TellError, match=named.replace(".", r"\.")) as refused:
            cifar100.read_cifar100(made(tmp_path / "set", **{name: evil}))
        assert "\n" not in str(refused.value)
    assert not trace.exists()


def with_train(**changed) -> bytes:
    return python2(contents()["train"] | {key.encode(): value for key, value in changed.items()})


@pytest.mark.parametrize(("train", "reason"), [
    (with_train(data=np.array([Evil(print, "x"), None], object)), "print"),
    (with_train(data=np.array([1, "a", None], object)), "b'data'"),
    (with_train(data=np.zeros((200, 3072), np.int64)), "b'data'"),
    (with_train(data=np.zeros((200, 3071), np.uint8)), "b'data'"),
    (with_train(data=np.zeros((0, 3072), np.uint8)), "b'data'"),
    (with_train(data=b"x" * 200 * 3072), "b'data'"),
    (with_train(fine_labels=[0] * 199), "fine_labels"),
    (with_train(fine_labels=["0"] * 200), "fine_labels"),
    (with_train(fine_labels=[100] * 200), "outside"),
    (with_train(coarse_labels=[-1] * 200), "outside"),
    (python2([1, 2]), "not a dictionary"), (b"", "not a pickle"), (b"<html>", "not a pickle"),
    (with_train()[:-2000], "not a pickle")])
def test_wrong_contents_are_one_clear_line(tmp_path, train, reason):
    with pytest.raises(TellError) as refused:
        cifar100.read_cifar100(made(tmp_path, train=train))
    assert [word for word in (reason, ": train: ", "fetch cifar100") if word not in str(refused.value)] == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_pixels_in_either_order_are_the_same_pixels(tmp_path, order):
    kept = {name: contents()[name][b"data"] for name in N}
    files = {name: python2(contents()[name] | {b"data": data.copy(order)}) for name, data in kept.items()}
    fortran = cifar100.unpickled(files["train"], "a file")[b"data"].state[3]
    assert fortran == (order == "F")
    data = cifar100.read_cifar100(made(tmp_path, **files))
    assert np.array_equal(data.pixels.reshape(-1, 3072), np.concatenate([kept["train"], kept["test"]]))
    assert data.pixels.flags.c_contiguous


@pytest.mark.parametrize("flag", [2, -1, None, b"\x01", 0.5])
def test_an_order_that_numpy_does_not_write_is_refused(flag):
    dtype = cifar100.Recorded(b"u1", 0, 1)
    array = cifar100.Recorded()
    array.state = (1, (2, 3072), dtype, flag, b"x" * 6144)
    with pytest.raises(TellError, match="b'data' is not"):
        cifar100.pixels_of({b"data": array}, "a file")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), byte=st.integers(0, 255))
def test_any_damaged_byte_is_read_or_named(place, byte):
    data = bytearray(python2(contents()["test"] | {b"data": np.zeros((2, 3072), np.uint8)}))
    data[int(place * (len(data) - 1))] = byte
    with suppress(TellError):
        cifar100.pixels_of(cifar100.unpickled(bytes(data), "a file"), "a file")


def test_missing_files_and_broken_archives_are_named(tmp_path):
    with pytest.raises(TellError, match="without its files meta, test"):
        cifar100.read_cifar100(archive(tmp_path / "a.tar.gz", {"train": b"x"}))
    path = made(tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(TellError, match="not a whole archive"):
        cifar100.read_cifar100(path)


def test_fetch_keeps_only_the_published_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "URL", made(tmp_path / "server").as_uri())
    with pytest.raises(TellError, match="MD5"):
        cifar100.fetch()
    assert list(folder("data").iterdir()) == []
    monkeypatch.setattr(cifar100, "PUBLISHED", {name: hashlib.md5(python2(content)).hexdigest()
                                                for name, content in contents().items()})
    assert cifar100.fetch() == folder("data") / "cifar-100-python.tar.gz"
    assert cifar100.open_photographs().name == "cifar100"
    monkeypatch.setattr(cifar100, "URL", (tmp_path / "nowhere").as_uri())
    assert cifar100.fetch().exists()  # there already
    (folder("data") / "cifar-100-python.tar.gz").unlink()
    with pytest.raises(TellError, match="by hand"):
        cifar100.fetch()
    broken = io.BytesIO()
    broken.read = lambda: (_ for _ in ()).throw(TimeoutError("timed out"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: broken)
    with pytest.raises(TellError, match=r"could not be downloaded \(timed out\); download .* by hand"):
        cifar100.fetch()
    assert list(folder("data").iterdir()) == []


# --- the stand-in, and the study ----------------------------------------------------------------

def test_the_groups_agree_with_wordnets_own_files():
    """WordNet numbers its nouns file by file: animals, artifacts, communication, food, ..."""
    groups = cifar100.imagenet_groups()
    ends = {"n0266": "animal", "n06": "artifact", "n074": "communication", "n08": "food", "n095": "landscape",
            "n11": "person", "n14": "plant or fungus", "n16": "substance"}
    files = {wnid: next(kind for end, kind in ends.items() if wnid < end) for wnid in groups}
    found = {kind: {groups[wnid] for wnid in groups if files[wnid] == kind} for kind in set(files.values())}
    thing = {"vehicle", "building or place", "object"}
    assert len(groups) == 1000
    assert not found["animal"] & (thing | {"food or drink", "landscape", "person", "plant or fungus"})
    assert found["artifact"] == thing
    assert found["food"] == {"food or drink", "object"}  # a menu and a plate
    assert [found[kind] for kind in ("landscape", "person", "plant or fungus")] == [
        {"landscape"}, {"person"}, {"plant or fungus"}]


def make_stand_in(n: int = 60) -> None:
    wnids = (folder("library") / "imagenet_wnids.txt").read_text().split()[:n]
    folder("data").mkdir(exist_ok=True)
    np.savez(folder("data") / "imagenet1000_32px.npz", names=np.array([f"{wnid}_x" for wnid in wnids]),
             images=np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3)).astype(np.uint8))


def save_model(name: str = "base_model", threshold: float = 0.5) -> None:
    torch.manual_seed(0)
    network = build("CIFAKE_CNN")
    checkpoints.write(checkpoints.path_of(name), checkpoints.pack(
        network, "CIFAKE_CNN", {"attn": False}, threshold=threshold, threshold_source="a test", data="none",
        seed=0))


def test_the_study_counts_what_the_saved_scores_say():
    make_stand_in()
    save_model()
    network, _ = checkpoints.load("base_model")
    threshold = float(np.quantile(scoring.predict(network, cifar100.open_photographs()), 0.7))
    save_model(threshold=threshold)
    rows = transfer.main([])["rows"]
    table = read_csv(folder("results") / "false-alarms-imagenet1000.csv")
    paths, labels, logits = scoring.read_scores(folder("results") /
                                                "scores-base_model-imagenet1000-test.csv")
    called = scoring.sigmoid(logits) >= threshold
    assert (len(paths), labels.sum(), called.sum()) == (60, 0, 18)
    whole = rows[0]
    ends = stats.binomtest(int(called.sum()), 60).proportion_ci(0.95, "wilson")
    assert (whole["level"], whole["called_fake"]) == ("all", called.sum())
    assert [whole["false_alarm_low"], whole["false_alarm_high"]] == pytest.approx([ends.low, ends.high])
    birds = np.array([path.split("/")[2] == "bird" for path in paths])
    row = next(row for row in table if row["name"] == "bird" and row["version"] == "as they are")
    assert (int(row["n"]), int(row["called_fake"])) == (birds.sum(), called[birds].sum())
    assert {row["level"] for row in rows} == {"all", "group"}  # a class of one photograph has no rate


def test_cifar100_is_counted_by_its_20_superclasses_and_100_classes():
    made(folder("data"), test=python2(contents()["test"] | {b"fine_labels": [i % 50 for i in range(100)]}))
    save_model()
    rows = transfer.main([])["rows"]
    assert [sum(row["level"] == level for row in rows) for level in ("all", "group", "class")] == [2, 40, 100]
    assert {row["n"] for row in rows if row["level"] == "class"} == {2}
    data = cifar100.open_photographs()
    figures = [transfer.plot_groups(rows, data, transfer.VERSIONS[0], level) for level in ("group", "class")]
    assert [len(figure.axes[0].get_yticks()) for figure in figures] == [20, 50]


def named_as_published():
    """Contents whose third class bears the name of CIFAR-100's that is nearest to one of CIFAKE's."""
    names = [b"class_%02d" % i for i in range(100)]
    names[2] = b"pickup_truck"
    return python2(contents()["meta"] | {b"fine_label_names": names})


def save_cifake_scores(objects: list[str]) -> None:
    """What test.py saves: of each object a real picture called REAL and one called FAKE, and a fake one."""
    rows = [{"path": "x", "label": label, "object": name, "logit": 0, "score": score}
            for name in objects for label, score in ((0, 0.1), (0, 0.9), (1, 0.1))]
    write_csv(folder("results") / "scores-base_model-cifake-test.csv", rows)


def test_of_cifar100_the_class_nearest_to_cifakes_is_compared_and_named(capsys):
    made(folder("data"), meta=named_as_published(),
         test=python2(contents()["test"] | {b"fine_labels": [i % 50 for i in range(100)]}))
    save_model()
    rows = transfer.main([])["rows"]
    assert transfer.seen_classes(rows) == []  # nothing scored on CIFAKE
    save_cifake_scores(["truck", "automobile"])
    capsys.readouterr()
    theirs, ours = transfer.seen_classes(rows)
    assert capsys.readouterr().out == ("No class of CIFAKE is among these photographs; "
                                       "pickup_truck is nearest to CIFAKE's truck.\n")
    assert (theirs["class"], theirs["photographs of"], theirs["n"]) == ("truck", "CIFAKE", 2)
    assert theirs["called_fake"] == 1
    row = next(row for row in rows if (row["name"], row["version"]) == ("pickup_truck", "as they are"))
    assert (ours["class"], ours["photographs of"], ours["n"]) == ("pickup_truck", "cifar100-changed", 2)
    assert ours["called_fake"] == row["called_fake"]


def test_a_group_that_is_cifakes_is_compared_without_a_word(capsys):
    make_stand_in()
    save_model()
    save_cifake_scores(["bird"])
    rows = transfer.main([])["rows"]
    capsys.readouterr()
    assert [row["class"] for row in transfer.seen_classes(rows)] == ["bird", "bird"]
    assert capsys.readouterr().out == ""
    with pytest.raises(TellError, match="no class has more than one photograph"):
        transfer.plot_classes(rows, cifar100.open_photographs(), "base_model")


def test_all_classes_of_one_model_stand_in_one_figure_from_least_to_most():
    made(folder("data"), test=python2(contents()["test"] | {b"fine_labels": [i % 50 for i in range(100)]}))
    save_model()
    rows = transfer.main([])["rows"]
    figure = transfer.plot_classes(rows, cifar100.open_photographs(), "base_model")
    names = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    drawn = np.concatenate([ax.containers[0].lines[0].get_xdata() for ax in figure.axes])
    rates = {row["name"].replace("_", " "): row["false_alarm"] for row in rows
             if (row["level"], row["version"]) == ("class", "as they are")}
    assert len(names) == 50
    assert drawn.tolist() == [rates[name] for name in names] == sorted(rates.values())


def test_equal_rates_p_agrees_with_chi_squared_and_knows_single_pictures():
    n, called = np.array([400, 300, 500]), np.array([200, 170, 230])
    theirs = stats.chi2_contingency([called, n - called], correction=False).pvalue
    assert transfer.equal_rates_p(n, called) == pytest.approx(theirs, abs=0.02)
    assert transfer.equal_rates_p(n, np.array([200, 10, 300])) == 1 / 2001
    assert transfer.equal_rates_p(np.ones(50, int), np.arange(50) % 2) == 1
    assert np.isnan(transfer.equal_rates_p(np.array([]), np.array([])))


def test_damaged_stand_in_and_no_model_are_one_clear_line():
    make_stand_in()
    with pytest.raises(TellError, match="none of base_model"):
        transfer.main(["--smoke"])
    np.savez(folder("data") / "imagenet1000_32px.npz", images=np.array([None], object), names=np.array(["n"]))
    with pytest.raises(TellError, match="imagenet1000_32px.npz"):
        cifar100.open_photographs()


def test_a_model_is_found_by_name():
    save_model("attn_model")
    assert lossless.models_here() == ["attn_model"]


@pytest.mark.usefixtures("sample_is_made")
def test_the_studys_scores_of_the_sample_are_not_test_pys():
    assert cifar100.open_photographs().name == "sample-real"
