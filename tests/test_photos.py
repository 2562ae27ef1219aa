"""Laws of reading photos and masks from files, and what is said of files that cannot be used."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features

from mudi_core.levels import Levels
from mudi_core.subjects import photos, picture_file
from mudi_core.subjects.photos import MissingMask, NoPhotos, passed_over, read_masks, read_photos
from mudi_core.subjects.picture_file import BadPhoto, read_mask, read_photo
from mudi_core.types import BadSubject, Photo, Subject

rng = np.random.default_rng(0)
COLOURS = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(path, pixels=COLOURS, orientation=None, **options):
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation is not None:
        options["exif"] = picture.getexif()
        options["exif"][0x0112] = orientation
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("name, options", [("a.png", {}), ("a.webp", {"lossless": True}), ("noext", {"format": "PNG"})])
def test_lossless_files_are_read_to_the_bit(tmp_path, name, options):
    photo = read_photo(save(tmp_path / name, **options))
    assert photo.name == name and photo.source == tmp_path / name and photo.size == (60, 40)
    assert torch.equal((photo.image * 255).round().to(torch.uint8), torch.from_numpy(COLOURS))
    assert photo.image.max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_and_mask_come_upright_whatever_the_camera_did(tmp_path, orientation):
    upright = read_photo(save(tmp_path / "upright.png")).image
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the Pillow transposition that undoes it
    stored = Image.fromarray(COLOURS)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    photo = read_photo(save(tmp_path / "photo.png", stored, orientation))
    assert torch.equal(photo.image, upright)

    mask = Image.fromarray(COLOURS[:, :, 0])
    expected = torch.from_numpy(COLOURS[:, :, 0]).float() / 255
    assert torch.equal(read_mask(save(tmp_path / "drawn_upright.png", mask), photo), expected)
    turned = mask.transpose(Image.Transpose(undo[orientation])) if orientation in undo else mask
    assert torch.equal(read_mask(save(tmp_path / "with_exif.png", turned, orientation), photo), expected)
    if orientation >= 5:  # its size tells that it belongs to the pixels as stored
        assert torch.equal(read_mask(save(tmp_path / "as_stored.png", turned), photo), expected)


@pytest.mark.parametrize(
    "mode, expected",
    [("L", (0.2, 0.2, 0.2)), ("LA", (0.6, 0.6, 0.6)), ("RGBA", (0.6, 0.6, 0.6)), ("P", (0.2, 0.2, 0.2))],
)
def test_other_modes_become_rgb_and_transparency_white(tmp_path, mode, expected):
    picture = Image.new("RGBA", (50, 50), (51, 51, 51, 128 if mode in ("LA", "RGBA") else 255)).convert(mode)
    photo = read_photo(save(tmp_path / "photo.png", picture))
    assert photo.image.shape == (50, 50, 3)
    torch.testing.assert_close(photo.image[7, 9], torch.tensor(expected), atol=0.003, rtol=0)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    cv2 = pytest.importorskip("cv2")
    grey = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([grey] * 3, axis=2))
    expected = torch.from_numpy(grey.astype(np.float32) / 65535)[:, :, None].expand(40, 60, 3)
    for name in ("grey.png", "colour.png"):
        torch.testing.assert_close(read_photo(tmp_path / name).image, expected, atol=1 / 255, rtol=0)
    photo = read_photo(tmp_path / "grey.png")
    torch.testing.assert_close(read_mask(tmp_path / "grey.png", photo), expected[:, :, 0], atol=1 / 510, rtol=0)


def test_cmyk_is_read_with_a_warning(tmp_path, caplog):
    photo = read_photo(save(tmp_path / "print.jpg", Image.new("CMYK", (50, 50), (0, 255, 255, 0))))
    torch.testing.assert_close(photo.image[0, 0], torch.tensor([1.0, 0, 0]), atol=0.02, rtol=0)
    assert "print.jpg is CMYK" in caplog.text


def test_a_phones_multi_picture_file_is_its_first_picture(tmp_path):
    first, second = Image.fromarray(COLOURS), Image.new("RGB", (60, 40))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_photo(tmp_path / "phone.jpg").image.std() > 0.1


def spoil(kind, path):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(buffer, format="JPEG")
    frames = [Image.new("RGB", (60, 60), colour) for colour in ("red", "green", "blue")]
    if kind == "text":
        path.write_text("no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif kind == "animated":
        frames[0].save(path, format="WEBP", save_all=True, append_images=frames[1:])
    elif kind == "small":
        Image.new("RGB", (20, 20)).save(path)
    elif kind == "float":
        Image.fromarray(np.zeros((50, 50), np.float32)).save(path, format="TIFF")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    "kind, word",
    [
        ("text", "is not a picture"),
        ("empty", "is not a picture"),
        ("truncated", "cut off"),
        ("animated", "animated"),
        ("small", "20x20 px"),
        ("float", "floating-point"),
        ("folder", "damaged|directory"),
        ("missing", "no file"),
    ],
)
def test_a_bad_file_is_named_and_so_is_what_is_wrong(tmp_path, kind, word):
    path = tmp_path / "photo.jpg"
    spoil(kind, path)
    with pytest.raises(BadPhoto, match=word) as error:
        read_photo(path)
    assert "photo.jpg" in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("length", [30, 200, 800])
def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path, suffix, length):
    whole = save(tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: min(length, len(whole) - 30)])
    with pytest.raises(BadPhoto, match=path.name):
        read_photo(path)


def test_a_folders_photos_come_in_natural_order_without_masks_and_other_files(tmp_path):
    for name in ("10.jpg", "2.PNG", "a.webp", "mask_2.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub.png").mkdir()
    assert [photo.name for photo in read_photos(tmp_path)] == ["2.PNG", "10.jpg", "a.webp"]


@pytest.mark.parametrize(
    "files, word",
    [
        ([], "empty"),
        (["a.heic", "b.HEIC"], "2 file.*heic. Save a.heic, b.HEIC as JPEG"),
        (["a.dng"], "a.dng as JPEG"),
        (None, "no folder"),
    ],
)
def test_a_folder_without_photos_says_what_there_is(tmp_path, files, word):
    folder = tmp_path / "photos"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    with pytest.raises(NoPhotos, match=word):
        read_photos(folder)


def test_masks_by_hand_lie_beside_the_photos_or_in_a_folder_of_their_own(tmp_path):
    save(tmp_path / "a.jpg")
    photos = read_photos(tmp_path)
    with pytest.raises(MissingMask, match="a.jpg.*mask_a.png"):
        read_masks(tmp_path, photos)
    mask = np.where(COLOURS[:, :, 0] > 127, 255, 0).astype(np.uint8)
    save(tmp_path / "mask_a.png", mask)
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "a.png", mask)
    for folder in (tmp_path, tmp_path / "masks"):
        assert torch.equal(read_masks(folder, photos)[0], torch.from_numpy(mask).float() / 255)


def test_a_mask_may_be_of_zero_and_one_or_transparent(tmp_path):
    photo = read_photo(save(tmp_path / "a.png"))
    shape = (COLOURS[:, :, 0] > 127).astype(np.uint8)
    white = np.full((40, 60, 4), 255, np.uint8)
    white[:, :, 3] = shape * 255
    for pixels in (shape, shape * 255, white, Image.fromarray(shape * 255).convert("1")):
        assert torch.equal(read_mask(save(tmp_path / "mask.png", pixels), photo), torch.from_numpy(shape).float())


def test_a_mask_of_another_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """A file of 65 KB unfolds to 64 megapixels, and a set may name it for each of 10,000 small photos."""
    photo = read_photo(save(tmp_path / "a.png"))
    save(tmp_path / "mask.png", COLOURS[:20, :30])
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(BadPhoto, match="a.png.*30x20.*60x40"):
        read_mask(tmp_path / "mask.png", photo)


def test_pictures_of_sixteen_bits_take_no_more_memory_than_others(tmp_path):
    grey = Image.fromarray((np.arange(40 * 60, dtype=np.uint16) * 27).reshape(40, 60))
    photo = read_photo(save(tmp_path / "grey.png", grey))
    for read in (photo.image, read_mask(tmp_path / "grey.png", photo)):
        assert isinstance(read, Levels) and read.bytes is not None


def test_a_folder_of_ten_thousand_files_is_listed_at_once(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number}.png").touch()
    begun = time.process_time()
    assert passed_over(tmp_path) == ""
    assert time.process_time() - begun < 5


def jpeg_of_scans(side, count):
    """A progressive JPEG whose last scan is there so many times more."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True, quality=10)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def tiff_of_tags(count, size):
    """A TIFF in which so many tags name the same bytes."""
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, size, 8) for i in range(count))
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", count) + entries + bytes(4)


