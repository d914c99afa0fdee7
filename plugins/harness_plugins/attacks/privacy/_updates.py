"""Parameters of the attacks that look into single updates."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.api import Field, Observation, ObservedUpdate, PluginError, PrivacyAttack, PrivacyView


class UpdateAttack(PrivacyAttack):
    """An attack on what a client sends in one round, or on the mean of several clients' updates where the server sees
    sums alone. Subclasses declare `records`, and `run`.
    """

    knowledge: ClassVar[str] = "server"
    needs_non_members: ClassVar[bool] = False
    needs_sgd: ClassVar[bool] = True

    records: int | None = Field(1, ge=1, description="records of each client behind an update")
    epochs: int = Field(1, ge=1, description="passes over these records at the client")
    batch_size: int | None = Field(
        None, ge=1, description="records of a local step; None: all of them in one step"
    )
    at: Literal["start", "end"] = Field(
        "start", description="the model the client starts from: the first round's, or the trained one"
    )
    targets: int = Field(
        4, ge=1, description="updates to look into, each of another client and draw of records"
    )
    batch_norm: Literal["train", "eval"] = Field(
        "train", description="statistics that batch norms use at the client: the batch's, or the global ones"
    )

    @property
    def observation(self) -> Observation:
        return Observation(
            records=self.records,
            epochs=self.epochs,
            batch_size=self.batch_size,
            at=self.at,
            count=self.targets,
            batch_norm=self.batch_norm,
        )

    def updates(self, view: PrivacyView) -> tuple[ObservedUpdate, ...]:
        """What was observed. Raises PluginError where that is nothing."""
        if not view.observed:
            raise PluginError(
                f"{self.name} needs observed updates, which a threat of knowledge server grants"
            )
        return view.observed
