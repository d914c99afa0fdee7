"""How much of the training records an attack got back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from harness.api import Metric, MetricContext, PluginError, Reference, Score, match_images

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

WINDOW = 7  # pixels a side of SSIM's window


class ReconstructionQuality(Metric):
    """How near reconstructed records are to the client's, for every record behind the observed updates.

    reconstruction_psnr: 10 log10(1 / MSE), in dB, for pixels in [0, 1], mean over records; not capped, so one
    record got back exactly makes it infinite. reconstruction_ssim: structural similarity in [-1, 1], mean
    over channels and records, with scikit-image's defaults (uniform 7x7 windows, sample covariance, K1 = 0.01,
    K2 = 0.03); left out for images below 7x7. An update's reconstructions come in any order: they are matched to
    its records so that the summed squared error is least, which for several records lifts even a guess a little.
    label_recovery: sum over classes of min(count found, true count) / records. A share to compare with what the
    class shares alone would give: it is not 0 for a guess. What the attack did not return is left out.
    reconstruction_psnr_gain, label_recovery_gain: the same less what a guess scores that looks at no update: for every
    record the mean image of the validation split, and for b records of an update its class shares times b, rounded to
    whole records by largest remainders. At 0 or below the attack found out nothing. The mean image is blurred, and
    nearer to most records than any real image. Source: Wang et al. (2004) for SSIM; Geiping et al. (2020) for PSNR of
    reconstructions.
    Raises PluginError where images or labels do not fit the records, or images are not finite.
    """

    name = "reconstruction"
    reference = Reference(
        title="Image quality assessment: from error visibility to structural similarity",
        authors="Wang, Bovik, Sheikh, Simoncelli",
        venue="IEEE Transactions on Image Processing 13(4)",
        year=2004,
        url="https://doi.org/10.1109/TIP.2003.819861",
    )
    needs: ClassVar[tuple[str, ...]] = ("reconstruction",)
    scores: ClassVar[dict[str, Score]] = {
        "reconstruction_psnr": Score("lower", "dB", "of reconstructed images; infinite where one is exact"),
        "reconstruction_ssim": Score("lower", "share", "structural similarity of reconstructed images"),
        "reconstruction_psnr_gain": Score(
            "lower",
            "dB",
            "reconstruction_psnr less that of the mean validation image; 0 or less: nothing was found",
        ),
        "label_recovery": Score("lower", "share", "labels of the records behind an update that were found"),
        "label_recovery_gain": Score(
            "lower", "share", "label_recovery less that of the validation split's class shares"
        ),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        result = context.reconstruction
        if result is None:
            raise PluginError("a reconstruction is needed")
        scores: dict[str, float] = {}
        if result.images is not None and result.true_images is not None:
            pairs = _pairs(result.true_images, result.images, "images")
            scores |= _images(pairs)
            if result.mean_image is not None and math.isfinite(scores.get("reconstruction_psnr", math.inf)):
                guess = result.mean_image.detach().cpu()
                guessed = _images([(true, guess.expand_as(true)) for true, _ in pairs])
                gain = scores["reconstruction_psnr"] - guessed["reconstruction_psnr"]
                scores["reconstruction_psnr_gain"] = gain
        if result.labels is not None and result.true_labels is not None:
            told = _pairs(result.true_labels, result.labels, "labels")
            scores |= _labels(told)
            if result.class_shares is not None and "label_recovery" in scores:
                shares = result.class_shares.detach().cpu()
                guessed = _labels([(true, _typical(shares, len(true))) for true, _ in told])
                scores["label_recovery_gain"] = scores["label_recovery"] - guessed["label_recovery"]
        return scores


def _pairs(true: Iterable[Tensor], found: Iterable[Tensor], what: str) -> list[tuple[Tensor, Tensor]]:
    """(truth, reconstruction) of each update, of one shape and on the CPU."""
    sides = [[t.detach().cpu() for t in side] for side in (true, found)]
    shapes = [[tuple(tensor.shape) for tensor in side] for side in sides]
    if shapes[0] != shapes[1]:
        raise PluginError(f"reconstructed {what} of shapes {shapes[1]} for records of shapes {shapes[0]}")
    return list(zip(*sides, strict=True))


def _images(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    import numpy as np
    from skimage.metrics import structural_similarity

    psnr, ssim = [], []
    for true, found in pairs:
        if not bool(found.isfinite().all()):
            raise PluginError("a reconstructed image is not finite")
        ordered = found[match_images(true, found)]
        for one, other in zip(true.double().numpy(), ordered.double().numpy(), strict=True):
            with np.errstate(divide="ignore"):
                psnr.append(-10 * np.log10(np.square(one - other).mean()))
            if min(one.shape[1:]) >= WINDOW:
                ssim.append(
                    structural_similarity(one, other, data_range=1.0, channel_axis=0, win_size=WINDOW)
                )
    scores = {}
    if psnr:
        scores["reconstruction_psnr"] = float(np.mean(psnr))
    if ssim:
        scores["reconstruction_ssim"] = float(np.mean(ssim))
    return scores


def _typical(shares: Tensor, count: int) -> Tensor:
    """(count,) int64 labels in these shares of the classes (k,), rounded to whole records by largest remainders."""
    import torch

    exact = shares.double() * count
    counts = exact.floor().long()
    # Stable: of equal remainders the lower class.
    order = torch.argsort(exact - counts, descending=True, stable=True)
    counts[order[: count - int(counts.sum())]] += 1
    return torch.repeat_interleave(torch.arange(len(shares)), counts)


def _labels(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    import numpy as np

    records = sum(len(true) for true, _ in pairs)
    hits = 0
    for true, found in pairs:
        classes, counts = np.unique(true.numpy(), return_counts=True)
        hits += sum(min(n, int((found == c).sum())) for c, n in zip(classes, counts, strict=True))
    return {"label_recovery": float(hits / records)} if records else {}


PLUGINS = (ReconstructionQuality,)
