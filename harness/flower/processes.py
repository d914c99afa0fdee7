"""Flower's command-line programs as processes that cannot outlive their user."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from harness.errors import HarnessError
from harness.files import temporary_folder
from harness.flower import guard

START = 120.0  # seconds in which a SuperLink must answer


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that is deleted afterwards, with a path short enough for Ray's sockets (108 characters at most)."""
    short = "/tmp" if Path("/tmp").is_dir() else None
    with temporary_folder("psr-flower-", short) as folder:
        yield folder


def environment(folder: Path, gpu: int | None = None) -> dict[str, str]:
    """The environment of Flower's processes: state in `folder`, no telemetry or downloads, this process's modules.

    gpu: the only GPU that they see, by its number in this process; None for all.
    """
    scripts = os.pathsep.join(
        dict.fromkeys([str(Path(sys.executable).parent), sysconfig.get_path("scripts")])
    )
    shown = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": _name_of(gpu)}
    return (
        os.environ
        | shown
        | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in sys.path if p)),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        }
    )


def _name_of(gpu: int) -> str:
    """The driver's name for one of the GPUs that this process sees, which may not be all of the machine's."""
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return seen[gpu] if seen else str(gpu)


class Guarded:
    """A running command. `end`, or the death of this process, ends it and all that it started."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], cwd: Path | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,  # a terminal's Ctrl-C must reach only whoever decides what to do
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        return self.process.wait(timeout)

    def end(self) -> None:
        """Ends the command and all that it started; returns when nothing is left."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def tail(self, characters: int = 4000) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-characters:]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def superlink(
    folder: Path, *options: str, scheme: str = "http", env: dict[str, str] | None = None
) -> Iterator[tuple[Guarded, int]]:
    """A SuperLink on the loopback interface that answers, and its port. Raises HarnessError where it does not start.

    options: of `flower-superlink`, such as --simulation and --insecure. env: from `environment`; a simulation's apps
    inherit it, as they are children of the SuperLink.
    """
    port, health = free_port(), free_port()
    command = ["flower-superlink", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation", *options]
    command += ["--health-server-address", f"127.0.0.1:{health}"] if scheme == "https" else []
    link = Guarded(command, folder / "superlink.log", env or environment(folder), folder)
    try:
        deadline = time.monotonic() + START
        while not _answers(port if scheme == "http" else health, scheme):
            if not link.running or time.monotonic() > deadline:
                raise HarnessError(f"Flower's SuperLink did not start:\n{link.tail()}")
            time.sleep(0.1)
        yield link, port
    finally:
        link.end()


def _answers(port: int, scheme: str) -> bool:
    if scheme == "https":
        # Checking its certificate is left to the caller: only ask whether its health port is open.
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def configure(folder: Path, port: int, root_certificate: Path | None = None) -> str:
    """Write Flower's configuration for one SuperLink of ours; returns the connection's name."""
    home = folder / "flwr"
    home.mkdir(exist_ok=True)
    trust = "insecure = true" if root_certificate is None else f'root-certificates = "{root_certificate}"'
    text = f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{port}"\n{trust}\n'
    (home / "config.toml").write_text(text)
    return "own"
