"""Images that other programs write: transparency, damaged EXIF, formats under other names."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.vit.data.test_sets import encoded, pixels
from vit.data.decode import DataError, decode


def shape(mode):
    """A dark square in the alpha channel of a black picture."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[4:12, 4:12] = 255
    picture = Image.new("RGB", (16, 16))
    picture.putalpha(Image.fromarray(alpha))
    if mode == "P":
        indices = Image.fromarray((alpha > 0).astype(np.uint8), "P")
        indices.putpalette([0, 0, 0, 0, 0, 0])
        indices.info["transparency"] = 0
        return indices
    return picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "webp")]
)
def test_transparent_pixels_are_white(mode, kind):
    file = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {}
    shape(mode).save(file, kind, **options)
    found = decode(file.getvalue(), 16)
    expected = np.full((3, 16, 16), 255, np.uint8)
    expected[:, 4:12, 4:12] = 0
    np.testing.assert_array_equal(found, expected)
    assert (decode(file.getvalue(), 8) == 255).any()


@pytest.mark.parametrize("size", [7, 16, 40])
def test_opaque_alpha_changes_nothing(size):
    picture = Image.fromarray(pixels(1, 33, 20)[0])
    expected = decode(encoded(np.asarray(picture)), size)
    np.testing.assert_array_equal(
        decode(encoded(np.asarray(picture.convert("RGBA"))), size), expected
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0nothing",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9,
    ],
)
def test_damaged_exif_costs_no_image(kind, exif):
    image = pixels(1, 16, 16)[0]
    options = {"lossless": True} if kind == "webp" else {}
    expected = decode(encoded(image, kind, **options), 16)
    np.testing.assert_array_equal(decode(encoded(image, kind, exif=exif, **options), 16), expected)


def test_content_that_starts_another_program_is_no_image(monkeypatch):
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was started"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match=r"not an image of a format that is read \(JPEG, PNG"):
        decode(content, 8)