def exif_bomb():
    buffer = io.BytesIO()
    Image.new("RGB", (60, 60)).save(buffer, "PNG", exif=b"Exif\0\0" + tiff_of_tags(20_000, 200_000))
    return buffer.getvalue()


def png_of_chunks(count, kind):
    parts = [struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0), zlib.compress(bytes(65 * 64))]
    header, pixels, empty, end = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", parts[0]), (b"IDAT", parts[1]), (kind, b""), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + header + empty * count + pixels + end


def bmp_of_run_lengths(side, runs):
    """A BMP that names its pixels one by one; Pillow decodes it in Python."""
    size = 14 + 40 + 1024 + 2 * runs
    head = struct.pack("<IHHI", size, 0, 0, 1078) + struct.pack("<IiiHH", 40, side, side, 1, 8)
    return b"BM" + head + struct.pack("<IIiiII", 1, 2 * runs, 0, 0, 256, 0) + bytes(1024) + b"\1\5" * runs


def tiff_of_numbers(count):
    """A TIFF of one column, with an entry for each of its rows."""
    entries = ((256, 4, 1, 1), (257, 4, 1, count), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, count, 8))
    entries += ((277, 3, 1, 1), (278, 4, 1, 1), (279, 4, count, 8))
    listed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + 4 * count) + bytes(4 * count) + struct.pack("<H", 9) + listed + bytes(4)


