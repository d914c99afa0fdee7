"""A Ray cluster of several nodes on this machine, on loopback alone, ended with all its processes."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Read when Ray is imported: no statistics leave the machine, addresses stay on loopback, and workers are not held back.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_worker_niceness="0",
)


class Nodes:
    """The test's cluster. Its head has no CPU, so that every stage runs on a node that was added."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._installed = {version: _install(folder, version) for version in ("1.2", "1.3")}
        head = {"num_cpus": 0, "include_dashboard": False, **_own_ports()}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(
            address=self.cluster.address, namespace="psr-harness", log_to_driver=False, logging_level="ERROR"
        )
        self._ray = ray

    def add(self, version: str = "1.2", wait: bool = True):
        """A node with one CPU that has this version of the plugin package."""
        path = os.pathsep.join([str(self._installed[version]), *filter(None, [os.environ.get("PYTHONPATH")])])
        return self.cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path}, wait=wait, **_own_ports())

    def kill(self, node) -> None:
        """At once, with everything that runs on it."""
        self.cluster.remove_node(node, allow_graceful=False)

    def wait_for(self, count: int) -> None:
        """Until so many nodes beside the head are alive."""
        deadline = time.monotonic() + 60
        while sum(node["Alive"] for node in self._ray.nodes()) != count + 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self._ray.shutdown()
        self.cluster.shutdown()


def _own_ports() -> dict[str, str | int]:
    """On loopback, at ports that are free: else a node waits for its agents to choose them, for 15 s at most."""
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "runtime_env_agent_port",
        "dashboard_agent_listen_port",
    )
    sockets = [socket.socket() for _ in names]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}
    for one in sockets:
        one.close()
    return {"node_ip_address": "127.0.0.1", **ports}


def _install(folder: Path, version: str) -> Path:
    """A folder as pip leaves it: the module, and the metadata that says its version and its entry point."""
    site = folder / version
    facts = site / f"lab_plugin-{version}.dist-info"
    facts.mkdir(parents=True)
    shutil.copy(HERE / "lab_plugin.py", site)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lab-plugin\nVersion: {version}\n")
    (facts / "entry_points.txt").write_text("[harness]\nlab = lab_plugin\n")
    return site


@pytest.fixture(scope="session")
def lab():
    """The plugin package in this process, in version 1.2."""
    from harness.registry import registry

    sys.path.insert(0, str(HERE))
    import lab_plugin

    if "gated-mean" not in registry().names("aggregator"):
        registry().add(lab_plugin, "lab", "lab-plugin", "1.2")
    return lab_plugin


@pytest.fixture(scope="module")
def nodes(lab):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'psr-harness[ray]'")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray's sockets are in there
    os.environ["RAY_TMPDIR"] = str(folder)
    made = Nodes(folder / "installed")
    try:
        yield made
    finally:
        made.close()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)
