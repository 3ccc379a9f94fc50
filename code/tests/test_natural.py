"""Pictures of natural size: opened from any form, named when unreadable, split fairly, loaded alike."""
import gc
import hashlib
import itertools
import multiprocessing
import os
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CODE, encoded, jpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datasets
import natural
import sources
from classes import build, feed
from files import TellError, folder
from genimage import GENERATORS, generator_of, imagenet_class
from natural import PictureBatches, leave_out, open_pictures, with_split

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255] * 3}  # the network sees 0..255
WNIDS = (CODE.parent / "library/imagenet_wnids.txt").read_text().split()


def photo(seed: int, height: int = 60, width: int = 40) -> np.ndarray:
    """Smooth noise, different for each seed."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write_all(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def mixed_files(n: int = 12) -> dict[str, bytes]:
    """n real and n fake pictures of several sizes, formats and sub-folders, with a manifest."""
    files, rows = {}, ["path\tgenerator\tset"]
    for i in range(n):
        real = encoded(Image.fromarray(photo(i, 40 + i, 60)), "PNG")
        files[f"real/cam{i % 3}/{i}.png"] = real
        files[f"fake/gen{i % 3}/{i}.jpg"] = jpeg(photo(100 + i, 50, 30 + 3 * i))
        rows += [f"real/cam{i % 3}/{i}.png\tphoto\t",
                 f"fake/gen{i % 3}/{i}.jpg\tstable-diffusion-v1-4\tset{i % 2}"]
    return files | {"manifest.tsv": "\n".join(rows).encode()}


def archived(root: Path, target: Path, prefix: str = "some/prefix") -> Path:
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, Path(prefix) / path.relative_to(root))
        return target
    with tarfile.open(target, "w:" + target.suffix[1:].replace("tar", "")) as archive:
        archive.add(root, prefix)
    return target


@pytest.fixture
def mixed(tmp_path):
    return write_all(tmp_path / "mixed", mixed_files())


def all_of(batches, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, targets = zip(*batches.epoch(epoch), strict=True)
    return torch.cat(pixels), torch.cat(targets)


# --- open --------------------------------------------------------------------------------------

def test_the_table_says_what_the_files_say(mixed):
    data = open_pictures(str(mixed))
    assert len(data) == 24
    assert data.name == "mixed"
    assert data.paths.tolist() == sorted(data.paths.tolist())
    i = data.paths.tolist().index("test/FAKE/gen2/5.jpg")
    assert (data.labels[i], data.splits[i], data.objects[i]) == (1, "test", -1)
    assert (data.heights[i], data.widths[i], data.formats[i]) == (50, 45, "JPEG")
    assert data.sizes[i] == (mixed / "fake/gen2/5.jpg").stat().st_size
    assert GENERATORS[data.generators[i]] == "sd14"
    assert data.groups[i] == "set1"
    np.testing.assert_array_equal(data.pixels(i), np.asarray(Image.open(mixed / "fake/gen2/5.jpg")))
    i = data.paths.tolist().index("test/REAL/cam1/4.png")
    assert (data.labels[i], data.generators[i], data.groups[i], data.formats[i]) == (0, 0, "cam1", "PNG")
    kinds = {"labels": "u1", "objects": "i2", "generators": "i1", "sha256": "u1", "heights": "i8",
             "widths": "i8", "sizes": "i8"}
    assert {column: getattr(data, column).dtype.str[1:] for column in kinds} == kinds


def test_real_and_fake_folders_count_before_those_of_genimage(tmp_path):
    files = {f"{place}/1.jpg": jpeg(photo(i, 9, 9)) for i, place in enumerate(
        ("real/ai", "fake/nature", "ai/fake/glide", "nature/real/adm"))}
    data = open_pictures(str(write_all(tmp_path / "set", files)))
    assert dict(zip(data.paths.tolist(), data.generators.tolist(), strict=True)) == {
        "test/REAL/ai/1.jpg": 0, "test/FAKE/nature/1.jpg": -1, "test/FAKE/glide/1.jpg": 3,
        "test/REAL/adm/1.jpg": 0}


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.xz"])
def test_every_form_gives_the_same_set_and_the_same_pixels(mixed, tmp_path, ending):
    (mixed / "fake/cut.jpg").write_bytes(jpeg(photo(1))[:200])
    plain = open_pictures(str(mixed))
    packed = open_pictures(str(archived(mixed, tmp_path / f"packed.{ending}")))
    assert packed.fingerprint == plain.fingerprint
    assert packed.unreadable == plain.unreadable
    assert Path(packed.root).stat().st_size == packed.sizes.sum()
    for column in ("paths", "splits", "labels", "objects", "generators", "groups", "sha256", "heights",
                   "widths", "formats", "sizes", "notes"):
        np.testing.assert_array_equal(getattr(packed, column), getattr(plain, column), err_msg=column)
    for i in range(len(plain)):
        np.testing.assert_array_equal(packed.pixels(i), plain.pixels(i))


def test_labels_come_from_folders_not_from_order(tmp_path):
    seeds = itertools.count()
    files = {f"{split}/{label}/{i}.png": encoded(Image.fromarray(photo(next(seeds))), "PNG")
             for split in ("a/TRAIN", "a/Valid", "a/test") for label in ("Fake", "REAL") for i in range(2)}
    data = open_pictures(str(write_all(tmp_path / "set", files)))
    for path, split, label in zip(data.paths, data.splits, data.labels, strict=True):
        assert path.startswith(f"{split}/{('REAL', 'FAKE')[label]}/")
    assert set(datasets.describe(data).values()) == {2}
    assert len(datasets.describe(data)) == 6


def test_validation_is_carved_from_train_where_there_is_none(tmp_path):
    seeds = itertools.count()
    files = {f"{split}/{label}/{i}.png": encoded(Image.fromarray(photo(next(seeds), 9, 9)), "PNG")
             for split in ("train", "test") for label in ("fake", "real") for i in range(20)}
    counts = datasets.describe(open_pictures(str(write_all(tmp_path / "set", files))))
    assert counts == {"train REAL": 18, "train FAKE": 18, "val REAL": 2, "val FAKE": 2,
                      "test REAL": 20, "test FAKE": 20}


def test_odd_pictures_are_served_and_bad_ones_named(mixed):
    grey, colour = photo(3)[..., 0], photo(4)
    moving = [Image.fromarray(photo(i)).convert("P") for i in (5, 6)]
    rotated = Image.Exif()
    rotated[0x0112] = 6
    odd = {"palette.png": encoded(Image.fromarray(colour).convert("P"), "PNG"),
           "deep.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
           "cmyk.jpg": encoded(Image.fromarray(colour).convert("CMYK"), "JPEG"),
           "rgba.png": encoded(Image.fromarray(colour).convert("RGBA"), "PNG"),
           "moving.gif": encoded(moving[0], "GIF", save_all=True, append_images=moving[1:]),
           "turned.jpg": encoded(Image.fromarray(colour), "JPEG", exif=rotated),
           "web.webp": encoded(Image.fromarray(colour), "WEBP", lossless=True),
           "dot.bmp": encoded(Image.fromarray(colour[:1, :1]), "BMP")}
    bad = {"zero.jpg": b"", "text.png": b"no picture", "cut.jpg": jpeg(colour)[:300],
           "cut.png": encoded(Image.fromarray(colour), "PNG")[:900],
           "float.tif": encoded(Image.fromarray(grey.astype(np.float32)), "TIFF"),
           "bomb.png": encoded(Image.new("1", (10_100, 10_000)), "PNG")}
    write_all(mixed / "fake", odd | bad)
    (mixed / "fake/nowhere.jpg").symlink_to(mixed / "gone.jpg")
    os.mkfifo(mixed / "fake/pipe.jpg")
    data = open_pictures(str(mixed))
    assert len(data) == 24 + len(odd)
    reasons = {path.split("/")[-1]: reason for path, reason in data.unreadable}
    assert reasons.keys() == {*bad, "nowhere.jpg", "pipe.jpg"}
    assert reasons["zero.jpg"] == "empty file"
    assert "giant" in reasons["bomb.png"]
    assert "not a regular file" in reasons["pipe.jpg"]
    found = {path.split("/")[-1]: i for i, path in enumerate(data.paths)}
    assert data.formats[[found[name] for name in odd]].tolist() == [
        "PNG", "PNG", "JPEG", "PNG", "GIF", "JPEG", "WEBP", "BMP"]
    assert (data.heights[found["turned.jpg"]], data.widths[found["turned.jpg"]]) == (40, 60)
    np.testing.assert_array_equal(data.pixels(found["deep.png"])[..., 0], grey)
    assert "first of 2 frames" in data.notes[found["moving.gif"]]
    pixels, _ = all_of(PictureBatches(data, 8, 24, PLAIN, workers=0))
    assert pixels.shape == (24 + len(odd), 3, 24, 24)


@pytest.mark.parametrize(("files", "words"), [
    ({"cats/1.jpg": b"x"}, "no file under a REAL or FAKE folder"),
    ({"real/1.jpg": b"x"}, "none of its 1 files is a readable picture"),
    ({"a/real/1.jpg": jpeg(photo(1)), "b/real/1.jpg": jpeg(photo(2))}, "two files claim the place test/REAL"),
    ({"real/1.jpg": jpeg(photo(1)), "manifest.csv": b"file\nreal/1.jpg"}, "not a UTF-8 table with a `path`"),
    ({"real/1.jpg": jpeg(photo(1)), "manifest.csv": b"path\n\xff\xfe"}, "not a UTF-8 table"),
    ({"real/1.jpg": jpeg(photo(1)), "manifest.csv": b"path\nreal/2.jpg"}, "none of its paths is a picture")])
def test_a_folder_that_is_no_set_of_pictures(tmp_path, files, words):
    with pytest.raises(TellError, match=words):
        open_pictures(str(write_all(tmp_path / "set", files)))
    assert not [path for path in folder("cache").iterdir() if path.name != ".lock"]


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(mixed, tmp_path, ending):
    path = archived(mixed, tmp_path / f"half.{ending}")
    whole = path.read_bytes()
    for share in np.linspace(0.05, 0.7, 20):
        path.write_bytes(whole[:int(share * len(whole)) // 512 * 512])  # between blocks of tar
        with pytest.raises(TellError, match="not a whole archive"):
            list(sources.files_of(path))
    with pytest.raises(TellError, match="not a whole archive"):
        open_pictures(str(path))
    assert not [path for path in folder("cache").iterdir() if path.name != ".lock"]


def test_the_checksum_of_a_compressed_tar_is_read(mixed, tmp_path):
    path = archived(mixed, tmp_path / "whole.tar.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(TellError, match="not a whole archive"):
        open_pictures(str(path))


def test_a_set_is_found_under_the_data_root(mixed):
    folder("data").mkdir(exist_ok=True)
    archived(mixed, folder("data") / "wild.zip")
    assert open_pictures("wild").name == "wild"
    with pytest.raises(TellError, match="nowhere: no such file or folder"):
        open_pictures("nowhere")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_second_start_decodes_nothing_and_a_changed_source_all(mixed, tmp_path, monkeypatch, form):
    source = archived(mixed, tmp_path / "packed.zip") if form == "zip" else mixed
    first = open_pictures(str(source))
    with monkeypatch.context() as patch:
        patch.setattr(natural, "inspect_all", lambda *args: pytest.fail("decoded again"))
        patch.setattr(natural, "FileLock", lambda path: pytest.fail("waited for who builds another set"))
        again = open_pictures(str(source))
    assert (again.fingerprint, again.unreadable) == (first.fingerprint, first.unreadable)
    np.testing.assert_array_equal(again.paths, first.paths)
    (mixed / "real/cam0/0.png").write_bytes(encoded(Image.new("RGB", (9, 7)), "PNG"))
    if form == "zip":
        archived(mixed, source)
    changed = open_pictures(str(source))
    assert changed.fingerprint != first.fingerprint
    assert changed.heights[changed.paths.tolist().index("test/REAL/cam0/0.png")] == 7
    assert len(list(folder("cache").glob("natural-*.npz"))) == 1  # the old one is gone


def test_a_damaged_cache_is_built_again(mixed, tmp_path):
    source = archived(mixed, tmp_path / "packed.tar")
    fingerprint = open_pictures(str(source)).fingerprint
    for name, content in (("npz", b"PK"), ("npz", b""), ("blob", b"short")):
        next(folder("cache").glob(f"natural-*.{name}")).write_bytes(content)
        assert open_pictures(str(source)).fingerprint == fingerprint
    next(folder("cache").glob("natural-*.blob")).unlink()
    assert open_pictures(str(source)).pixels(0).shape == (50, 30, 3)


def test_two_processes_at_once_share_one_table(mixed, monkeypatch):
    context = multiprocessing.get_context("fork")
    answers, built, build = context.Queue(), context.Value("i"), natural.build

    def counted(*args):
        with built:
            built.value += 1
        return build(*args)

    def answer():
        answers.put(open_pictures(str(mixed)).fingerprint)
    monkeypatch.setattr(natural, "build", counted)
    both = [context.Process(target=answer) for _ in range(2)]
    for process in both:
        process.start()
    assert {answers.get(timeout=60) for _ in both} == {open_pictures(str(mixed)).fingerprint}
    assert built.value == 1
    for process in both:
        process.join(60)


def test_kill_while_the_table_is_made(mixed, monkeypatch):
    context = multiprocessing.get_context("fork")
    inside = context.Event()
    with monkeypatch.context() as patch:
        patch.setattr(natural, "columns", lambda *args: inside.set() or time.sleep(60))
        process = context.Process(target=open_pictures, args=(str(mixed),))
        process.start()
    assert inside.wait(30)
    process.kill()
    process.join(30)
    assert not list(folder("cache").glob("natural-*"))
    assert len(open_pictures(str(mixed))) == 24
    assert len([path for path in folder("cache").iterdir() if path.name != ".lock"]) == 2  # and no leftovers


def test_take_head_and_split_keep_the_columns_together(mixed):
    data = with_split(open_pictures(str(mixed)), 0)
    part = data.split("train").head(5)
    assert len(part) == 5
    part.require_both_classes()
    for i in range(len(part)):
        k = data.paths.tolist().index(part.paths[i])
        for column in ("labels", "sizes", "files", "groups", "splits"):
            assert getattr(data, column)[k] == getattr(part, column)[i]
    with pytest.raises(TellError, match="no picture in its val split"):
        open_pictures(str(mixed)).split("val")
    with pytest.raises(TellError, match="needs REAL and FAKE"):
        data.take(data.labels == 1).require_both_classes()


# --- GenImage ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "spellings"), [
    ("adm", "ADM, adm, imagenet_ai_0508_adm"),
    ("biggan", "BigGAN, big gan, big_gan, Big-GAN, imagenet_ai_0419_biggan"),
    ("glide", "glide, GLIDE, imagenet_glide"),
    ("midjourney", "Midjourney, imagenet_midjourney, MidJourney v5"),
    ("sd14", "stable_diffusion_v_1_4, Stable Diffusion v1.4, sdv14, SD 1.4, SDv1.4, sd14, sdv4, "
             "imagenet_ai_0419_sdv4, stable-diffusion-1-4"),
    ("sd15", "stable_diffusion_v_1_5, Stable Diffusion 1.5, SD-v1-5, sd15, sdv5, imagenet_ai_0424_sdv5"),
    ("vqdm", "VQDM, vq-dm, VQ-Diffusion, imagenet_ai_0419_vqdm"),
    ("wukong", "wukong, Wukong, imagenet_ai_0424_wukong"), ("nature", "nature, Nature, real")])
def test_generators_are_known_in_many_spellings(name, spellings):
    assert {GENERATORS[generator_of(text)] for text in spellings.split(", ")} == {name}


@pytest.mark.parametrize("text", [
    "", "ai", "imagenet", "sd", "sdv1", "sd1", "sd4", "stable_diffusion", "stable_diffusion_v_1", "sdv145",
    "sd 1.45", "SDv15-dpmsolver-25-15K", "SD-V1.5Real-dpms-25", "SDv2", "sdxl", "stable_diffusion_v_2_1_4",
    "StyleGAN", "gan", "biggan-deep", "StyleGAN+glide", "midjourney v6", "not wukong", "unknown",
    "imagenet_DALLE2", "sd14 and sd15", "1.4", "v_1_5", "diffusion1"])
def test_unknown_generators_are_not_guessed(text):
    assert generator_of(text) == -1


@given(st.text())
def test_any_text_has_a_generator_or_none(text):
    assert -1 <= generator_of(text) < len(GENERATORS)


@pytest.mark.parametrize(("name", "expected"), [
    ("n01440764_10026.JPEG", 0), ("n15075141_1.JPEG", 999), ("n02123045_tabby.jpg", 281),
    ("n01440764.png", 0), ("n00000000_1.JPEG", -1), ("0_adm_12.PNG", 0), ("123_adm_45.PNG", 123),
    ("007_sdv5_00027.png", 7),
    ("GLIDE_1000_200_05_510_glide_00008.png", 510), ("VQDM_1000_200_00_017_vqdm_00020.png", 17),
    ("112_midjourney_23.jpg", 112), ("789_biggan_00101.png", 789), ("5_stable_diffusion_v_1_4_003.png", 5),
    ("ILSVRC2012_val_00000744.JPEG", -1), ("1234_adm_5.png", -1), ("12_dalle_5.png", -1), ("adm_5.png", -1),
    ("12_adm.png", -1), ("12_nature_5.png", -1), ("photo.jpg", -1), ("12", -1)])
def test_imagenet_classes_come_from_names(name, expected):
    assert imagenet_class(name, {wnid: i for i, wnid in enumerate(WNIDS)}) == expected


def test_the_wordnet_ids_are_imagenets():
    assert len(set(WNIDS)) == 1000
    assert sorted(WNIDS) == WNIDS
    assert [WNIDS[i] for i in (0, 281, 999)] == ["n01440764", "n02123045", "n15075141"]


def genimage_files() -> dict[str, bytes]:
    """Ten real and ten fake pictures for each half of three generators, of which one is not GenImage's."""
    files, seeds = {}, itertools.count()
    generators = {"BigGAN/imagenet_ai_0419_biggan": "{i}_biggan_0001.png", "imagenet_DALLE2": "{i}_x.png",
                  "glide/imagenet_glide": "GLIDE_1000_200_00_{i:03d}_glide_0001.png"}
    for (where, fake), split, i in itertools.product(generators.items(), ("train", "val"), range(10)):
        real = f"{WNIDS[i]}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i:08d}.JPEG"
        files[f"{where}/{split}/nature/{real}"] = jpeg(photo(next(seeds), 20, 20))
        picture = Image.fromarray(photo(next(seeds), 20, 20))
        files[f"{where}/{split}/ai/{fake.format(i=i)}"] = encoded(picture, "PNG")
    return files


