"""Secure aggregation, as what it does to the server's view."""

from __future__ import annotations

from typing import ClassVar

from harness.api import Defence, Reference


class SecureAggregation(Defence):
    """The server learns the sum of a round's updates and nothing else of them.

    Simulated as a restriction of views: attacks that look at updates are given their mean, over as many clients as
    take part in a round and weighted as the training weighs them, and are scored on the records of all of these. No
    cryptography is run, nothing is quantised and no client drops out, so scores of training are those without it, and
    its cost is not in them. Only rules that follow from the sum (mean) and update compressors whose payloads can be
    added are applicable. It gives no differential privacy: the sum itself leaks, the more so the fewer clients there
    are. Source: Bonawitz et al. (2017).
    """

    name = "secure-aggregation"
    server_view: ClassVar[str] = "sum"
    reference = Reference(
        title="Practical secure aggregation for privacy-preserving machine learning",
        authors="Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth",
        venue="ACM CCS 2017",
        year=2017,
        url="https://doi.org/10.1145/3133956.3133982",
    )


PLUGINS = (SecureAggregation,)