def tiff_of_two(second):
    """A TIFF whose first directory is harmless, and the second is not."""
    buffer = io.BytesIO()
    Image.new("L", (60, 60)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue() + bytes(len(buffer.getvalue()) % 2))
    at = int.from_bytes(data[4:8], "little")
    at += 2 + 12 * int.from_bytes(data[at : at + 2], "little")
    data[at : at + 4] = struct.pack("<I", len(data))
    entries = b"".join(struct.pack("<HHII", 40_000 + i, 7, second, 8) for i in range(20_000))
    return bytes(data) + struct.pack("<H", 20_000) + entries + bytes(4) + bytes(second)


def frames(kind, count):
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (40, 40), (i % 256, i // 256, 9)) for i in range(count)]
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def large(kind, width, height):
    buffer = io.BytesIO()
    Image.new("L", (width, height)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def pages(count):
    buffer = io.BytesIO()
    page = Image.new("L", (40, 40))
    page.save(buffer, "TIFF", save_all=True, append_images=[page] * (count - 1))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data, word",
    [
        (lambda: jpeg_of_scans(7000, 500), "JPEG with .* scans"),
        (lambda: b"\xff\xd8" + b"\xff\xe1\0\2" * 2_000_000, "JPEG with .* scans|not a picture|damaged"),
        (lambda: tiff_of_tags(20_000, 200_000), "impossible size"),
        (exif_bomb, "impossible size"),
        (lambda: pages(2000), "several pages"),
        (lambda: png_of_chunks(3_000_000, b"prVt"), "many parts"),
        (lambda: png_of_chunks(9_000_000, b"IDAT"), "many parts"),
        (lambda: bmp_of_run_lengths(8000, 9_000_000), "run lengths"),
        (lambda: tiff_of_numbers(4_000_000), "impossible size"),
        (lambda: tiff_of_two(2_000_000), "several pages"),
        (lambda: frames("WEBP", 1000), "animated"),
        (lambda: frames("PNG", 1000), "animated"),
        (lambda: frames("GIF", 300), "not a picture of a kind"),
        (lambda: frames("AVIF", 300), "animated|HEIC or AVIF"),
        (lambda: large("PNG", 40_000, 3000), "too large"),
        (lambda: b"\xff\xd8" + bytes(201_000_000), "201 MB, more than a photo"),
        (lambda: b"\x89PNG" + bytes(551_000_000), "551 MB, more than a photo"),
    ],
    ids="scans segments tags exif pages chunks empty run-lengths numbers second webp apng gif avif pixels jpeg "
    "bytes".split(),
)
def test_a_picture_that_is_a_trap_is_refused_at_once(tmp_path, data, word):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data())
    for read in (read_photo, lambda path: read_photos(path.parent)):  # the second looks at all sizes first
        begun = time.process_time()
        with pytest.raises(BadPhoto, match=word):
            read(path)
        assert time.process_time() - begun < 3