@pytest.fixture
def genimage(tmp_path):
    return write_all(tmp_path / "GenImage", genimage_files())


def test_a_genimage_tree_with_several_generators(genimage, tmp_path):
    data = open_pictures(str(genimage))
    assert len(data) == 120
    counts = datasets.describe(data)
    assert (counts["test REAL"], counts["test FAKE"]) == (30, 30)  # GenImage's val
    assert counts["val REAL"] + counts["train REAL"] == 30
    assert counts["val FAKE"] > 0
    columns = (column.tolist() for column in (data.labels, data.generators, data.objects, data.groups))
    found = dict(zip(data.paths.tolist(), zip(*columns, strict=True), strict=True))
    assert found["train/FAKE/glide/GLIDE_1000_200_00_007_glide_0001.png"] == (1, 3, 7, "glide")
    assert found["test/FAKE/biggan/3_biggan_0001.png"] == (1, 2, 3, "biggan")
    assert found[f"train/REAL/biggan/{WNIDS[9]}_9.JPEG"] == (0, 0, 9, "biggan")
    assert found["test/REAL/glide/ILSVRC2012_val_00000004.JPEG"] == (0, 0, -1, "glide")
    assert found["train/FAKE/imagenet_DALLE2/2_x.png"] == (1, -1, -1, "imagenet_DALLE2")
    packed = open_pictures(str(archived(genimage, tmp_path / "tiny.zip")))
    assert packed.fingerprint == data.fingerprint


