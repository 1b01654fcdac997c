# SPDX-License-Identifier: Apache-2.0
"""Pictures to `pixel_values` and back, with Pillow alone."""

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, TypedDict, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.utils import logging

logger = logging.get_logger(__name__)

Picture = Image.Image | np.ndarray | torch.Tensor

_ARRAYS = [(np.uint8, 2), (np.uint8, 3, 3), (np.uint8, 3, 4)]  # type, dimensions and channels of pictures
# What a saved configuration carries besides the arguments of `__init__`.
_FILE_KEYS = {"image_processor_type", "processor_class", "auto_map"}


# What undoes each value of EXIF's orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEX_BYTES = re.compile(r"(?:[0-9a-fA-F]{2})*")
# Pillow's modes by the colour space that a profile is for.
_PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Turns any Pillow picture into the upright, opaque 8-bit sRGB picture that a person sees.

    The orientation in EXIF is applied and all else in it ignored, broken or not. An embedded colour profile (RGB,
    grey or CMYK) is converted to sRGB with the perceptual intent; a profile that can't be used is ignored with one
    warning. Transparency is laid on white (Pillow alone would show the hidden colour), 16-bit grey is scaled to 8 bits
    (Pillow alone would clip it to white), and CMYK, palettes and grey become RGB.

    Returns:
        `PIL.Image.Image`: A new picture of mode `"RGB"`, without metadata.

    Raises:
        ValueError: If the pixels are floating-point numbers or wider than 16 bits, whose range isn't declared.
    """
    image.load()  # first, since Pillow turns a TIFF upright while it loads it
    profile = image.info.get("icc_profile", b"")  # None if Pillow found it damaged
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey16_to_grey8(image)
    alpha = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        image = rgba.convert(_colour_mode(image))
    if profile != b"":
        image = _to_srgb(image, profile)
    rgb = image.convert("RGB")
    if alpha is not None:
        rgb.putalpha(alpha)
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    rgb.info = {}  # an orientation or a profile in it would be applied twice
    return rgb


def _orientation(image: Image.Image) -> int:
    """The value of EXIF's orientation; 1 if there is none that can be read."""
    with suppress(Exception):  # Pillow's reader raises nearly anything over damaged EXIF
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation is not None:
            return orientation if orientation in _TURNS else 1
    exif, raw = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and isinstance(raw, str):  # ImageMagick's: a name, a length and lines of hexadecimal digits
        exif = bytes.fromhex(_HEX_BYTES.findall("".join(raw.split("\n")[3:]))[0])
    # Pillow gives up at the first tag whose value lies outside of the data; here nothing but this one matters.
    tiff = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    directory = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[directory : directory + 2], order)
    for entry in (tiff[place : place + 12] for place in range(directory + 2, directory + 2 + 12 * count, 12)):
        if int.from_bytes(entry[:2], order) == ExifTags.Base.Orientation:
            is_long = int.from_bytes(entry[2:4], order) == 4
            return int.from_bytes(entry[8 : 12 if is_long else 10], order)
    return 1


