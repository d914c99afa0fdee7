"""What data sets of image files share: decoding to uint8 arrays, groups by name, and hold-outs."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from harness.api import Dataset, Field, HarnessError, Split, Splits
from harness_plugins.datasets._splits import complete, group_codes

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

DEEP = ("I", "F")  # PIL modes, or their beginnings, with more than 8 bits a channel
# In PIL's raw modes with 16 bits a channel, of which it drops 8; not in those with 16 bits a pixel.
PACKED_DEEP = re.compile(";16[BLN]")
BITS_PER_SAMPLE = 258  # TIFF's tag
ORIENTATION = 274  # EXIF's tag

# What PIL raises on a damaged file, by its format and by which of its bytes are wrong.
DAMAGED = (OSError, SyntaxError, ValueError, TypeError)


class ImageFiles(Dataset):
    """A data set of image files: how they are decoded, and which records are held out for splits that have none."""

    path: str = Field(description="where the data lies; subclasses say in which form")
    size: int | None = Field(
        None, ge=1, description="resize to size x size pixels; default: leave as they are"
    )
    resample: Literal["bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="filter used to resize"
    )
    channels: Literal[1, 3] = Field(3, description="1: greyscale (luma), 3: RGB")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of train held out where there is no val")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of train held out where there is no test"
    )
    split_seed: int = Field(0, ge=0, description="seed of those hold-outs")

    def pixels(self, source: Path | BinaryIO, where: str) -> np.ndarray:
        """One image as (channels, h, w) uint8, upright by its EXIF orientation, resized if a size is given.

        Resizing does not keep the aspect ratio. One channel is luma (ITU-R 601: 0.299 R + 0.587 G + 0.114 B).
        Raises HarnessError on unreadable files, and on more than 8 bits a channel (they would be clipped or cut).
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(source) as image:
                if _deep(image):
                    raise HarnessError(
                        f"{where}: {image.mode} pixels have more than 8 bits a channel; convert the image to 8 bits"
                    )
                array = _array(image, self.channels, self.size, Image.Resampling[self.resample.upper()])
        except UnidentifiedImageError:  # whose text is the source as Python prints it
            raise HarnessError(
                f"{where} is not a readable image: its format is none that Pillow knows"
            ) from None
        except (*DAMAGED, Image.DecompressionBombError) as error:
            raise HarnessError(f"{where} is not a readable image: {error}") from None
        return array[None] if self.channels == 1 else array.transpose(2, 0, 1)

    def completed(self, parts: dict[str, Split], class_names: Sequence[str]) -> Splits:
        """The splits, with those that are missing held out of train."""
        return complete(self.name, parts, class_names, self.val_fraction, self.test_fraction, self.split_seed)


def _deep(image: Image) -> bool:
    """Whether an image that is open but not yet decoded has more than 8 bits a channel, also where PIL drops them."""
    if image.mode.startswith(DEEP):
        return True
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 8)
    if max(bits if isinstance(bits, tuple) else (bits,)) > 8:
        return True
    for decoder, _, _, arguments in getattr(image, "tile", ()):
        raw, *more = arguments if isinstance(arguments, tuple) else (arguments,)
        if PACKED_DEEP.search(str(raw)) or (decoder.startswith("ppm") and more and more[0] > 255):
            return True
    return False


def _array(image: Image, channels: int, size: int | None, resample: int) -> np.ndarray:
    import numpy as np

    converted = _upright(image.convert("L" if channels == 1 else "RGB"), image)
    if size is not None and converted.size != (size, size):
        converted = converted.resize((size, size), resample)
    return np.asarray(converted, dtype=np.uint8)


def _upright(converted: Image, source: Image) -> Image:
    """An image turned and mirrored as its EXIF orientation says: cameras store pixels as the sensor was held.

    source: what it was converted from, decoded: PIL has then turned a TIFF already and dropped its tag.
    """
    from PIL import ImageOps

    try:
        orientation = source.getexif().get(ORIENTATION)
    except (*DAMAGED, struct.error, LookupError):  # a damaged tag: the pixels are there, how they lie is not
        return converted
    converted.info.clear()  # which would be written anew, and fail where other tags are damaged
    converted.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(converted)


def stack(name: str, items: Iterable[tuple[str, np.ndarray]], count: int) -> np.ndarray:
    """(count, c, h, w) uint8 from (name, image) pairs. Raises HarnessError where the sizes differ."""
    import numpy as np

    images: np.ndarray | None = None
    first = ""
    for i, (where, image) in enumerate(items):
        if images is None:
            images, first = np.empty((count, *image.shape), dtype=np.uint8), where
        if image.shape != images.shape[1:]:
            raise HarnessError(
                f"dataset {name}: {where} is {_size(image)} but {first} is {_size(images[0])}; "
                "set size to resize every image"
            )
        images[i] = image
    if images is None:
        raise HarnessError(f"dataset {name}: no images")
    return images


def group_reader(name: str, pattern: str | None) -> Callable[[Sequence[str]], np.ndarray] | None:
    """From paths to group names by a regular expression: its first capture group, else the whole match."""
    import numpy as np

    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise HarnessError(f"dataset {name}: groups is not a regular expression: {error}") from None

    def read(paths: Sequence[str]) -> np.ndarray:
        found = []
        for path in paths:
            match = compiled.search(path)
            text = match and (match.group(1) if compiled.groups else match.group())
            if not text:
                raise HarnessError(f"dataset {name}: groups ({pattern}) does not match {path!r}")
            found.append(text)
        return np.array(found)

    return read


def grouped(where: str, parts: dict[str, Split], names: dict[str, np.ndarray]) -> dict[str, Split]:
    """The splits with numbers for the names of their records' groups; without names as they are.

    Raises HarnessError where two splits share a group, with its name: nobody knows a patient by such a number.
    """
    import numpy as np

    for one, other in combinations(names, 2):
        shared = np.intersect1d(names[one], names[other])
        if len(shared):
            raise HarnessError(
                f"{where}: {one} and {other} share {len(shared)} groups (e.g. {shared[0]}); "
                "a patient or site must lie in one split"
            )
    if not names:
        return parts
    codes = group_codes(where, names)
    return {split: Split(part.images, part.labels, codes[split]) for split, part in parts.items()}


def _size(image: np.ndarray) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"