@pytest.mark.parametrize(("root", "splits"), [
    ("glide/imagenet_glide", {"train", "val", "test"}), ("BigGAN/imagenet_ai_0419_biggan/val", {"test"})])
def test_a_part_of_a_genimage_tree(genimage, root, splits):
    data = open_pictures(str(genimage / root))
    assert set(data.splits.tolist()) == splits
    if "glide" in root:
        assert set(data.generators[data.labels == 1].tolist()) == {GENERATORS.index("glide")}


# --- splits ------------------------------------------------------------------------------------

@pytest.fixture
def grouped(tmp_path):
    """60 real and 60 fake pictures in 12 groups of both, some files twice or under both labels."""
    files = {}
    for i in range(60):
        files[f"real/g{i % 12}/{i}.png"] = encoded(Image.fromarray(photo(i, 6, 6)), "PNG")
        files[f"fake/g{i % 12}/{i}.png"] = encoded(Image.fromarray(photo(1000 + i, 6, 6)), "PNG")
    for i in (3, 4, 5):
        files[f"real/g{i + 6}/copy{i}.png"] = files[f"real/g{i}/{i}.png"]  # in another group
        files[f"fake/g{i}/same{i}.png"] = files[f"real/g{i}/{i}.png"]
    return write_all(tmp_path / "grouped", files)


