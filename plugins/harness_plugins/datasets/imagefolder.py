"""Image files in one folder per class."""

from __future__ import annotations

import os
import re
from pathlib import Path

from harness.api import Field, HarnessError, Split, Splits, did_you_mean, find_file, hash_file
from harness_plugins.datasets._images import ImageFiles, group_reader, grouped, stack
from harness_plugins.datasets._splits import SPLIT_NAMES, by_split, content_hash

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
# Images too, which have to be converted: to leave them out would make the data others than the folder has.
UNREAD = (".dcm", ".dicom", ".nii", ".heic", ".heif", ".jp2", ".jxl", ".avif", ".npy")
HIDDEN = (".", "__MACOSX", "@eaDir")  # also what archives of macOS and network drives keep beside images


class ImageFolder(ImageFiles):
    """Image files in a folder per class: path/{train,val,test}/CLASS/FILE, or a single tree path/CLASS/FILE.

    Classes are the training folders in alphabetical order; val and test may lack some, not add any. Files
    are found at any depth below a class folder, behind links too, in the order of their paths; hidden ones and
    files that are no images are left out. Of several pages or frames the first is taken. Pixels are uint8,
    upright by the EXIF orientation, converted to `channels`, and resized to (size, size) only where size is
    given; images of different sizes are else an error.

    Splits: those that are folders, also called training, valid, validation, dev or testing, in whatever
    case; no other folder may then stand beside them. Missing test and val are held out of train (or of the
    single tree): test_fraction, then val_fraction, of its records, whole groups only, stratified by class,
    seeded by split_seed. `groups` is a regular expression searched in each path (CLASS/...): its first
    capture group, else the whole match, names the patient or site, which then never lies in two splits.

    Raises HarnessError where folders or images are missing, where links lead to a folder twice, where some folders
    are named as splits and it is unclear what the others are, and where images are unreadable, of types that are not
    read (DICOM, NIfTI, HEIC, ...) or of more than 8 bits a channel. The fingerprint hashes every relative path, file
    size and file content.
    """

    name = "imagefolder"

    path: str = Field(description="the folder; relative paths as in the scenario, $VARIABLES allowed")
    groups: str | None = Field(None, description="regular expression for the patient or site in a path")

    def load(self, root: Path | None = None) -> Splits:
        folders = self._folders(root)
        class_names = _classes(folders["train"])
        if not class_names:
            raise HarnessError(f"dataset imagefolder: {folders['train']} has no class folders")
        files = {split: _files(folder) for split, folder in folders.items()}
        parts = {split: self._read(folders[split], files[split], class_names) for split in folders}
        read_groups = group_reader(self.name, self.groups)
        if read_groups is not None:
            named = {split: read_groups(paths) for split, paths in files.items()}
            parts = grouped(f"dataset imagefolder: {self.path}", parts, named)
        return self.completed(parts, class_names)

    def fingerprint(self, root: Path | None = None) -> str:
        content = []
        for split, folder in self._folders(root).items():
            files = _files(folder)
            for path in files:
                file = folder / path
                content.append(f"{split}/{path}:{file.stat().st_size}:{hash_file(file)}")
            shown = {path.partition("/")[0] for path in files}
            content += [f"{split}/{name}/" for name in _classes(folder) if name not in shown]  # classes too
        return content_hash(content, self.model_dump(mode="json", exclude={"path"}))

    def _folders(self, root: Path | None) -> dict[str, Path]:
        base = find_file(self.path, root)
        if not base.is_dir():
            raise HarnessError(f"dataset imagefolder: {base} is not a folder")
        where, folders = f"dataset imagefolder: {base}", _classes(base)
        found = by_split(where, folders)
        others = [folder for folder in folders if folder not in found.values()]
        if not found and not _like_splits(folders):
            return {"train": base}
        if "train" not in found:
            raise HarnessError(
                f"{where} has {', '.join(found.values() or folders)} but no folder called train or training; "
                "rename the one of the training images, or where all are classes put them below one called train"
            )
        if others:
            known = [name for names in SPLIT_NAMES.values() for name in names]
            raise HarnessError(
                f"{where} has {', '.join(others)} beside {', '.join(found.values())}; rename or move what is no split, "
                f"or where all are classes put them below one called train ({did_you_mean(others[0].lower(), known)})"
            )
        return {split: base / folder for split, folder in found.items()}

    def _read(self, folder: Path, files: list[str], class_names: list[str]) -> Split:
        import numpy as np

        extra = sorted({path.partition("/")[0] for path in files} - set(class_names))
        if extra:
            raise HarnessError(
                f"dataset imagefolder: {folder} has classes that train lacks: {', '.join(extra)}"
            )
        if not files:
            raise HarnessError(f"dataset imagefolder: no images below {folder} ({', '.join(SUFFIXES)})")
        decoded = ((path, self.pixels(folder / path, str(folder / path))) for path in files)
        images = stack(self.name, decoded, len(files))
        labels = np.array([class_names.index(path.partition("/")[0]) for path in files], dtype=np.int64)
        return Split(images, labels)


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(HIDDEN))


def _like_splits(folders: list[str]) -> bool:
    """Whether the names begin with those of train and of another split: training_set and test_set, not classes."""
    words = [match.group() for name in folders if (match := re.match("[a-z]+", name.lower()))]
    likely = [split for split, names in SPLIT_NAMES.items() if set(names) & set(words)]
    return "train" in likely and len(likely) > 1


def _files(folder: Path) -> list[str]:
    """Paths of the images below a folder's class folders, relative, with /, sorted."""
    found = []
    for name in _classes(folder):
        met: set[str] = set()
        for place, folders, names in os.walk(folder / name, onerror=_closed, followlinks=True):
            folders[:] = [each for each in folders if not each.startswith(HIDDEN)]  # what is left is walked
            if (real := os.path.realpath(place)) in met:
                raise HarnessError(
                    f"dataset imagefolder: {folder / name} leads to {real} twice, once by the link {place}"
                )
            met.add(real)
            for file in (Path(place, each) for each in names):
                if file.name.startswith(HIDDEN) or not file.is_file():
                    continue
                if file.suffix.lower() in UNREAD:
                    raise HarnessError(
                        f"dataset imagefolder: {file}: {file.suffix} is not read; convert such images to PNG, or move "
                        f"them away ({', '.join(SUFFIXES)} are read)"
                    )
                if file.suffix.lower() in SUFFIXES:
                    found.append(file.relative_to(folder).as_posix())
    return sorted(found)


def _closed(error: OSError) -> None:
    """Images that cannot be seen are an error: without them the data would be others, and nobody would know."""
    raise HarnessError(f"dataset imagefolder: {error.filename} cannot be read: {error.strerror}") from error


PLUGINS = (ImageFolder,)