def _colour_mode(image: Image.Image) -> str:
    """`"L"`, `"CMYK"` or `"RGB"`: how the picture's colours are meant."""
    if image.mode == "CMYK":
        return "CMYK"
    return "L" if Image.getmodebase(image.mode) == "L" else "RGB"


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An opaque picture with its profile applied; a grey picture may have an RGB profile."""
    own = _colour_mode(image)
    try:
        if not isinstance(profile, bytes):
            raise ValueError("it is damaged")
        mode, transform = _transform_to_srgb(profile)
        if own != mode and (own, mode) != ("L", "RGB"):
            raise ValueError(f"it is for {mode}, the picture is {own}")
        colours = image if image.mode == mode else image.convert(mode)
        return colours if transform is None else cast(Image.Image, ImageCms.applyTransform(colours, transform))
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError) as error:
        logger.warning_once(
            f"The colour profile of a picture can't be used ({error}): its colours are taken as they are."
        )
        return image


@lru_cache(maxsize=8)  # a data set's pictures have few profiles
def _transform_to_srgb(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and what makes its colours sRGB: `None` if they are already."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space
    if space not in _PROFILE_MODES:
        raise ValueError(f"it is for {space.strip()}, not for RGB, grey or CMYK")
    mode = _PROFILE_MODES[space]
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        # sRGB has many profiles and names. One that changes no colour by more than rounding must change none.
        ramp = Image.linear_gradient("L")
        colours = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))) if mode == "RGB" else ramp
        converted = cast(Image.Image, ImageCms.applyTransform(colours, transform))
        difference = np.asarray(converted, dtype=int) - np.asarray(colours.convert("RGB"))
        if np.abs(difference).max() <= 1:
            return mode, None
    return mode, transform


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    """Scales 0...65535 (modes `"I;16"` and `"I"`) to 0...255, a transparent grey to white."""
    levels = np.array(image, dtype=np.int64)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(
            f"A picture of mode '{image.mode}' has floating-point pixels, or some outside of 16 bits: please scale "
            "them to whole numbers from 0 to 65535 first."
        )
    if "transparency" in image.info:
        levels[levels == image.info["transparency"]] = 65535
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # nearest: 65535 = 255 * 257


class PaiPainterImageProcessorKwargs(TypedDict, total=False):
    """The options that [`PaiPainterImageProcessor`] keeps and that `from_pretrained` may override."""

    size: int | dict[str, int]
    resample: int
    random_crop: bool


class PaiPainterImageProcessor(BaseImageProcessor):
    r"""
    Prepares pictures for the VQGAN and makes pictures of what it decodes.

    A picture is made RGB (see [`to_rgb`]), its smallest side is resized to `size`, the middle square (or a random one)
    is cut out, and its bytes `x` become `x / 127.5 - 1`. A square picture of 8 bits and of the right size comes back
    from [`~PaiPainterImageProcessor.postprocess`] byte for byte.

    Args:
        size (`int` or `dict[str, int]`, *optional*, defaults to 256): Side of the square in pixels: a number, or
            `{"shortest_edge": number}` as it is saved.
        resample (`int`, *optional*, defaults to `PIL.Image.Resampling.BICUBIC`): Pillow's resampling filter. The
            original programs used OpenCV's bilinear filter, which skips pixels when it shrinks.
        random_crop (`bool`, *optional*, defaults to `False`): Cut a random square. Each call then needs a `generator`.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = PaiPainterImageProcessorKwargs

    def __init__(
        self,
        size: int | dict[str, int] = 256,
        resample: int = Image.Resampling.BICUBIC,
        random_crop: bool = False,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(kwargs.keys() - _FILE_KEYS)
        if unknown:
            raise TypeError(f"PaiPainterImageProcessor has no option {', '.join(unknown)}.")
        super().__init__(**kwargs)
        self.size = {"shortest_edge": _side(size)}
        self.resample = _filter(resample)
        self.random_crop = random_crop

    def preprocess(
        self,
        images: Picture | Sequence[Picture],
        size: int | dict[str, int] | None = None,
        resample: int | None = None,
        random_crop: bool | None = None,
        generator: torch.Generator | int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Turns pictures into the VQGAN's input: `pixel_values`, float32 (batch, 3, size, size) in [-1, 1].

        Args:
            images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): Pictures of any size. Arrays
                are uint8: NumPy (height, width), (height, width, 3 or 4) or a batch of the latter, torch (3, height,
                width) or a batch of them.
            size, resample, random_crop: Instead of the processor's own.
            generator (`torch.Generator` or `int`, *optional*): Places the random squares: a generator on the CPU, which
                moves on by two draws per picture, or a seed.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`; a list of arrays without it.

        Raises:
            ValueError: If `images` is empty or holds something else, or if an option is out of range or missing.
        """
        side = _side(self.size if size is None else size)
        resample = self.resample if resample is None else _filter(resample)
        random_crop = self.random_crop if random_crop is None else random_crop
        if random_crop and generator is None:
            raise ValueError("`random_crop=True` needs a `generator`: a torch.Generator or a seed.")
        if not isinstance(generator, torch.Generator | None):
            generator = torch.Generator().manual_seed(generator)
        placed = generator if random_crop else None
        squares = (_square(_to_pillow(image), side, resample, placed) for image in _as_list(images))
        arrays = (np.asarray(square).transpose(2, 0, 1) for square in squares)  # (3, size, size)
        # In float64 until it is rounded once, as the original programs compute it.
        pixel_values = [(array / 127.5 - 1).astype(np.float32) for array in arrays]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    def postprocess(
        self, pixel_values: torch.Tensor, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """
        Turns what the VQGAN decoded, (batch, 3, height, width) in about [-1, 1], into pictures; what lies outside is
        clipped. By `output_type` they are a list of Pillow pictures (`"pil"`), an array (batch, height, width, 3)
        (`"np"`) or a tensor (batch, 3, height, width) (`"pt"`), both in [0, 1]. Pixels of another shape or type or with
        NaN are a `ValueError`.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be 'pil', 'np' or 'pt', got {output_type!r}.")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
            raise ValueError(
                "`pixel_values` must be floating-point numbers of shape (batch, 3, height, width), "
                f"got {pixel_values.dtype} of shape {tuple(pixel_values.shape)}."
            )
        pixels = pixel_values.detach().float()
        if pixels.isnan().any():
            raise ValueError("`pixel_values` holds NaN: please run the VQGAN in float32 or bfloat16.")
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pixels
        array = pixels.permute(0, 2, 3, 1).cpu().numpy()  # (batch, height, width, 3)
        if output_type == "np":
            return array
        return [Image.fromarray(picture) for picture in (array * 255).round().astype(np.uint8)]


def _side(size: int | dict[str, int]) -> int:
    side = size.get("shortest_edge") if isinstance(size, dict) and len(size) == 1 else size
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise ValueError(f"`size` must be a whole number of pixels or {{'shortest_edge': number}}, got {size!r}.")
    return side


def _filter(resample: int) -> int:
    if resample not in list(Image.Resampling):
        names = ", ".join(f"{int(choice)} ({choice.name.lower()})" for choice in sorted(Image.Resampling))
        raise ValueError(f"resample is {resample!r}, but must be one of Pillow's filters: {names}.")
    return int(resample)


def _as_list(images: Picture | Sequence[Picture]) -> list[Picture]:
    several = isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4)
    pictures = list(cast(Sequence[Picture], images)) if several else [cast(Picture, images)]
    if not pictures:
        raise ValueError("`images` is empty: please give at least one picture.")
    return pictures


def _to_pillow(image: Picture) -> Image.Image:
    """A picture in RGB, whatever held it. Floating-point arrays are refused: their range can't be known."""
    array = image
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        array = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(array, np.ndarray) and (array.dtype, array.ndim, *array.shape[2:]) in _ARRAYS:
        image = Image.fromarray(array)
    if not isinstance(image, Image.Image):
        what = f" of {image.dtype} and shape {tuple(image.shape)}" if hasattr(image, "dtype") else ""
        raise ValueError(
            f"`images` must hold Pillow pictures (`PIL.Image.open` opens a file), uint8 arrays (height, width, 3) or "
            f"uint8 tensors (3, height, width), got a {type(image).__name__}{what}. Captions are `text`."
        )
    if 0 in image.size:
        raise ValueError(f"`images` holds a picture of {image.width}x{image.height} pixels, which is empty.")
    return to_rgb(image)


def _square(image: Image.Image, side: int, resample: int, generator: torch.Generator | None) -> Image.Image:
    """
    Resizes the smallest side to `side` and cuts out a square, in one step, so that a picture of 1 x 1,000,000 pixels
    doesn't become one of 256 x 256,000,000 on the way.
    """
    shortest = min(image.size)
    width, height = ((2 * edge * side + shortest) // (2 * shortest) for edge in image.size)  # rounded
    if generator is None:
        left, top = (width - side) // 2, (height - side) // 2
    else:
        left = int(torch.randint(width - side + 1, (), generator=generator))
        top = int(torch.randint(height - side + 1, (), generator=generator))
    box = (
        left * image.width / width,
        top * image.height / height,
        (left + side) * image.width / width,
        (top + side) * image.height / height,
    )
    return image.resize((side, side), resample=Image.Resampling(resample), box=box)


__all__ = ["PaiPainterImageProcessor", "to_rgb"]