def sides(data, keys) -> dict:
    found = {}
    for key, split in zip(keys, data.splits.tolist(), strict=True):
        found.setdefault(key, set()).add(split)
    return found


@pytest.mark.parametrize("group", ["content", "set"])
def test_no_file_and_no_group_is_on_two_sides(grouped, group):
    for seed in range(5):
        data = with_split(open_pictures(str(grouped)), seed, group=group)
        assert all(len(found) == 1 for found in sides(data, map(bytes, data.sha256)).values())
        whole = [len(found) == 1 for found in sides(data, data.groups.tolist()).values()]
        assert all(whole) == (group == "set")
        counts = datasets.describe(data)
        assert len(counts) == 6
        tolerance = 2 if group == "content" else 11
        for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
            for label in ("REAL", "FAKE"):
                assert abs(counts[f"{name} {label}"] - 63 * share) <= tolerance, (seed, counts)


def test_a_split_depends_on_seed_and_content_not_on_order_or_place(grouped, tmp_path, monkeypatch):
    data = open_pictures(str(grouped))
    whole = sources.entries_of
    monkeypatch.setattr(sources, "entries_of", lambda place: whole(place)[::-1])
    backwards = lambda entries, **options: sorted(entries, **options)[::-1]  # noqa: E731
    monkeypatch.setattr(sources, "sorted", backwards, raising=False)
    grouped.rename(tmp_path / "elsewhere")
    other = open_pictures(str(tmp_path / "elsewhere"))
    assert other.fingerprint == data.fingerprint
    np.testing.assert_array_equal(other.paths, data.paths)
    turned = data.take(np.arange(len(data))[::-1])
    for group in ("content", "set"):
        first = with_split(data, 1, group=group).splits
        np.testing.assert_array_equal(with_split(other, 1, group=group).splits, first)
        np.testing.assert_array_equal(with_split(turned, 1, group=group).splits[::-1], first)
        assert (with_split(data, 2, group=group).splits != first).any()