def test_an_ordinary_progressive_jpeg_with_much_behind_it_is_read(tmp_path):
    save(tmp_path / "a.jpg", progressive=True)
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"\xff\xda" * 1000)  # a phone appends a film to its photo
    assert read_photo(tmp_path / "a.jpg").size == (60, 40)


def test_photos_that_are_too_large_together_are_refused_before_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MOST_PIXELS_TOGETHER", 5000)
    for name in "abc":
        save(tmp_path / f"{name}.png")
    heard = []
    with pytest.raises(BadPhoto, match="c.png.*together"):
        read_photos(tmp_path, lambda done, total: heard.append(done))
    assert not heard


@pytest.mark.parametrize(
    "suffix, kind", [("jfif", "JPEG"), ("bmp", "BMP"), ("tif", "TIFF"), ("TIFF", "TIFF"), ("avif", "AVIF")]
)
def test_pictures_of_other_kinds_are_read_beside_jpegs(tmp_path, suffix, kind):
    if kind not in picture_file.FORMATS:
        pytest.skip(f"this Pillow reads no {kind}")
    save(tmp_path / "a.jpg")
    save(tmp_path / f"b.{suffix}", format=kind)
    assert [photo.name for photo in read_photos(tmp_path)] == ["a.jpg", f"b.{suffix}"]


def test_what_is_not_used_of_a_folder_is_named(tmp_path, caplog):
    for name in ("1.jpg", "mask_1.png", "mask_7.jpg"):
        save(tmp_path / name)
    for name in ("2.HEIC", "1.heic", "3.gif", "1.txt", "1.caption", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "10_olis dog").mkdir()
    save(tmp_path / "10_olis dog" / "a.png")
    read_photos(tmp_path)
    said = passed_over(tmp_path)
    assert said in caplog.text
    for name in ("2.HEIC", "3.gif", "mask_7.jpg", "1.caption", "10_olis dog"):
        assert name in said
    for name in ("mask_1.png", "1.heic", "1.txt", "notes.md"):
        assert name not in said


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1", b"msf1"])
@pytest.mark.parametrize("name", ["IMG_1.jpg", "IMG_1.png"])
def test_heic_under_another_name_is_told_for_what_it_is(tmp_path, brand, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x20ftyp" + brand + bytes(200))
    with pytest.raises(BadPhoto, match=f"{name} is HEIC .* Save it as JPEG"):
        read_photos(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "TGA", "ICO", "EPS", "svg"])
