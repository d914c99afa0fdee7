"""A run in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from harness.api import Field, PluginError, Tracker, hookimpl
from harness_plugins.trackers._values import numbers, outcome


class TensorBoard(Tracker):
    """Curves of every training, and a table of the cells with their scores, as TensorBoard event files.

    Below `folder`, a folder a run: scalars `<stage>/val_loss`, `<stage>/val_accuracy` and `<stage>/clients` over the
    rounds; below it a folder a cell, with its axes as hyper-parameters and its scores as metrics `scores/<score>`.
    Cells without scores are told in a text with the reason. Files are flushed after every round and cell. To look:
    tensorboard --logdir FOLDER.

    Needs the extra: pip install 'psr-harness[tensorboard]'. Raises PluginError where it is not installed.
    """

    name = "tensorboard"
    requires: ClassVar[tuple[str, ...]] = ()  # used in the main process alone
    extras: ClassVar[dict[str, str]] = {"tensorboard": "psr-harness[tensorboard]"}

    folder: str = Field(
        "tensorboard", min_length=1, description="folder of the event files, made where there is none"
    )

    _writer: Any = PrivateAttr(None)
    _run: str = PrivateAttr("")

    @hookimpl
    def harness_run_started(self, run: dict[str, Any]) -> None:
        self._close()
        self._run = str(Path(self.folder) / str(run["id"]))
        self._writer = _writer(self._run)
        self._writer.add_text("run", "\n".join(f"    {name}: {value}" for name, value in run.items()))
        self._writer.flush()

    @hookimpl
    def harness_round_finished(self, stage: str, round: dict[str, Any]) -> None:
        for name, value in numbers({k: v for k, v in round.items() if k not in ("round", "rounds")}).items():
            self._writer.add_scalar(f"{stage}/{name}", value, int(round["round"]))
        self._writer.flush()

    @hookimpl
    def harness_cell_finished(self, cell: dict[str, Any], record: dict[str, Any]) -> None:
        found = outcome(record)
        scores = {f"scores/{name}": value for name, value in numbers(found["scores"]).items()}
        if not scores:
            reason = found["error"] or found["reason"] or "no scores"
            self._writer.add_text(f"cells/{found['id']}", f"{found['status']}: {reason}")
            self._writer.flush()
            return
        # A writer of its own: TensorBoard takes each folder for one set of hyper-parameters.
        with _writer(str(Path(self._run) / found["id"])) as writer:
            writer.add_hparams({**found["parameters"], "status": found["status"]}, scores, run_name=".")

    @hookimpl
    def harness_run_finished(self, run: dict[str, Any]) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._run = None, ""


def _writer(folder: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PluginError(
            f"the tracker tensorboard needs: pip install 'psr-harness[tensorboard]' ({error})"
        ) from None
    return SummaryWriter(folder)  # type: ignore[no-untyped-call]


PLUGINS = (TensorBoard,)