def test_a_split_of_known_contents_never_changes():
    """What a machine with another numpy, another file system or another locale has to give, too."""
    sha256 = np.stack([np.frombuffer(hashlib.sha256(b"%d" % i).digest(), np.uint8) for i in range(16)])
    columns = dict.fromkeys(natural.PictureSet.__dataclass_fields__, np.zeros(16))
    data = natural.PictureSet(**columns | {"sha256": sha256, "labels": np.arange(16) % 2,
                                           "groups": np.array([f"g{i // 4}" for i in range(16)])})
    by_content, by_set = (with_split(data, 3, group=group).splits for group in ("content", "set"))
    assert "".join(split[1] for split in by_content) == "rrraearrarrearrr"
    assert "".join(split[1] for split in by_set) == "eeeerrrrrrrraaaa"


@pytest.mark.parametrize("wrong", [{"group": "sets"}, {"shares": (0.6, 0.2, 0.3)},
                                   {"shares": (1.2, -0.1, -0.1)}])
def test_a_split_that_cannot_be(mixed, wrong):
    with pytest.raises(TellError, match="a split is by content or set"):
        with_split(open_pictures(str(mixed)), 0, **wrong)


def test_leave_one_generator_out(genimage):
    twin = genimage / "glide/imagenet_glide/val/nature/ILSVRC2012_val_00000004.JPEG"
    write_all(genimage / "BigGAN/imagenet_ai_0419_biggan/train", {"nature/twin.JPEG": twin.read_bytes()})
    data = open_pictures(str(genimage))
    learnt, tested = leave_out(data, "glide")
    assert set(tested.splits.tolist()) == {"test"}
    assert set(learnt.splits.tolist()) == {"train", "val"}
    glide, fake = GENERATORS.index("glide"), tested.labels == 1
    assert set(tested.generators[fake].tolist()) == {glide}
    assert fake.sum() == 10
    assert (~fake).sum() == 30
    assert set(learnt.generators.tolist()) == {0, GENERATORS.index("biggan"), -1}
    assert not set(map(bytes, learnt.sha256)) & set(map(bytes, tested.sha256))
    assert len(learnt) == 50  # 30 real ones, 20 fakes, without the twin
    with pytest.raises(TellError, match="no generator is called 'dalle'"):
        leave_out(data, "dalle")
    with pytest.raises(TellError, match="needs REAL and FAKE"):
        leave_out(data, "adm")