def test_a_picture_of_a_kind_that_is_not_read_is_told_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"
    if kind == "svg":
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    else:
        Image.new("RGB", (48, 48)).save(path, kind)
    with pytest.raises(
        BadPhoto, match="photo.png is not a picture of a kind that can be read .JPEG, PNG.*Save it as JPEG"
    ):
        read_photo(path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_half_an_avif_is_damaged_and_not_of_a_kind_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.avif"
    Image.new("RGB", (48, 48)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadPhoto, match="photo.avif is damaged or cut off"):
        read_photo(path)


def test_a_folder_of_folders_says_so(tmp_path):
    (tmp_path / "10_olis dog").mkdir()
    with pytest.raises(NoPhotos, match="10_olis dog"):
        read_photos(tmp_path)


def test_a_file_name_of_any_bytes_is_read_told_and_stored(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(raw, "wb") as file:
            Image.fromarray(COLOURS).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (photo,) = read_photos(tmp_path)
    assert photo.name == "caf\ufffd.png"
    with open(raw, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(BadPhoto) as error:
        read_photos(tmp_path)
    str(error.value).encode("utf-8")


@pytest.mark.parametrize(
    "pixels, word",
    [(np.full((40, 40), 70_000, np.int32), "32-bit"), (np.full((40, 40), -1, np.int32), "32-bit"),
     (np.full((40, 40), np.nan, np.float32), "floating-point")],
)  # fmt: skip
def test_numbers_that_are_no_colours_are_refused(tmp_path, pixels, word):
    with pytest.raises(BadPhoto, match=word):
        read_photo(save(tmp_path / "a.tif", pixels))


def test_lab_colours_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(BadPhoto, match="LAB"):
        read_photo(save(tmp_path / "a.tif", Image.new("LAB", (40, 40))))


def test_damaged_exif_data_do_not_take_a_photo_away(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x07\0\xff\xff\xff\xff"
    save(tmp_path / "a.jpg", exif=exif)
    assert read_photo(tmp_path / "a.jpg").size == (60, 40)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_photo_of_no_numbers_cannot_be(value):
    image = torch.zeros(40, 40, 3)
    image[3, 4, 1] = value
    with pytest.raises(BadSubject, match=r"dog.png.*NaN"):
        Photo("dog.png", image)


@pytest.mark.parametrize("size", [(1, 400), (400, 3), (0, 0)])
def test_a_strip_is_no_photo(size):
    with pytest.raises(BadSubject, match="dog.png"):
        Photo("dog.png", torch.zeros(*size, 3))


@pytest.mark.parametrize(
    "token, noun", [("o" * 101, "dog"), ("olis", "d" * 20_000), ("olis", "dog\ud800"), ("\udce9", "dog")]
)
def test_names_of_any_length_or_of_half_letters_are_refused(token, noun):
    photo = Photo("a.png", torch.zeros(40, 40, 3))
    with pytest.raises(BadSubject, match="letters") as error:
        Subject(token, noun, (photo,), (torch.ones(40, 40),))
    assert len(str(error.value)) < 200


def is_packed(image):
    one, other = image.bytes, image.bytes
    return one.data_ptr() != other.data_ptr()  # decoded anew


def test_a_packed_photo_and_its_mask_are_the_same_and_need_no_file(tmp_path):
    large = Image.fromarray(COLOURS).resize((600, 400))
    save(tmp_path / "side.jpg", large, orientation=6)
    mask = save(tmp_path / "mask.png", large.convert("L").point(lambda value: 255 * (value > 99)), orientation=6)
    kept, packed = (read_photo(tmp_path / "side.jpg", packed=how) for how in (False, True))
    masks = [read_mask(mask, kept, packed=how) for how in (False, True)]
    for path in tmp_path.iterdir():
        path.unlink()
    assert packed.size == (400, 600) and torch.equal(packed.image, kept.image) and torch.equal(*masks)
    assert is_packed(packed.image) and is_packed(masks[1]) and not is_packed(kept.image)


def test_a_file_larger_than_its_pixels_is_not_kept(tmp_path):
    photo = read_photo(save(tmp_path / "a.bmp"), packed=True)
    assert not is_packed(photo.image)


def test_only_many_large_photos_are_packed(tmp_path, monkeypatch):
    for name in "abc":
        save(tmp_path / f"{name}.jpg", Image.new("RGB", (100, 50)))
    for most, packed in ((15_000, False), (14_999, True)):
        monkeypatch.setattr(photos, "MOST_PIXELS_DECODED", most)
        assert [is_packed(photo.image) for photo in read_photos(tmp_path, packed=True)] == [packed] * 3


def test_a_stop_is_heard_before_the_next_photo_is_decoded(tmp_path, monkeypatch):
    for name in "abcd":
        save(tmp_path / f"{name}.png")
    decoded = []
    monkeypatch.setattr(photos, "read_photo", lambda path, *how: decoded.append(path.name) or read_photo(path, *how))

    def stop(done, total):
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_photos(tmp_path, stop)
    assert decoded == ["a.png", "b.png"]
