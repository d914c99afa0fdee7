"""scikit-learn's embedded handwritten digits."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.api import Dataset, Field, Reference, Split, Splits
from harness_plugins.datasets._splits import complete

if TYPE_CHECKING:
    import numpy as np


class Digits(Dataset):
    """1,797 handwritten digits, 8x8, one channel, 10 classes, shipped inside scikit-learn: needs no download.

    The data holds integers v in 0..16. As uint8 they become round(255 v / 16), as float32 v / 16 exactly.
    The data has one part: test_fraction, then val_fraction, of its records are held out, stratified by class
    and seeded by split_seed; the rest is train. There are no groups: the source does not say who wrote which.
    """

    name = "digits"
    requires = ("sklearn.datasets",)
    reference = Reference(
        title="Optical Recognition of Handwritten Digits",
        authors="Alpaydin, Kaynak",
        venue="UCI Machine Learning Repository",
        year=1998,
        url="https://doi.org/10.24432/C50P49",
    )

    dtype: Literal["uint8", "float32"] = Field("uint8", description="pixels 0..255 or 0..1")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of all records held out for validation")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of all records held out for testing")
    split_seed: int = Field(0, ge=0, description="seed of the splits")

    def load(self, root: Path | None = None) -> Splits:
        import numpy as np

        table = _table()
        values, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
        if self.dtype == "uint8":
            images = np.rint(values * 255 / 16).astype(np.uint8)
        else:
            images = (values / 16).astype(np.float32)
        names = tuple(str(i) for i in range(10))
        return complete(
            self.name,
            {"train": Split(images, labels)},
            names,
            self.val_fraction,
            self.test_fraction,
            self.split_seed,
        )


def _table() -> np.ndarray:
    """(1797, 65): 64 pixels and the label. Reads the file itself: importing scikit-learn takes seconds."""
    import numpy as np

    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])


PLUGINS = (Digits,)