def test_every_picture_of_a_generator_left_out_is_tested_where_there_is_no_split(grouped):
    data = open_pictures(str(grouped))
    data = replace(data, generators=np.where(data.labels == 1, 1 + np.arange(len(data)) % 4, 0))
    learnt, tested = leave_out(with_split(data, 0, left_out="glide"), "glide")
    glide = GENERATORS.index("glide")
    assert (tested.generators == glide).sum() == (data.generators == glide).sum() > 10
    assert set(learnt.generators.tolist()) == {0, 1, 2, 4}
    assert set(learnt.splits.tolist()) == {"train", "val"}
    assert not set(map(bytes, learnt.sha256)) & set(map(bytes, tested.sha256))
    with pytest.raises(TellError, match="no generator is called 'dalle'"):
        with_split(data, 0, left_out="dalle")


# --- batches -----------------------------------------------------------------------------------

def test_without_seed_every_picture_once_in_order(mixed):
    data = open_pictures(str(mixed))
    batches = PictureBatches(data, 7, 20, PLAIN, workers=0, heads=("generator", "fake", "object"))
    shapes = [tuple(pixels.shape) for pixels, _ in batches]
    assert shapes == [(7, 3, 20, 20)] * 3 + [(3, 3, 20, 20)]
    assert len(batches) == 4
    pixels, targets = all_of(batches)
    assert pixels.dtype == torch.float32
    assert next(iter(batches))[0].is_contiguous(memory_format=torch.channels_last)
    assert targets.dtype == torch.int64
    np.testing.assert_array_equal(targets, np.stack([data.generators, data.labels, data.objects], 1))


