"""`engine: flower`: a training stage as a Flower run, in processes of its own that end with it."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, PluginError
from harness.evaluation.dropped import check_trained
from harness.flower.app_folder import write_app
from harness.flower.job import Job
from harness.flower.processes import Guarded, configure, environment, private_folder, superlink
from harness.training import Trained

if TYPE_CHECKING:
    from harness.training import Report, Training

SERVER = "from harness.flower.apps import engine_server\n\napp = engine_server()\n"
CLIENT = "from harness.flower.apps import engine_client\n\napp = engine_client()\n"


RESULT, PROGRESS, ERROR = "result.pickle", "progress.jsonl", "error.json"  # in the folder of the job


class FlowerError(HarnessError):
    """A Flower run that failed or ended without a result."""


def train(training: Training, report: Report) -> Trained:
    """The training by `flwr run` on a SuperLink of its own. Raises its PluginError, or FlowerError for other errors."""
    # Of several GPUs, Flower's processes see only this one.
    device, _, number = training.device.partition(":")
    with private_folder() as folder:
        env = environment(folder, int(number) if number else None)
        job = Job(training.spec, training.stage_key, device)
        job.write(folder / "job.pickle")
        config = {"job": str(folder / "job.pickle")}
        write_app(folder / "app", "psr-harness-cell", "One training of psr-harness", SERVER, CLIENT, config)
        with superlink(folder, "--insecure", "--simulation", env=env) as (_, port):
            name = configure(folder, port)
            command = ["flwr", "run", str(folder / "app"), name, "--stream"]
            command += ["--federation-config", _simulation(training, device)]
            run = Guarded(command, folder / "run.log", env, folder)
            try:
                _follow(run, folder, report)
            finally:
                run.end()
        found = pickle.loads((folder / RESULT).read_bytes())
    check_trained(found["outcome"].history, bool(training.spec.defences))
    module = training.initial_module()
    module.load_state_dict(found["state"])
    execution = {"clients": "sequential", "engine": "flower"}
    return Trained(module.eval(), found["outcome"], [found["prepared"]], found["recorder"], execution)


def _simulation(training: Training, device: str) -> str:
    """Flower's settings. How many clients train at once changes no number, as each draws from its own seeds."""
    spec = training.spec
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    threads = spec.compute.threads
    actors = max(1, min(cores // threads, training.clients))
    gpus = 1 if device.startswith("cuda") else 0
    return (
        f"num-supernodes={training.clients} client-resources-num-cpus={threads} "
        f"client-resources-num-gpus={gpus / actors} init-args-num-cpus={actors * threads} init-args-num-gpus={gpus}"
    )


def _follow(run: Guarded, folder: Path, report: Report) -> None:
    """Reports rounds until the result is there. Raises as `train`, also where the run ends without a result."""
    told = 0
    while True:
        ended = not run.running
        told += _tell(folder / PROGRESS, told, report)
        if (folder / RESULT).exists():
            return
        if (folder / ERROR).exists():
            error: dict[str, Any] = json.loads((folder / ERROR).read_text())
            message = f"{error['message']}\n{error['traceback']}"
            raise (PluginError if error["type"] == "PluginError" else FlowerError)(message)
        if ended:
            raise FlowerError(f"`flwr run` ended without a result:\n{run.tail()}")
        time.sleep(0.2)


def _tell(progress: Path, known: int, report: Report) -> int:
    """Report the rounds after the first `known`; returns how many there were."""
    if not progress.exists():
        return 0
    lines = progress.read_text().split("\n")[known:-1]  # the last one may not be whole yet
    for line in lines:
        entry = json.loads(line)
        report(entry["done"], entry["total"], entry["entry"])
    return len(lines)
