"""One small update as the server would receive it, for attacks that look into updates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.contracts.defence import Sampling, hiding
from harness.contracts.privacy import Observation, ObservedUpdate
from harness.errors import PluginError
from harness.evaluation.predict import to_pixels
from harness.federation.batches import steps_per_round
from harness.federation.counts import clients_per_round
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.rounds import Federation
from harness.federation.vector import buffer_names, flatten, float_buffers, load_buffers, load_vector, mean_of
from harness.functional import freeze_batch_norms
from harness.random import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.training import Training


def observe(
    training: Training, module: nn.Module, wanted: Observation, prepared: list[dict[str, Any]], number: int
) -> tuple[ObservedUpdate, Tensor, Tensor]:
    """Trains one round from a given global model, with clients that hold only a few of their records each.

    module: the global model, left as it was. prepared: what each defence prepared for this training. number: which
    draw of clients and records. A server that sees only sums gets the mean, weighted as in the training, over as many
    clients as take part in a round. Returns the update with what the server knows, and the images (b, c, h, w) and
    labels (b,) of all clients behind it, one client after another.
    """
    spec, settings, pool = training.spec, training.spec.federation, training.pool
    module = copy.deepcopy(module)
    rng = numpy_generator(spec.seed, "observed", number)
    order = rng.permutation(settings.clients).tolist()
    together = clients_per_round(settings.clients, settings.participation) if hiding(spec.defences) else 1
    chosen = order[:together]
    held = {i: pool.clients[i] for i in chosen}
    has = number % 2 == 0
    if wanted.attribute is not None:
        held = {i: _with_attribute(training, p, wanted, has) for i, p in held.items()}
    if wanted.records is not None:
        held = {i: rng.choice(p, min(wanted.records, len(p)), replace=False) for i, p in held.items()}
    batch = max(len(positions) for positions in held.values())
    batch = min(batch, wanted.batch_size or batch)
    clients = {}
    for i, positions in held.items():
        steps = steps_per_round(len(positions), batch, wanted.epochs, None)
        sampling = training.sampling(len(positions), batch)
        records = training.data.train.take(positions)
        clients[i] = Client(i, *records, steps, sampling, spec.defences, list(prepared))
    local = settings.local.model_copy(update={"batch_size": batch})
    stream = f"{training.stage_key}:observe:{number}"
    trainer = LocalTrainer(module, local, spec.seed, stream, spec.compute.precision, training.device)
    trainer.batch_norm = wanted.batch_norm
    rules = replace(training.rules(prepared, 0), byzantine=None, malicious=())
    nobody = Client(-1, *training.data.train.take(pool.members[:0]), 0, Sampling())
    everyone = [clients.get(i, nobody) for i in range(settings.clients)]
    federation = Federation(module, everyone, trainer, rules, spec.seed, stream)
    round = 0 if wanted.at == "start" else settings.rounds - 1
    multiplier = settings.local.schedule.multiplier(round, settings.rounds)
    weights, buffers = flatten(module), float_buffers(module, buffer_names(module))
    start = Start(round, weights, multiplier=multiplier, rounds=settings.rounds, clients=len(chosen))
    updates, _ = federation.updates(start, chosen, [], buffers)
    load_vector(module, weights)
    load_buffers(module, buffers)
    module.train()
    if wanted.batch_norm == "eval":
        freeze_batch_norms(module)
    by_records = spec.weighting == "examples"
    behind, optimizer = [clients[i] for i in updates], local.optimizer
    counts = [client.size if by_records else 1 for client in behind]
    sizes = tuple(client.size for client in behind)
    seen = ObservedUpdate(
        update=mean_of(torch.stack(list(updates.values())), counts),
        weights=weights,
        module=module,
        layout=trainer.layout,
        records=sum(sizes),
        batch_size=batch,
        epochs=wanted.epochs,
        optimizer={"name": optimizer.name, **optimizer.model_dump(), "lr": optimizer.lr * multiplier},
        num_classes=training.data.num_classes,
        input_shape=training.data.input_shape,
        clients=len(chosen),
        attribute=None if wanted.attribute is None else has,
        proximal=local.proximal,
        sizes=sizes,
        shares=tuple(count / sum(counts) for count in counts),
    )
    images = torch.cat([to_pixels(client.images) for client in behind])
    return seen, images, torch.cat([client.labels for client in behind])


def _with_attribute(training: Training, positions: np.ndarray, wanted: Observation, has: bool) -> np.ndarray:
    """Positions of the client's records with the attribute (has), or without. Raises PluginError if there are none."""
    assert wanted.attribute is not None
    images, labels = training.data.train.take(positions)
    mask = wanted.attribute(to_pixels(images), labels).cpu().numpy().astype(bool)
    chosen = positions[mask == has]
    if not len(chosen):
        raise PluginError(f"a client has no record {'with' if has else 'without'} the attribute asked about")
    return chosen