def test_the_centre_is_what_resizing_and_cropping_gives(tmp_path):
    wide = photo(0, 64, 96)
    files = {"real/a.png": encoded(Image.fromarray(wide), "PNG"),
             "fake/b.png": encoded(Image.fromarray(wide.transpose(1, 0, 2)), "PNG"),
             "fake/c.png": encoded(Image.fromarray(wide[:32, :32]), "PNG"),
             "fake/line.png": encoded(Image.fromarray(photo(1, 1, 5000)), "PNG")}
    data = open_pictures(str(write_all(tmp_path / "set", files)))
    normalisation = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    pixels, _ = all_of(PictureBatches(data, 4, 32, normalisation, workers=0))
    landscape, portrait = Image.fromarray(wide), Image.fromarray(wide.transpose(1, 0, 2))
    expected = [np.asarray(portrait.resize((32, 48), Image.Resampling.BICUBIC))[8:40], wide[:32, :32], None,
                np.asarray(landscape.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]]
    for found, wanted in zip(pixels, expected, strict=True):
        if wanted is not None:
            wanted = (wanted / 255 - normalisation["mean"]) / normalisation["std"]
            np.testing.assert_allclose(found.permute(1, 2, 0), wanted, atol=1e-5)


@pytest.mark.parametrize("augment", [False, True])
def test_workers_change_nothing_and_a_resumed_run_sees_the_same(mixed, augment):
    data = open_pictures(str(mixed))
    def batches(workers, data=data):
        return PictureBatches(data, 5, 24, PLAIN, seed=3, augment=augment, workers=workers)
    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) == 4
    epochs = [all_of(alone, epoch) for epoch in range(4)]
    for epoch in (0, 1, 3):
        pixels, targets = all_of(helped, epoch)
        assert torch.equal(pixels, epochs[epoch][0])
        assert torch.equal(targets, epochs[epoch][1])
    assert torch.equal(all_of(batches(1), 3)[0], epochs[3][0])  # as after an interruption
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert len(epochs[0][0]) == 20


def test_augmentation_is_of_the_picture_wherever_it_stands(mixed):
    data = open_pictures(str(mixed))
    views = natural.Views(data, 24, 7, augment=True)
    turned = natural.Views(data.take(np.arange(24)[::-1]), 24, 7, augment=True)
    assert torch.equal(views[(2, [3, 5])], turned[(2, [20, 18])])
    assert not torch.equal(views[(2, [3])], views[(3, [3])])
    assert not torch.equal(views[(2, [3])], natural.Views(data, 24, 8, augment=True)[(2, [3])])


def test_each_picture_and_epoch_has_random_numbers_of_its_own(mixed, monkeypatch):
    draws = []
    monkeypatch.setattr(natural, "augmented", lambda picture, size, random: draws.append(random.random()) or
                        np.zeros((size, size, 3), np.uint8))
    views = natural.Views(open_pictures(str(mixed)), 24, 7, augment=True)
    for epoch in range(2):
        views[(epoch, list(range(24)))]
    assert len(set(draws)) == 48


def test_augmented_views_are_crops_mirrored_and_compressed_as_often_as_said(monkeypatch):
    boxes, qualities, blurred = [], [], []

    def noted(module, name, notes, position):
        whole = getattr(module, name)

        def call(*args, **options):
            notes.append(args[position])
            return whole(*args, **options)
        monkeypatch.setattr(module, name, call)
    noted(Image.Image, "resize", boxes, 3)
    noted(natural.simplejpeg, "encode_jpeg", qualities, 1)
    noted(natural.ImageFilter, "GaussianBlur", blurred, 0)
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None] * 4, (40, 60, 3))
    picture, mirrored = Image.fromarray(np.ascontiguousarray(ramp)), 0
    for seed in range(1000):
        view = natural.augmented(picture, 16, np.random.default_rng(seed)).astype(int)
        assert view.shape == (16, 16, 3)
        mirrored += view[:, 0].mean() > view[:, -1].mean()
    left, top, right, bottom = np.array(boxes).T
    width, height = right - left, bottom - top
    assert 0 <= left.min() < 1
    assert 59 < right.max() <= 60
    assert top.min() >= 0
    assert bottom.max() <= 40
    share = width * height / 2400
    assert 0.4 < share.min() < 0.55
    assert 0.85 < share.max() <= 1
    assert abs(np.log(width / height)).max() <= np.log(4 / 3) + 1e-9
    assert 430 < mirrored < 570
    assert 430 < len(qualities) < 570
    assert (min(qualities), max(qualities)) == (50, 95)
    assert 60 < len(blurred) < 140


