"""Updates in few bits: QSGD, TernGrad, signSGD and half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from harness.api import Field, Payload, PluginError, Reference, UpdateCompressionContext, UpdateCompressor
from harness_plugins.compressors._updates import (
    check_update,
    keep_residual,
    pack,
    raw_update,
    unpack,
    width_for,
    with_residual,
)

if TYPE_CHECKING:
    from torch import Tensor


class QSGD(UpdateCompressor):
    """Stochastic rounding of |u_i| / ||u|| to one of s levels, with the sign; unbiased (Alistarh et al., section 3.1).

    In buckets of `bucket` coordinates with a norm each: u_i -> ||u|| sign(u_i) q_i / s, where q_i is floor or
    ceiling of s |u_i| / ||u||, at random so that the mean is right. Sign and level take a fixed width of 1,
    2, 4 or 8 bits each coordinate; Elias coding, which the paper adds, is not used. d bits of width and 4
    bytes a bucket; an update whose norms are too large for float32 is sent as it is. No state. Cost: O(d).
    """

    name: ClassVar[str] = "qsgd"
    reference: ClassVar[Reference | None] = Reference(
        title="QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
        authors="Alistarh, Grubic, Li, Tomioka, Vojnovic", venue="NeurIPS", year=2017,
        url="https://arxiv.org/abs/1610.02132",
    )  # fmt: skip

    levels: int = Field(7, ge=1, le=127, description="levels s beside zero; 7 fit 4 bits with the sign")
    bucket: int = Field(512, ge=1, description="coordinates that share a norm")

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        if (raw := raw_update(update)) is not None:
            return raw
        d, generator = len(update), context.generator
        bucket = min(self.bucket, d)  # however large one for the whole update is given to be
        rows = torch.nn.functional.pad(update.detach().float(), (0, -d % bucket)).view(-1, bucket)
        # In float64, as squares of numbers that float32 holds need not fit it.
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64).float()
        if not bool((self.levels * norms).isfinite().all()):
            return Payload({"raw": update.detach().float()})
        scaled = (self.levels * rows.abs() / norms).nan_to_num(nan=0.0)
        coins = torch.rand(rows.shape, generator=generator, device=generator.device).to(rows)
        level = (scaled + coins).floor().clamp(max=self.levels)
        # 0 .. s, then the negative ones; there is no negative zero.
        codes = torch.where((rows < 0) & (level > 0), level + self.levels, level).flatten()[:d]
        return Payload(
            {
                "codes": pack(codes.to(torch.uint8), width_for(2 * self.levels + 1)),
                "norms": norms[:, 0].clone(),
            },
            {"d": d},
        )

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        import torch

        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        d, norms = int(payload.facts["d"]), payload.tensors["norms"]
        codes = unpack(payload.tensors["codes"], width_for(2 * self.levels + 1), d).float()
        signed = torch.where(codes > self.levels, self.levels - codes, codes)
        return signed / self.levels * norms.repeat_interleave(min(self.bucket, d))[:d]


class TernGrad(UpdateCompressor):
    """Each coordinate becomes -1, 0 or 1 times its layer's largest magnitude, at random (equation 1).

    b_i = 1 with probability |u_i| / max |u|; layer by layer, as the paper does. `clip` first limits a layer's values to
    that many standard deviations (section 4.2), as in the paper's experiments; without it the result is unbiased.
    Values of a layer that are all equal, as the one of a PReLU, have no deviation and are not limited. Each client has
    its own scales: the paper's workers share the largest one of a layer, so that what they send adds up to integers.
    Where values are limited but none reaches the limit, the authors' code scales by the limit all the same. Two bits a
    coordinate and 4 bytes a layer. No state. Cost: O(d).
    """

    name: ClassVar[str] = "terngrad"
    reference: ClassVar[Reference | None] = Reference(
        title="TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
        authors="Wen, Xu, Yan, Wu, Wang, Chen, Li", venue="NeurIPS", year=2017, url="https://arxiv.org/abs/1705.07878",
    )  # fmt: skip

    clip: float | None = Field(
        2.5, gt=0, description="limit of a value, in standard deviations of its layer; null: none"
    )

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        if (raw := raw_update(update)) is not None:
            return raw
        values, generator = update.detach().float().clone(), context.generator
        largest = []
        for part in _layers(context, len(update)):
            if self.clip is not None and bool((values[part] != values[part][0]).any()):
                limit = self.clip * float(values[part].std(correction=0))
                values[part] = values[part].clamp(-limit, limit)
            largest.append(values[part].abs().max())
        scales = torch.stack(largest)
        sizes = torch.tensor([p.stop - p.start for p in _layers(context, len(update))], device=update.device)
        chance = (values.abs() / scales.repeat_interleave(sizes)).nan_to_num(nan=0.0)
        coins = torch.rand(values.shape, generator=generator, device=generator.device).to(values)
        codes = torch.where(coins < chance, torch.where(values < 0, 2, 1), 0)
        return Payload({"codes": pack(codes.to(torch.uint8), 2), "scales": scales}, {"d": len(update)})

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        import torch

        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        d, scales = int(payload.facts["d"]), payload.tensors["scales"]
        codes = unpack(payload.tensors["codes"], 2, d)
        sizes = torch.tensor([p.stop - p.start for p in _layers(context, d)], device=codes.device)
        signs = torch.where(codes == 2, -1.0, codes.float())
        return signs * scales.repeat_interleave(sizes)


class SignSGD(UpdateCompressor):
    """One bit a coordinate: its sign, scaled by the mean magnitude.

    With error feedback (EF-signSGD, Karimireddy et al. 2019, algorithm 1) p = u + e is sent as mean|p|
    sign(p) and e keeps the rest, between the client's rounds; the mean is over the whole update, where the authors'
    experiments take one for each layer. Without it, and without the magnitude (`scaled: false`), it is signSGD, for
    majority-vote at the server. Signs alone leave no room for error feedback: what they leave out is of their own size,
    whatever the update's. The sign of zero is sent as plus. d bits, and 4 bytes for the magnitude. Cost: O(d).
    """

    name: ClassVar[str] = "signsgd"
    reference: ClassVar[Reference | None] = Reference(
        title="signSGD: Compressed Optimisation for Non-Convex Problems",
        authors="Bernstein, Wang, Azizzadenesheli, Anandkumar", venue="ICML", year=2018,
        url="https://arxiv.org/abs/1802.04434",
    )  # fmt: skip

    error_feedback: bool = Field(True, description="add what was not sent to the client's next update")
    scaled: bool = Field(
        True, description="send the mean magnitude too; false: signs alone, which needs error_feedback: false"
    )

    @model_validator(mode="after")
    def _signs_alone_keep_nothing(self) -> Self:
        if self.error_feedback and not self.scaled:
            raise ValueError(
                "signs alone (scaled: false) are of size 1, and what error feedback kept of them would outweigh "
                "every update: set error_feedback: false"
            )
        return self

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.error_feedback

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        carried = with_residual(update, state, self.error_feedback)
        if (raw := raw_update(carried)) is not None:
            return raw
        tensors = {"signs": pack(carried >= 0, 1)}
        if self.scaled:
            # In float64, as the sum of what float32 holds need not fit it.
            tensors["scale"] = carried.abs().mean(dtype=torch.float64).float()[None]
        payload = Payload(tensors, {"d": len(update)})
        keep_residual(carried, self.decode(payload, context), state, self.error_feedback)
        return payload

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        signs = unpack(payload.tensors["signs"], 1, int(payload.facts["d"])).float()
        return (2 * signs - 1) * payload.tensors["scale"] if self.scaled else 2 * signs - 1


class HalfUpdate(UpdateCompressor):
    """Values in 16 bits instead of 32: float16 (11 bits of precision, up to 65,504) or bfloat16 (8 bits, any size).

    Raises PluginError where a finite value does not fit float16. 2 d bytes. No state. Cost: O(d).
    """

    name: ClassVar[str] = "half-update"
    reference: ClassVar[Reference | None] = Reference(
        title="Mixed Precision Training",
        authors="Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu",
        venue="ICLR", year=2018, url="https://arxiv.org/abs/1710.03740",
    )  # fmt: skip

    passed_on: ClassVar[tuple[str, ...]] = ("values",)
    places_stay: ClassVar[bool] = True

    dtype: Literal["float16", "bfloat16"] = Field("float16", description="number format on the wire")

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        values = update.detach().to(getattr(torch, self.dtype))
        if bool((update.isfinite() & ~values.isfinite()).any()):
            raise PluginError(
                f"half-update: a value of {float(update.abs().max()):.3g} does not fit {self.dtype}; use bfloat16"
            )
        return Payload({"values": values})

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        return payload.tensors["values"].float()


def _layers(context: UpdateCompressionContext, d: int) -> list[slice]:
    return list(context.layout.values()) or [slice(0, d)]


PLUGINS = (QSGD, TernGrad, SignSGD, HalfUpdate)
