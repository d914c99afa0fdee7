"""Flower for real: `flwr run` as the engine's, SuperLink and SuperNodes as an exported cell's; nothing is left."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Flower's simulation needs ray: the extra `flower` is not installed")

import harness
from harness.flower import engine, guard
from harness.flower.export import export
from harness.flower.processes import Guarded, configure, environment, free_port, private_folder, superlink
from harness.grid import cells
from harness.scenario import load, load_text
from harness.stage_specs import train_spec
from harness.training import Training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("flwr", path=environment(Path())["PATH"]) is None, reason="no `flwr`"),
]

SCENARIO = """
schema: 1
name: real
dataset: digits
model: logistic
federation: {clients: 3, rounds: 2, partition: {dirichlet: {alpha: 1.0}},
             local: {steps: 4, batch_size: 32, optimizer: {sgd: {lr: 0.5}}}}
defences: [dp-sgd: {noise_multiplier: 0.6}]
aggregators: [centered-clipping: {tau: 0.1}]
metrics: [accuracy, loss]
threats:
  - {name: byzantine, phase: training, malicious: 0.34, attacks: [optimal-ipm]}
"""


@pytest.fixture
def nothing_left():
    """Fails where the test left a process running."""
    before = set(guard.descendants(os.getpid()))
    yield
    deadline = time.monotonic() + 10  # a process that is ending takes a moment to be gone
    while (left := set(guard.descendants(os.getpid())) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    commands = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in left]
    assert not [c for c in commands if "flower" in c or "flwr" in c or "ray" in c]


@pytest.mark.usefixtures("nothing_left")
def test_a_simulation_sees_the_one_gpu_it_is_given(tmp_path, monkeypatch):
    """Its apps are the SuperLink's children: what `flwr run` is told of GPUs does not reach them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert environment(tmp_path, 1)["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment(tmp_path)["CUDA_VISIBLE_DEVICES"] == "3,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(tmp_path, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    seen: dict[int, str] = {}

    class Stop(Exception):
        pass

    def superlink_of(folder, *options, env):
        with superlink(folder, *options, env=env) as (link, _):
            for pid in guard.descendants(link.process.pid):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                seen[pid] = next((v.decode() for v in variables if v.startswith(b"CUDA_VISIBLE")), "")
        raise Stop

    monkeypatch.setattr(engine, "superlink", superlink_of)
    training = Training(train_spec(next(iter(cells(load_text(SCENARIO))))), "key", "cpu")
    training.device = "cuda:1"
    with pytest.raises(Stop):
        engine.train(training, lambda *_: None)
    assert set(seen.values()) == {"CUDA_VISIBLE_DEVICES=1"}


@pytest.mark.usefixtures("nothing_left")
def test_the_engine_gives_the_records_of_one_process(tmp_path):
    """dp-sgd, a rule with state, an omniscient attacker: everything that could go astray between processes."""
    scenario = load_text(SCENARIO)
    results = {}
    for name in ("local", "flower"):
        chosen = scenario.model_copy(update={"engine": name})
        (results[name],) = harness.run(chosen, device="cpu", jobs=0, store=tmp_path / name).records
    ours, theirs = results["local"], results["flower"]
    assert theirs["status"] == "scored", theirs.get("error")
    for fact in ("accuracy", "loss"):
        assert theirs["scores"][fact] == ours["scores"][fact]
    assert theirs["guarantee"] == ours["guarantee"]


def wait_for(log: Path, text: str, *processes: Guarded, seconds: float = 900) -> None:
    """Until the log says so. Fails, with what they printed, where one of the processes ends before."""
    deadline = time.monotonic() + seconds
    while text not in log.read_text(errors="replace"):
        alive = all(process.running for process in processes) and time.monotonic() < deadline
        assert alive, "\n\n".join(process.tail() for process in processes)
        time.sleep(0.1)


