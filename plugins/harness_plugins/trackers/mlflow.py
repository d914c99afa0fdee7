"""A run in MLflow."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pydantic import PrivateAttr

from harness.api import Field, PluginError, Tracker, hookimpl
from harness_plugins.trackers._values import numbers, outcome

LONGEST = 500  # characters of a parameter's value that every MLflow store takes
STATUS = {"scored": "FINISHED", "failed": "FAILED", "not-applicable": "KILLED"}


class MLflow(Tracker):
    """One MLflow run for the whole run, with the rounds of every training, and one below it for each cell.

    To look: mlflow ui --backend-store-uri sqlite:///mlflow.db.

    Rounds are metrics `<stage>/val_loss`, `<stage>/val_accuracy` and `<stage>/clients`, with the round as step. A cell
    has its axes as parameters, its scores and `guarantee/epsilon` as metrics, and status, flags and reason as tags; a
    failed cell is a failed run. Everything is written when it happens. A run that was interrupted ends as KILLED.

    Needs the extra: pip install 'psr-harness[mlflow]'. Raises PluginError where it is not installed.
    """

    name = "mlflow"
    requires: ClassVar[tuple[str, ...]] = ()  # used in the main process alone
    extras: ClassVar[dict[str, str]] = {"mlflow": "psr-harness[mlflow]"}

    uri: str = Field(
        "sqlite:///mlflow.db", min_length=1, description="the tracking store: a database's or a server's URI"
    )
    experiment: str = Field(
        "psr-harness", min_length=1, description="name of the experiment; made where there is none"
    )

    _client: Any = PrivateAttr(None)
    _experiment: str = PrivateAttr("")
    _parent: str = PrivateAttr("")

    @hookimpl
    def harness_run_started(self, run: dict[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise PluginError(
                f"the tracker mlflow needs: pip install 'psr-harness[mlflow]' ({error})"
            ) from None
        self._client = MlflowClient(_absolute(self.uri))
        found = self._client.get_experiment_by_name(self.experiment)
        self._experiment = (
            self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        )
        facts = {name: str(value) for name, value in run.items()}
        self._parent = self._client.create_run(
            self._experiment, run_name=f"run {run['id']}", tags={f"harness.{n}": v for n, v in facts.items()}
        ).info.run_id

    @hookimpl
    def harness_round_finished(self, stage: str, round: dict[str, Any]) -> None:
        for name, value in numbers({k: v for k, v in round.items() if k not in ("round", "rounds")}).items():
            self._client.log_metric(self._parent, _key(f"{stage}/{name}"), value, step=int(round["round"]))

    @hookimpl
    def harness_cell_finished(self, cell: dict[str, Any], record: dict[str, Any]) -> None:
        found = outcome(record)
        tags = {
            "mlflow.parentRunId": self._parent, "harness.id": found["id"], "harness.status": found["status"],
            "harness.flags": ", ".join(found["flags"]), "harness.reason": found["error"] or found["reason"] or "",
        }  # fmt: skip
        run = self._client.create_run(self._experiment, run_name=f"cell {found['id']}", tags=tags).info.run_id
        for name, value in found["parameters"].items():
            self._client.log_param(run, _key(name), value[:LONGEST])
        for name, value in numbers({**found["scores"], "guarantee/epsilon": found["epsilon"]}).items():
            self._client.log_metric(run, _key(name), value)
        self._client.set_terminated(run, STATUS.get(found["status"], "FINISHED"))

    @hookimpl
    def harness_run_finished(self, run: dict[str, Any]) -> None:
        done = sum(run.get(name, 0) for name in ("scored", "failed", "not_applicable"))
        self._client.set_terminated(self._parent, "FINISHED" if done >= run["cells"] else "KILLED")
        self._client = None
        self._experiment = self._parent = ""


def _absolute(uri: str) -> str:
    """A SQLite file against the working directory of now: MLflow keeps its connections by address."""
    from pathlib import Path

    scheme = "sqlite:///"
    return f"{scheme}{Path(uri.removeprefix(scheme)).absolute()}" if uri.startswith(scheme) else uri


def _key(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-./ ]", "_", name)[:250]


PLUGINS = (MLflow,)
