# SPDX-License-Identifier: Apache-2.0
"""Pictures to `pixel_values` and back."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pai_painter.model.image_processing_pai_painter import PaiPainterImageProcessor, to_rgb


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reopened(image: Image.Image, file_format: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def pixels(image: Image.Image, **options: object) -> torch.Tensor:
    return PaiPainterImageProcessor(size=min(image.size))(image, return_tensors="pt", **options)["pixel_values"]


def test_defaults() -> None:
    batch = PaiPainterImageProcessor()([noise(300, 280), noise(20, 500)], return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 256, 256)
    assert batch["pixel_values"].dtype == torch.float32


def test_pixels_are_those_of_the_original_programs() -> None:
    image = noise(8, 8)
    expected = (np.array(image).astype(np.uint8) / 127.5 - 1.0).astype(np.float32)
    assert np.array_equal(pixels(image)[0].permute(1, 2, 0).numpy(), expected)
    levels = pixels(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    assert levels.min() == -1
    assert levels.max() == 1
    assert len(levels.unique()) == 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(dtype: torch.dtype) -> None:
    images = [noise(16, 16, seed) for seed in range(3)]
    images.append(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB"))
    processor = PaiPainterImageProcessor(size=16)
    values = processor(images, return_tensors="pt")["pixel_values"].to(dtype)
    for before, after in zip(images, processor.postprocess(values), strict=True):
        assert after.mode == "RGB"
        assert np.array_equal(np.array(before), np.array(after))


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (24, 24), (37, 13), (13, 14), (1000, 3)])
def test_smallest_side_is_resized_and_the_middle_cut_out(size: tuple[int, int]) -> None:
    image = noise(*size)
    side = 16
    width, height = (int(edge * side / min(size) + 0.5) for edge in size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((left, top, left + side, top + side)), dtype=np.int64)
    processor = PaiPainterImageProcessor(size=side)
    result = np.array(processor.postprocess(processor(image, return_tensors="pt")["pixel_values"])[0])
    # Pillow rounds its coefficients a little differently for a part; a misplaced square is off by 100.
    assert np.abs(result - expected).max() <= 5


def test_cropping_alone_copies_bytes() -> None:
    image = noise(31, 16)
    processor = PaiPainterImageProcessor(size=16)
    result = processor.postprocess(processor(image, return_tensors="pt")["pixel_values"])[0]
    assert np.array_equal(np.array(result), np.array(image.crop((7, 0, 23, 16))))


def test_a_thread_of_a_picture_costs_no_memory() -> None:
    batch = PaiPainterImageProcessor(size=256)(Image.new("RGB", (1_000_000, 1), "red"), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 256, 256)
    assert batch["pixel_values"][0, :, 100, 100].tolist() == [1, -1, -1]


def test_random_crop_is_a_function_of_the_generator() -> None:
    image = noise(200, 16)
    first = pixels(image, random_crop=True, generator=7)
    assert torch.equal(first, pixels(image, random_crop=True, generator=7))
    assert torch.equal(first, pixels(image, random_crop=True, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(first, pixels(image, random_crop=True, generator=8))
    generator = torch.Generator().manual_seed(7)
    state = torch.random.get_rng_state()
    twice = (
        pixels(image, random_crop=True, generator=generator),
        pixels(image, random_crop=True, generator=generator),
    )
    assert torch.equal(first, twice[0])
    assert not torch.equal(*twice)
    assert torch.equal(state, torch.random.get_rng_state())


def test_random_crop_reaches_both_ends() -> None:
    image = Image.fromarray(np.tile(np.arange(20, dtype=np.uint8), (16, 1)))  # 20 wide: 5 places
    generator = torch.Generator().manual_seed(0)
    lefts = {
        round((pixels(image, random_crop=True, generator=generator)[0, 0, 0, 0].item() + 1) * 127.5) for _ in range(100)
    }
    assert lefts == {0, 1, 2, 3, 4}


def test_random_squares_of_a_batch_do_not_depend_on_the_shapes_before() -> None:
    processor = PaiPainterImageProcessor(size=16, random_crop=True)
    wide, high = noise(90, 16), noise(16, 90)
    one = processor([wide, high, wide], generator=3, return_tensors="pt")["pixel_values"]
    other = processor([high, wide, wide], generator=3, return_tensors="pt")["pixel_values"]
    assert torch.equal(one[2], other[2])


def test_random_crop_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="generator"):
        pixels(noise(8, 8), random_crop=True)


def test_postprocess_clips_and_follows_diffusers() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 1.5]).expand(2, 3, 4, 5)
    processor = PaiPainterImageProcessor()
    tensor = processor.postprocess(values, output_type="pt")
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.dtype == torch.float32
    assert tensor[0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]
    array = processor.postprocess(values, output_type="np")
    assert isinstance(array, np.ndarray)
    assert array.shape == (2, 4, 5, 3)
    assert array.dtype == np.float32
    assert array[0, 0, :, 0].tolist() == [0, 0, 0.5, 1, 1]
    pictures = processor.postprocess(values)
    assert [picture.size for picture in pictures] == [(5, 4)] * 2
    assert np.array(pictures[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_postprocess_reads_half_precision_and_gradients() -> None:
    values = torch.ones(1, 3, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert np.array(PaiPainterImageProcessor().postprocess(values)[0]).min() == 255


@pytest.mark.parametrize(
    ("values", "output_type", "message"),
    [
        (torch.zeros(3, 8, 8), "pil", "shape"),
        (torch.zeros(1, 8, 8, 3), "pil", "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "pil", "floating-point"),
        (torch.full((1, 3, 8, 8), float("nan")), "np", "NaN"),
        (torch.zeros(1, 3, 8, 8), "jpeg", "'pil', 'np' or 'pt'"),
    ],
)
def test_postprocess_refuses(values: torch.Tensor, output_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaiPainterImageProcessor().postprocess(values, output_type=output_type)


def test_saved_equals_loaded(tmp_path) -> None:
    processor = PaiPainterImageProcessor(size=64, resample=Image.Resampling.LANCZOS, random_crop=True)
    processor.save_pretrained(tmp_path)
    loaded = PaiPainterImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.size == {"shortest_edge": 64}
    assert loaded.resample == Image.Resampling.LANCZOS
    assert loaded.random_crop is True
    image = noise(100, 80)
    assert np.array_equal(processor(image, generator=1)["pixel_values"], loaded(image, generator=1)["pixel_values"])
    assert PaiPainterImageProcessor.from_pretrained(tmp_path, size=32).size == {"shortest_edge": 32}


@pytest.mark.parametrize("size", [0, -1, 8.0, True, "8", {"height": 8, "width": 8}, {"shortest_edge": 0}, {}])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="`size` must be"):
        PaiPainterImageProcessor(size=size)
    with pytest.raises(ValueError, match="`size` must be"):
        PaiPainterImageProcessor()(noise(8, 8), size=size)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="resample is 17"):
        PaiPainterImageProcessor(resample=17)
    with pytest.raises(TypeError, match="do_rescale"):
        PaiPainterImageProcessor(do_rescale=False)


def test_arrays_are_pictures_too() -> None:
    image = noise(8, 8)
    array = np.array(image)
    expected = pixels(image)
    processor = PaiPainterImageProcessor(size=8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for images in (array, array[None], [array], tensor, tensor[None], (tensor,), [image]):
        assert torch.equal(processor(images, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "`images` is empty"),
        ("picture.png", "a str. Captions are"),
        (b"\x89PNG", "bytes"),
        ([None], "NoneType"),
        (np.zeros((8, 8, 3), dtype=np.float32), "float32"),
        (torch.zeros(3, 8, 8), "float32"),
        (np.zeros((3, 8, 8), dtype=np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "which is empty"),
    ],
)
def test_what_is_no_picture(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaiPainterImageProcessor()(images)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    upright = noise(6, 4)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that makes the stored picture of each
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = to_rgb(reopened(stored, "PNG", exif=exif))
    assert np.array_equal(np.array(shown), np.array(upright))
    assert np.array_equal(np.array(to_rgb(shown)), np.array(upright))  # not turned a second time


def test_transparency_is_laid_on_white() -> None:
    red = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    red.putpixel((1, 0), (255, 0, 0, 255))
    red.putpixel((2, 0), (255, 0, 0, 128))
    assert [to_rgb(red).getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (255, 0, 0), (255, 127, 127)]
    assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = reopened(red.quantize(), "PNG")
    assert palette.mode == "P"
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    for mode, colour in (("RGB", (255, 0, 0)), ("L", 0), ("1", 0)):  # a colour that PNG declares transparent
        keyed = reopened(Image.new(mode, (1, 1), colour), "PNG", transparency=colour)
        assert to_rgb(keyed).getpixel((0, 0)) == (255, 255, 255), mode


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(file_format: str) -> None:
    levels = np.array([[0, 256, 257 * 100, 257 * 100 + 129, 65535]], dtype=np.uint16)
    image = reopened(Image.fromarray(levels), file_format)
    assert image.mode == "I;16"
    assert np.array(to_rgb(image))[0].tolist() == [[x] * 3 for x in (0, 1, 100, 101, 255)]
    assert np.array(to_rgb(Image.fromarray(levels.astype(np.int32))))[0, :, 0].tolist() == [
        0,
        1,
        100,
        101,
        255,
    ]


def test_sixteen_bits_with_a_transparent_level() -> None:
    image = reopened(Image.fromarray(np.array([[5, 6]], dtype=np.uint16)), "PNG", transparency=5)
    assert np.array(to_rgb(image))[0, :, 0].tolist() == [255, 0]


def test_cmyk_palette_and_grey() -> None:
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert to_rgb(Image.new("L", (1, 1), 9)).getpixel((0, 0)) == (9, 9, 9)
    assert to_rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("RGB", (1, 1), "red").quantize()).getpixel((0, 0)) == (255, 0, 0)
    jpeg = to_rgb(reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert jpeg[0] > 250
    assert max(jpeg[1:]) < 5


@pytest.mark.parametrize(
    "image", [Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), 65536), Image.new("I", (2, 2), -1)]
)
def test_pixels_without_a_declared_range(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="please"):
        to_rgb(image)


def test_the_given_picture_stays_as_it_is() -> None:
    image = Image.new("RGB", (4, 4), "red")
    to_rgb(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)