def certificates(folder: Path) -> dict[str, Path]:
    """A certificate authority and a server certificate for 127.0.0.1, and three SuperNodes' keys."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject, key, issuer, signer, authority):
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject)).issuer_name(named(issuer)).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=12))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        )  # fmt: skip
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def private(key, kind):
        return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())

    folder.mkdir()
    files = {name: folder / name for name in ("ca.crt", "server.crt", "server.key")}
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    files["ca.crt"].write_bytes(certificate("test authority", authority, "test authority", authority, True))
    files["server.crt"].write_bytes(certificate("127.0.0.1", server, "test authority", authority, False))
    files["server.key"].write_bytes(private(server, serialization.PrivateFormat.PKCS8))
    for i in range(3):
        key = ec.generate_private_key(ec.SECP384R1())
        files[f"site{i}"], files[f"site{i}.pub"] = folder / f"site{i}", folder / f"site{i}.pub"
        files[f"site{i}"].write_bytes(private(key, serialization.PrivateFormat.OpenSSH))
        files[f"site{i}.pub"].write_bytes(
            key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        )
    return files


CELL = """
schema: 1
name: winner
dataset: digits
model: logistic
federation: {clients: 3, rounds: 2, local: {steps: 8, batch_size: 32, optimizer: {sgd: {lr: 0.5}}}}
aggregators: [mean]
metrics: [accuracy]
"""


@pytest.fixture(scope="module")
def winner(tmp_path_factory):
    """An exported cell's folder, and the accuracy in its record."""
    folder = tmp_path_factory.mktemp("winner")
    (folder / "winner.yaml").write_text(CELL)
    scenario = load(folder / "winner.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=folder / "runs").records
    export(scenario, record["id"], folder / "app")
    return folder / "app", record["scores"]["accuracy"]


@pytest.mark.usefixtures("nothing_left")
def test_an_exported_cell_simulated_has_the_accuracy_of_its_record(winner):
    app, accuracy = winner
    with private_folder() as folder, superlink(folder, "--insecure", "--simulation") as (_, port):
        command = [
            "flwr",
            "run",
            str(app),
            configure(folder, port),
            "--stream",
            "--run-config",
            "device='cpu'",
        ]
        command += [
            "--federation-config",
            "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=1",
        ]
        run = Guarded(command, folder / "run.log", environment(folder), folder)
        try:
            run.wait(900)
            result = json.loads((folder / "trained" / "result.json").read_text())
        finally:
            run.end()
    assert result["accuracy"] == accuracy
    assert not result["deployed"]


@pytest.mark.usefixtures("nothing_left")
def test_supernodes_with_keys_over_tls_one_of_which_is_killed(winner):
    """Three SuperNodes in processes of their own play the cell's clients; one dies while the second round trains."""
    app, accuracy = winner
    with private_folder() as folder, ExitStack() as stack:
        files = certificates(folder / "keys")
        tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key"]
        tls = [str(files.get(word, word)) for word in tls]
        link, port = stack.enter_context(superlink(folder, *tls, "--enable-supernode-auth", scheme="https"))
        name = configure(folder, port, files["ca.crt"])
        env = environment(folder)
        for i in range(3):
            subprocess.run(
                ["flwr", "supernode", "register", files[f"site{i}.pub"], name], env=env, check=True
            )
        nodes = []
        for i in range(3):
            command = ["flower-supernode", "--superlink", f"127.0.0.1:{port}"]
            command += ["--root-certificates", str(files["ca.crt"])]
            command += ["--auth-supernode-private-key", str(files[f"site{i}"])]
            command += ["--host", "127.0.0.1", "--port", str(free_port())]
            command += ["--node-config", f"partition-id={i} num-partitions=3"]
            nodes.append(Guarded(command, folder / f"node{i}.log", env, folder))
            stack.callback(nodes[-1].end)
        config = "nodes=3 device='cpu' round-timeout=300.0"
        command = ["flwr", "run", str(app), name, "--stream", "--run-config", config]
        run = Guarded(command, folder / "run.log", env, folder)
        stack.callback(run.end)
        wait_for(run.log, "round 1/2", link, run, *nodes)
        (victim,) = (pid for pid, parent, _ in guard._processes() if parent == nodes[2].process.pid)
        for pid in [victim, *guard.descendants(victim)]:
            os.kill(pid, signal.SIGKILL)
        result_file = folder / "trained" / "result.json"
        run.wait(900)
        assert result_file.exists(), "\n\n".join(process.tail() for process in (link, run, *nodes))
        result = json.loads(result_file.read_text())
    history = result["history"]
    assert [entry["round"] for entry in history] == [1, 2]
    assert history[0]["clients"] == 3
    assert history[-1]["clients"] == 2
    assert result["accuracy"] == pytest.approx(accuracy, abs=0.1)


class TestGuards:
    SCRIPT = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid} ')\n"
        "time.sleep(float(sys.argv[2]))\n"
    )

    def start(self, folder, seconds="600"):
        process = Guarded(
            [sys.executable, "-c", self.SCRIPT, str(folder / "pids"), seconds],
            folder / "log",
            dict(os.environ),
        )
        deadline = time.monotonic() + 60
        while not (folder / "pids").exists() or not (folder / "pids").read_text().endswith(" "):
            assert process.running
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process, [int(pid) for pid in (folder / "pids").read_text().split()]

    def alive(self, pids):
        return [pid for pid, _, dead in guard._processes() if pid in pids and not dead]

    def test_end_what_the_command_put_into_the_background(self, tmp_path):
        process, pids = self.start(tmp_path)
        assert len(self.alive(pids)) == 2
        process.end()
        assert not self.alive(pids)

    def test_and_what_a_command_that_has_ended_left_behind(self, tmp_path):
        process, pids = self.start(tmp_path, seconds="0")
        assert process.wait(60) == 0
        assert not self.alive(pids)
        process.end()

    def test_also_where_their_user_is_killed(self, tmp_path):
        code = (
            "import os, sys, time; sys.path[:0] = sys.argv[2].split(os.pathsep)\n"
            "from pathlib import Path; from harness.flower.processes import Guarded\n"
            f"Guarded([sys.executable, '-c', {self.SCRIPT!r}, sys.argv[1], '600'],"
            " Path(sys.argv[1] + '.log'), os.environ)\n"
            "time.sleep(600)\n"
        )
        path = tmp_path / "pids"
        user = subprocess.Popen([sys.executable, "-c", code, str(path), os.pathsep.join(sys.path)])
        deadline = time.monotonic() + 60
        while not path.exists() or not path.read_text().endswith(" "):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = [int(pid) for pid in path.read_text().split()]
        assert len(self.alive(pids)) == 2
        user.kill()
        user.wait()
        while left := self.alive(pids):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
