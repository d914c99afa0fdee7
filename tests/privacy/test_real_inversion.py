"""X-rays, recognised from one update each: on the real data, which is skipped where it is absent."""

from __future__ import annotations

import pytest

import harness
from harness.scenario import load_text

TEXT = """
schema: 1
name: real-inversion
dataset: {{npz: {{path: "{root}/pneumonia-64.npz"}}}}
model: small-cnn
normalization: {{mean: 0.4739, std: 0.237}}
federation: {{clients: 5, rounds: 1, local: {{steps: 1, optimizer: {{sgd: {{lr: 0.05}}}}}}}}
defences: [none, dp-sgd: {{epsilon: 8}}, secure-aggregation]
threats:
  - {{name: server, attacks: [inverting-gradients: {{records: 1, targets: 3, iterations: 250}}]}}
"""


@pytest.mark.slow
def test_an_undefended_client_shows_its_x_ray_and_a_private_one_does_not(tmp_path, data_root):
    run = harness.run(
        load_text(TEXT.format(root=data_root), tmp_path / "x.yaml"),
        device="cpu",
        jobs=0,
        store=tmp_path / "s",
    )
    assert run.failed == 0, [r["error"] for r in run.records]
    found = {r["cell"]["defence"]: r["scores"] for r in run.records}
    assert found["none"]["reconstruction_psnr"] > 22  # 25 dB: ribs and heart are there
    assert found["none"]["reconstruction_ssim"] > 0.75
    assert found["none"]["label_recovery"] == 1.0
    for private in ("dp-sgd(epsilon=8)", "secure-aggregation"):
        assert found[private]["reconstruction_psnr"] < 16
        assert found[private]["reconstruction_ssim"] < 0.4
    pictures = [tmp_path / "s" / r["attack"]["pictures"][0] for r in run.records]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
