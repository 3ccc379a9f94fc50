"""GenImage from its tree to a verdict, by the command lines; fine-tuning on a folder of one's own."""
import json

import numpy as np
import pytest
import torch
from conftest import assert_one_line, encoded, jpeg, run_tell
from PIL import Image

import checkpoints
import genimage
import natural
import test as commands
import tiles
import train
from files import TellError, folder, read_csv

COLOURS = {"ADM": 40, "glide": 90, "stable_diffusion_v_1_4": 140}


def picture(red: int, seed: int, kind: str) -> bytes:
    """Noise around a colour: 200 is real, each generator has another."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 40, (48, 56, 3)) + np.array([red, 100, 100])
    return encoded(Image.fromarray(pixels.astype(np.uint8)), kind)


@pytest.fixture
def tree(tmp_path):
    """Three generators in GenImage's layout, 24 pictures a class to learn from."""
    for g, (name, red) in enumerate(COLOURS.items()):
        for half, n in (("train", 24), ("val", 8)):
            for i in range(n):
                seed = 1000 * g + (100 if half == "val" else 0) + i
                for label, file, colour in (("ai", f"{i % 3}_{name.split('_')[0]}_{i}.png", red),
                                            ("nature", f"n01440764_{seed}.JPEG", 200)):
                    path = tmp_path / "GenImage" / name / half / label / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(picture(colour, 2 * seed + (label == "ai"), file.split(".")[1].upper()))
    return tmp_path / "GenImage"


NET = ["--model", "resnet18", "--from-scratch", "--size", "32", "-bs", "16", "-lr", "0.05",
       "--precision", "fp32"]


def test_generator_and_object_heads_from_tree_to_verdict(tree, capsys):
    flags = [*NET, "--data", str(tree), "--heads", "generator", "object", "-ep", "6", "-mf", "gen"]
    reached = train.main(flags)
    assert reached["val_generator_accuracy"] > 0.8
    network, facts = checkpoints.load("gen")
    assert network.heads == {"generator": 9, "object": 1000} == facts["heads"]
    row = commands.main(["-mf", "gen", "--data", str(tree)])["models"][0]
    assert row["n"] == 48
    assert row["accuracy"] > 0.9
    assert row["generator_accuracy"] > 0.8
    assert "generator class" in capsys.readouterr().out
    assert {"path", "label", "object", "logit", "score"} == read_csv(
        folder("results") / "scores-gen-GenImage-test.csv")[0].keys()


def test_resnet50_with_both_heads(tree):
    """At the sizes that GenImage's recipe has, nine generators and 1,000 classes, on few pictures."""
    for path in tree.glob("*/train/*/*"):
        if int(path.stem.split("_")[-1]) % 1000 > 3 or path.parts[-4] != "ADM":
            path.unlink()
    train.main(["--model", "resnet50", "--from-scratch", "--size", "64", "--heads", "generator", "object",
                "-bs", "2", "-ep", "1", "-lr", "0.01", "--data", str(tree), "-mf", "fifty"])
    network, facts = checkpoints.load("fifty")
    assert facts["arguments"]["name"] == "resnet50"
    assert network.heads == {"generator": 9, "object": 1000}
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 1009)
    commands.main(["-mf", "fifty", "--data", str(tree)])


def test_leaving_a_generator_out(tree, capsys):
    train.main([*NET, "--data", str(tree), "-ep", "2", "-mf", "out", "--leave-out", "glide"])
    _, facts = checkpoints.load("out")
    assert facts["recipe"]["leave_out"] == "glide"
    assert facts["pictures"]["train"] + facts["pictures"]["val"] == 2 * 24 + 3 * 24
    row = commands.main(["-mf", "out", "--data", str(tree), "--leave-out", "glide"])["models"][0]
    assert (row["n"], row["fake_as_fake"] + row["fake_as_real"]) == (32, 8)
    assert (folder("results") / "metrics-out-GenImage-test-glide.csv").exists()
    with pytest.raises(TellError, match="with glide and has seen some of what this would test"):
        commands.main(["-mf", "out", "--data", str(tree), "--leave-out", "adm"])
    with pytest.raises(TellError, match="no generator is called 'dalle'"):
        train.main([*NET, "--data", str(tree), "--leave-out", "dalle"])