def test_augmentation_of_extreme_shapes():
    for height, width in ((1, 1), (1, 3000), (3000, 1), (2, 3)):
        for seed in range(20):
            picture = Image.fromarray(photo(0, height, width))
            view = natural.augmented(picture, 16, np.random.default_rng(seed))
            assert (view.shape, view.dtype) == ((16, 16, 3), np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_vanished_is_one_clear_line(mixed, workers):
    data = open_pictures(str(mixed))
    batches = PictureBatches(data, 4, 20, PLAIN, workers=workers)
    content = (mixed / "real/cam2/5.png").read_bytes()
    (mixed / "real/cam2/5.png").unlink()
    with pytest.raises(TellError) as caught:
        list(batches)
    assert str(mixed / "real/cam2/5.png") in str(caught.value)
    assert "No such file" in str(caught.value)
    assert "\n" not in str(caught.value)
    (mixed / "real/cam2/5.png").write_bytes(content[:100])
    with pytest.raises(TellError, match="cam2/5.png could be read when the set was opened, but not now"):
        list(batches)
    (mixed / "real/cam2/5.png").write_bytes(content)
    assert len(all_of(batches)[0]) == 24  # the same workers go on
    start = time.perf_counter()
    del batches, caught
    gc.collect()
    assert time.perf_counter() - start < 4  # torch waits 5 s for each worker that does not hear it


def test_a_blob_that_vanished_is_one_clear_line(mixed, tmp_path):
    data = open_pictures(str(archived(mixed, tmp_path / "packed.zip")))
    Path(data.root).unlink()
    with pytest.raises(TellError, match="blob: test/FAKE/gen0/0.jpg could be read"):
        data.pixels(0)


def test_an_epoch_broken_off_does_not_leak_into_the_next(mixed):
    data = open_pictures(str(mixed))
    batches = PictureBatches(data, 2, 20, PLAIN, seed=0, workers=2)
    expected, _ = all_of(PictureBatches(data, 2, 20, PLAIN, seed=0, workers=0), 1)
    for _ in range(3):
        next(batches.epoch(0))
        assert torch.equal(all_of(batches, 1)[0], expected)
    running = batches.epoch(0)
    next(running)
    next(batches.epoch(1))
    with pytest.raises(RuntimeError, match="another epoch"):
        next(running)


def test_loading_leaves_torchs_own_random_numbers_alone(mixed):
    data = open_pictures(str(mixed))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for workers in (0, 1):
        all_of(PictureBatches(data, 4, 20, PLAIN, seed=0, augment=True, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_several_processes_share_each_batch(mixed):
    data = open_pictures(str(mixed))
    whole, _ = all_of(PictureBatches(data, 6, 20, PLAIN, seed=1, workers=0))
    parts = [all_of(PictureBatches(data, 6, 20, PLAIN, seed=1, part=(i, 2), workers=0))[0] for i in (0, 1)]
    assert torch.equal(parts[0].view(4, 3, 3, 20, 20), whole.view(4, 6, 3, 20, 20)[:, ::2])
    assert torch.equal(parts[1].view(4, 3, 3, 20, 20), whole.view(4, 6, 3, 20, 20)[:, 1::2])


def test_a_batch_larger_than_the_set(mixed):
    with pytest.raises(TellError, match="batch size 25 is larger than the 24 pictures"):
        PictureBatches(open_pictures(str(mixed)), 25, 20, PLAIN, seed=0)


@pytest.mark.parametrize(("processes", "expected"), [(None, 8), ("4", 2), ("16", 1)])
def test_each_process_decodes_on_its_share_of_the_cores(mixed, monkeypatch, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    data = open_pictures(str(mixed))
    network = build("Backbone", name="resnet18", size=32, heads={"fake": 1})
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert feed(data, network, 4, "cpu").loader.num_workers == expected


def test_the_workers_end_with_their_batches(mixed):
    batches = PictureBatches(open_pictures(str(mixed)), 4, 20, PLAIN, workers=2)
    all_of(batches)
    workers = batches.loader._iterator._workers
    assert all(worker.is_alive() for worker in workers)
    del batches
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_gets_the_same_pixels(mixed):
    data = open_pictures(str(mixed))
    options = {"seed": 0, "augment": True, "heads": ("fake", "generator")}
    here, there = (all_of(PictureBatches(data, 4, 20, PLAIN, device, **options), 2)
                   for device in ("cpu", "cuda"))
    assert there[0].device.type == there[1].device.type == "cuda"
    torch.testing.assert_close(there[0].cpu(), here[0])
    assert torch.equal(there[1].cpu(), here[1])
