"""Any bytes: decoded as a viewer would show them, or named; never a crash, never a lost file."""
import io
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import simplejpeg
from conftest import encoded, jpeg
from hypothesis import given, settings
from PIL import Image

import decode as decode_module
from cache import decode_chunk, decode_file
from decode import DecodeError, decode

GRADIENT = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
PICTURE = Image.fromarray(GRADIENT)


def test_plain_jpeg_equals_pillow():
    data = jpeg(GRADIENT)
    found, note = decode(data)
    assert note == ""
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = (np.arange(1024, dtype=np.uint32).reshape(32, 32) * 64).astype(np.uint16)
    found, note = decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(found[..., 0], grey >> 8)
    assert note == "16-bit grey to RGB"


def test_deep_grey_of_unstated_depth():
    grey = np.arange(1024, dtype=np.int32).reshape(32, 32)
    low, _ = decode(encoded(Image.fromarray(grey // 4), "TIFF"))  # 0..255: eight bit in a wide mode
    np.testing.assert_array_equal(low[..., 0], grey // 4)
    high, _ = decode(encoded(Image.fromarray(grey * 64), "TIFF"))
    np.testing.assert_array_equal(high[..., 0], grey * 64 >> 8)


def test_alpha_is_shown_on_white():
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[16:, :, 3] = 255
    found, _ = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert (found[:16] == 255).all()
    assert (found[16:] == 0).all()


def test_palette_with_transparency():
    picture = PICTURE.quantize(8)
    plain, _ = decode(encoded(picture, "PNG"))
    np.testing.assert_array_equal(plain, np.asarray(picture.convert("RGB")))
    clear, note = decode(encoded(picture, "PNG", transparency=bytes(8)))
    assert (clear == 255).all()
    assert note == "palette to RGB"


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK", "YCbCr", "I"])
def test_every_mode_becomes_rgb(mode):
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "I": "TIFF"}.get(mode, "PNG")
    picture = PICTURE.convert("L").convert(mode) if mode in ("I", "LA") else PICTURE.convert(mode)
    found, note = decode(encoded(picture, kind))
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert note == {"L": "grey to RGB", "1": "black and white to RGB", "LA": "transparent grey to RGB",
                    "CMYK": "CMYK to RGB", "YCbCr": "", "I": "deep grey to RGB"}[mode]


def test_cmyk_has_the_colours_of_the_picture():
    red = Image.new("RGB", (32, 32), (255, 0, 0)).convert("CMYK")
    found, note = decode(encoded(red, "TIFF"))
    assert np.abs(found.astype(int) - [255, 0, 0]).max() < 4
    assert "CMYK" in note


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    found, note = decode(data)
    assert (found[0, 0] == [255, 0, 0]).all()
    assert "first of 3 frames" in note


def test_exif_rotation_is_followed():
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    found, _ = decode(jpeg(wide, exif=exif))
    assert found.shape == (32, 16, 3)
    assert found[2].mean() > 200


def test_giant_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 100)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(DecodeError, match="giant: 32x32 pixels"):
            decode(encoded(PICTURE, kind))


def test_a_decompression_bomb_is_refused():
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 1_000_000
    with pytest.raises(DecodeError, match="400000000 pixels"):
        decode(data)


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "empty file"), (b"hello", "not a readable picture"), (b"\xff\xd8\xff", "not a readable picture"),
    (jpeg(GRADIENT)[:300], "."), (encoded(PICTURE, "PNG")[:80], "."), (b"<svg/>", "not a readable picture")])
def test_what_is_no_picture_is_named(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


SEEDS = [jpeg(GRADIENT), encoded(PICTURE, "PNG"), encoded(PICTURE.quantize(8), "GIF"),
         encoded(PICTURE.convert("CMYK"), "JPEG"), encoded(PICTURE, "WEBP"), encoded(PICTURE, "BMP"),
         encoded(PICTURE, "TIFF")]


def mutated(data, changes, cut):
    found = bytearray(data)
    for where, value in changes:
        found[int(where * (len(data) - 1))] = value
    return bytes(found[:max(1, int(cut * len(data)))])


MUTATED = st.builds(mutated, st.sampled_from(SEEDS),
                    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12), st.floats(0, 1))


@settings(max_examples=400, deadline=None)
@given(st.lists(MUTATED, min_size=1, max_size=5))
def test_mutated_bytes_give_pixels_or_a_reason(files):
    chunk, first = [(f"{i}.jpg", data) for i, data in enumerate(files)], 3
    alone = [decode_file(*file) for file in chunk]
    for (name, _), (found_name, digest, found, note) in zip(chunk, alone, strict=True):
        assert (found_name, len(digest)) == (name, 32)
        assert note if found is None else (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    with tempfile.NamedTemporaryFile() as target:
        entries = decode_chunk(chunk, first, Path(target.name))
        written = np.fromfile(target.name, np.uint8).reshape(-1, 32, 32, 3)
    assert [entry[0] for entry in entries] == [name for name, _ in chunk]  # good + named = all
    good, named = ([entry for entry in entries if (entry[2] is None) == bad] for bad in (False, True))
    assert all(note for *_, note in named)
    rows = [row for *_, row, _ in good]
    assert rows == list(range(first, first + len(good)))  # no picture takes another's place
    pixels = [found for _, _, found, _ in alone if found is not None]
    assert all((written[row] == one).all() for row, one in zip(rows, pixels, strict=True))


def test_simplejpeg_reads_the_header_it_is_trusted_with():
    assert simplejpeg.decode_jpeg_header(jpeg(GRADIENT))[:3] == (32, 32, "YCbCr")
