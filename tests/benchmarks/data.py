"""What the cache of decoded data sets saves: time to load, and memory that a process has for itself.

    python tests/benchmarks/data.py

A folder of PNG images is loaded without the cache, with an empty one, and with a full one, each in a new process that
then reads every pixel, as training would. Own memory is what the load added to the pages that the process has written
itself: those of a mapped file are shared by all, and the system may take them back.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from measure import apart, clock, keep, options, table


def own_memory() -> int:
    """Bytes of pages that this process has written and no other shares; pages of a mapped file are everybody's."""
    found = re.search(r"Private_Dirty:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return 1024 * int(found[1])


def load(folder: str, cached: bool) -> dict[str, Any]:
    import harness
    from harness.dataset_cache import load_splits

    dataset = harness.create("dataset", "imagefolder", path=folder)
    mark = dataset.fingerprint()
    before = own_memory()
    seconds, splits = clock(lambda: load_splits(dataset, Path(), mark if cached else ""))
    total = sum(int(split.images.sum()) for split in (splits.train, splits.val, splits.test))
    return {"seconds": seconds, "own_memory": own_memory() - before, "sum": total}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--load", nargs=2, help="one measurement, for the script's own use")
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load[0], args.load[1] == "cached")))
        return
    import numpy as np
    from PIL import Image

    count, side = (120, 64) if args.quick else (args.images, args.side)
    with tempfile.TemporaryDirectory() as place:
        rng = np.random.default_rng(0)
        smooth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for number in range(count):
            file = Path(place) / "images" / f"class{number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(smooth).resize((side, side))
            noisy = np.asarray(picture) // 2 + rng.integers(0, 64, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noisy).save(file)
        os.environ["HARNESS_CACHE"] = str(Path(place) / "cache")
        ways = {"decoded": "plain", "decoded and kept": "cached", "mapped": "cached"}
        rows = [
            {"load": way, **apart(__file__, "--load", str(Path(place) / "images"), how)}
            for way, how in ways.items()
        ]
    assert len({row.pop("sum") for row in rows}) == 1  # the same pixels each time
    table(rows)
    print(f"mapping is {rows[0]['seconds'] / rows[2]['seconds']:.0f} times faster than decoding")
    keep(__file__, args, {"rows": rows, "images": count, "side": side})


if __name__ == "__main__":
    main()
