"""Laws of reading photos and masks from files, and what is said of files that cannot be used."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mudi_core.photos import BadPhoto, MissingMask, NoPhotos, read_mask, read_masks, read_photo, read_photos
from mudi_core.types import BadSubject, Subject

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
    torch.testing.assert_close(read_mask(tmp_path / "grey.png", photo), expected[:, :, 0], atol=1e-4, rtol=0)


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
        path.write_text("not a picture")
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
        ("text", "not a picture"),
        ("empty", "not a picture"),
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


@pytest.mark.parametrize("files, word", [([], "empty"), (["a.heic", "b.HEIC"], "2 file.*heic"), (None, "no folder")])
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


def test_a_mask_of_another_size_is_refused_by_the_subject(tmp_path):
    photo = read_photo(save(tmp_path / "a.png"))
    mask = read_mask(save(tmp_path / "mask.png", COLOURS[:20, :30]), photo)
    with pytest.raises(BadSubject, match="a.png.*30x20.*60x40"):
        Subject("olis", "bear", (photo,), (mask,))