@pytest.mark.usefixtures("sample_is_made")
def test_what_a_tree_cannot_answer_is_refused(tree, tmp_path):
    split = ["--data", str(tree), "--group", "set"]
    with pytest.raises(TellError, match="--group is for a folder without train/; this one is split already"):
        train.main([*NET, *split])
    network = ["--model", "resnet18", "--from-scratch", "--size", "32", "--heads", "fake", "object"]
    train.main([*network, "--data", "sample", "-ep", "1", "--smoke", "-mf", "ten"])
    with pytest.raises(TellError, match="--group is for a folder without train/"):
        commands.main(["-mf", "ten", *split])
    (tree / "ADM/train/nature/n01440764_0.JPEG").rename(tree / "ADM/train/nature/n01530575_0.JPEG")
    with pytest.raises(TellError, match="have object class 10, the network's head object knows 0 to 9"):
        train.main(["--from", "ten", "--data", str(tree)])


@pytest.mark.parametrize(("trained", "asked", "words"), [
    ([], ["--leave-out", "glide"], "--leave-out glide: .* with none and has seen some"),
    (["--leave-out", "adm"], ["--leave-out", "glide"], "with adm and has seen"),
    (["--group", "set"], ["--group", "content"], "--group content: .* with set and has seen")])
def test_another_split_than_the_one_trained_on_is_no_test(tmp_path, trained, asked, words):
    for i, name in enumerate(("real/1", "real/2", "real/3", "fake/adm", "fake/glide", "fake/4")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        red = 40 if name.startswith("fake") else 200
        for j in range(10):
            (tmp_path / "mine" / name / f"{j}.png").write_bytes(picture(red, 100 * i + j, "PNG"))
    data = ["--data", str(tmp_path / "mine")]
    train.main([*NET, *data, "-ep", "1", "-bs", "8", "-mf", "mine", *trained])
    with pytest.raises(TellError, match=words):
        commands.main(["-mf", "mine", *data, *asked])
    if trained[:1] == ["--leave-out"]:
        row = commands.main(["-mf", "mine", *data, *trained])["models"][0]
        assert row["fake_as_fake"] + row["fake_as_real"] == 10


@pytest.fixture
def own(tmp_path):
    """real/ and fake/ pictures of several sizes without a train folder, one of them broken."""
    random = np.random.default_rng(0)
    for label, low in (("real", 120), ("fake", 0)):
        (tmp_path / "own" / label).mkdir(parents=True)
        for i in range(40):
            noise = random.integers(low, low + 130, (40 + i, 50, 3)).astype(np.uint8)
            (tmp_path / "own" / label / f"{i}.jpg").write_bytes(jpeg(noise))
    (tmp_path / "own/real/broken.png").write_bytes(b"no picture")
    return tmp_path / "own"


def test_fine_tuning_goes_on_from_a_checkpoint_on_its_own_part(own, tree, capsys):
    train.main([*NET, "--data", str(tree), "-ep", "1", "-mf", "first"])
    train.main(["--from", "first", "--freeze", "body.conv1", "body.bn1", "body.layer1", "--data", str(own),
                "-ep", "3", "-bs", "16", "-lr", "0.02", "-mf", "second"])
    first, second = (checkpoints.load(name) for name in ("first", "second"))
    for key, value in second[0].state_dict().items():
        if key.startswith(("body.conv1.", "body.bn1.", "body.layer1.")):
            assert torch.equal(value, first[0].state_dict()[key]), key
    assert not torch.equal(second[0].head.weight, first[0].head.weight)
    assert second[1]["pictures"] == {"train": 48, "val": 16}
    assert second[1]["recipe"]["start"] == "first"
    assert second[1]["recipe"]["augment"] == natural.AUGMENTED  # not the flip and shift of 32 pixels
    capsys.readouterr()
    after = commands.main(["-mf", "second", "--data", str(own)])["models"][0]
    before = commands.main(["-mf", "first", "--data", str(own), "--group", "content"])["models"][0]
    whole = commands.main(["-mf", "first", "--data", str(own)])["models"][0]
    assert (before["n"], after["n"], whole["n"]) == (16, 16, 80)
    assert "broken.png: not a readable picture" in capsys.readouterr().out


def test_pretrained_weights_that_cannot_be_had(own, monkeypatch):
    done = run_tell("train.py", "--model", "efficientnet_b0", "--data", own, HF_HUB_OFFLINE="1",
                    HF_HOME=str(own / "no_hub"))
    assert_one_line(done, "efficientnet_b0", "--weights FILE", "--from-scratch")


def test_labels_follow_the_folders_name_not_the_alphabet(own):
    own.joinpath("real").rename(own / "Real")
    own.joinpath("fake").rename(own / "FAKE")
    from natural import open_pictures
    data = open_pictures(str(own))
    assert all(("/FAKE/" in path) == label for path, label in zip(data.paths, data.labels, strict=True))


def test_pictures_of_questions_are_sorted_by_their_generator(tmp_path):
    source, target = tmp_path / "vqa", tmp_path / "sorted"
    items = [("a.jpg", "natural"), ("b.jpg", "big gan"), ("c.jpg", "big_gan"),
             ("d.jpg", "stable diffusion 1.5")]
    (source / "true-false").mkdir(parents=True)
    (source / "answers").mkdir()
    for i, (name, _) in enumerate(items):
        (source / "true-false" / name).write_bytes(picture(i, i, "JPEG"))
    text = json.dumps([{"image": name, "metadata": {"generator": text}} for name, text in items])
    (source / "true-false/questions.json").write_text(text)
    (source / "answers/base.json").write_text(text)
    counts = genimage.main([str(source), str(target)])
    assert {name: n for name, n in counts.items() if n} == {"nature": 1, "biggan": 2, "sd15": 1}
    from natural import open_pictures
    data = open_pictures(str(target))
    assert [genimage.GENERATORS[i] for i in data.generators] == ["biggan", "biggan", "sd15", "nature"]
    assert (target / "real/nature/true-false_a.jpg").read_bytes() == picture(0, 0, "JPEG")
    (source / "true-false/questions.json").write_text(text.replace("big gan", "dalle"))
    with pytest.raises(TellError, match="b.jpg is by 'dalle', which is no generator of GenImage"):
        genimage.main([str(source), str(target)])


@pytest.mark.parametrize(("files", "words"), [
    ({"one/settings.json": b'{"a": 1}'}, "settings.json: not a list of questions"),
    ({"one/list.json": b"[{"}, "list.json: not a list of questions"),
    ({"a/x/1.png": b"1", "b/x/1.png": b"2"}, "two files are called x/1.png")])
def test_question_sets_that_cannot_be_sorted_are_one_line(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(content)
    with pytest.raises(TellError, match=words):
        genimage.sort_questions(tmp_path / "set", tmp_path / "sorted")


def test_every_script_scores_what_a_network_has_not_seen(own):
    """A folder without train/ is all test, but for the network that was trained on a part of it."""
    train.main([*NET, "--data", str(own), "-ep", "1", "-mf", "held"])
    data, facts = natural.open_pictures(str(own)), checkpoints.load("held")[1]
    held = natural.held_part(data, facts, "test")
    assert 0 < len(held) < len(data) == len(natural.held_part(data, facts | {"fingerprint": "x"}, "test"))
    assert facts["pictures"]["train"] == (natural.with_split(data, 0).splits == "train").sum()
    rows = tiles.main(["-mf", "held", "--data", str(own)])["rows"]
    assert rows[0]["n"] == len(held)
