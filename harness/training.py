"""A training stage: a federation from its specification, run from initial weights or from a given module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from harness.borders import built, check_logits, network
from harness.contracts.attack import ByzantineAttack, PoisonContext, PoisoningAttack
from harness.contracts.defence import ClientHooks, Defence, PrepareContext, Sampling
from harness.dealing import Pool, Records, deal
from harness.errors import blamed
from harness.evaluation.dropped import check_trained
from harness.evaluation.predict import predict
from harness.federation.batches import steps_per_round
from harness.federation.canaries import CanaryClient, GradientCanaries, Planting, plant
from harness.federation.counts import malicious_clients, own_seed, participants
from harness.federation.data import DeviceData, load
from harness.federation.dropout import seed_dropout
from harness.federation.local import Client, LocalTrainer, seeded_modules
from harness.federation.memory_format import channels_last
from harness.federation.outcome import Outcome
from harness.federation.poison import poison
from harness.federation.recorder import Recorder
from harness.federation.rounds import Federation, Rules
from harness.federation.separation import check_separation
from harness.federation.threads import ThreadedTrainer
from harness.federation.together import Run, run_together
from harness.federation.vector import layout
from harness.federation.vectorised import VectorisedTrainer
from harness.privacy.promised import promised
from harness.random import derive, numpy_generator, torch_generator
from harness.stacks import check_stack

if TYPE_CHECKING:
    from harness.contracts.defence import Guarantee
    from harness.contracts.model import Model
    from harness.stage_specs import TrainSpec

Report = Callable[[int, int, dict[str, Any]], None]
ROOT = -1  # the root dataset's number as a client


@dataclass
class Trained:
    """A trained module and facts of its training. prepared: for each training so far, one dict per defence.

    recorder: what was kept for privacy attacks, where the variant asks for it. execution: how clients were trained.
    """

    module: nn.Module
    outcome: Outcome
    prepared: list[list[dict[str, Any]]]
    recorder: Recorder | None = None
    execution: dict[str, Any] = field(default_factory=dict)


@dataclass
class Ready:
    """A training before its first round. schedule: the clients of each round. prepared: one dict per defence.

    multiplier(round): factor of the local learning rate. evaluate(round): scores on val, {} in rounds that skip them.
    """

    federation: Federation
    schedule: list[list[int]]
    multiplier: Callable[[int], float]
    evaluate: Callable[[int], dict[str, float]]
    prepared: list[dict[str, Any]]
    recorder: Recorder | None

    def run(self, report: Report) -> Run:
        """The training's rounds, to be run."""
        return Run(self.federation, self.schedule, self.multiplier, self.evaluate, report)

    def trained(self, history: list[list[dict[str, Any]]] | None = None) -> Trained:
        """The result, once the rounds were run. history: what was prepared for earlier trainings.

        Raises HarnessError where the rounds used no update.
        """
        federation = self.federation
        check_trained(federation.outcome.history, bool(self.prepared))
        prepared = [*(history or []), self.prepared]
        module, facts = federation.module.eval(), dict(federation.trainer.facts)
        return Trained(module, federation.outcome, prepared, self.recorder, facts)


class Training:
    """One TrainSpec on one device. stage_key seeds the mechanism noise, so that no two stages share it.

    at_a_time: clients that may train at the same time, on as many cores.
    """

    generator = staticmethod(torch_generator)  # for mechanism noise and the records of a batch

    def __init__(self, spec: TrainSpec, stage_key: str, device: str, at_a_time: int = 1) -> None:
        self.spec = spec
        self.stage_key = stage_key
        self.device = device
        self.at_a_time = at_a_time
        self.data: DeviceData = load(spec.dataset, spec.root, device, spec.fingerprint)
        records = Records(self.data.train.labels.cpu().numpy(), self.data.train.groups)
        with seeded_modules(device, self.seed, "partition"):
            self.pool: Pool = deal(records, spec.federation, spec.holdout, spec.seed, spec.variant, self.seed)
        share = spec.threat.malicious if spec.threat is not None else 0.0
        self.malicious = malicious_clients(spec.federation.clients, share, spec.seed) if share else []

    @property
    def seed(self) -> int:
        """The seed of initial weights, partition, rounds and batches."""
        return own_seed(self.spec.seed, self.spec.variant)

    @cached_property
    def planting(self) -> Planting | None:
        """The canaries of this training, where its variant plants some."""
        variant = self.spec.variant
        if variant is None or variant.canaries is None:
            return None
        d = sum(part.stop - part.start for part in layout(self.initial_module()).values())
        images, classes = self.data.train.images, self.data.num_classes
        settings = self.spec.federation
        taking_part = sorted(self._taking_part(settings.clients, settings.rounds))
        return plant(variant.canaries, variant.name, self.spec.seed, taking_part, d, images, classes)

    @property
    def clients(self) -> int:
        """How many clients there are, including canaries that are clients."""
        own = self.planting
        return self.spec.federation.clients + (len(own.clients) if own is not None else 0)

    def members(self, fine_tuning: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Positions, sorted, of the records that the released model was trained on.

        They are the records of every client that some round draws, in this training or in a compressor's fine_tuning
        (its `purpose` and `rounds`): a release can tell nothing of a client that no round draws. A record of a client
        that trains is a member even where batches left it out by chance, because of Poisson sampling's coins or of
        local steps that make less than an epoch: a mechanism runs on, and protects, the client's whole data set.
        """
        drawn = self._taking_part(self.clients, self.spec.federation.rounds)
        for part in fine_tuning:
            drawn |= self._taking_part(self.clients, part["rounds"], part["purpose"])
        own = [positions for i, positions in enumerate(self.pool.clients) if i in drawn]
        return np.sort(np.concatenate(own)) if own else np.empty(0, dtype=np.int64)

    def initial_module(self) -> nn.Module:
        """The architecture with its initial weights, the same for every cell of a seed."""
        return self.build(self.spec.model)

    def build(self, model: Model) -> nn.Module:
        """An untrained network for this data, with initial weights, as the defences change it."""
        spec = self.spec
        with seeded_modules("cpu", self.seed, "initial weights"):
            module = built(model, self.data.input_shape, self.data.num_classes, spec.normalization)
            for defence in spec.defences:
                with blamed(defence):
                    module = network(defence.model(module), f"defence {defence.name}: model")
        seed_dropout(module)
        module = module.to(self.device)
        if channels_last(module, spec.compute, self.device):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def check(self, module: nn.Module, hooks: tuple[ClientHooks, ...] = ()) -> None:
        """Raises NotApplicable where a defence cannot train this network, or not with these hooks before it."""
        check_stack(self.spec.defences, module, hooks)
        check_separation(self.spec.defences, module, self.data.input_shape, hooks)

    def run(
        self,
        module: nn.Module,
        report: Report,
        *,
        rounds: int | None = None,
        purpose: str = "train",
        history: list[list[dict[str, Any]]] | None = None,
        hooks: tuple[ClientHooks, ...] = (),
    ) -> Trained:
        """Train `module` in place. A purpose other than "train" draws other batches, coins and noise.

        hooks: run at every client before the defences'.
        """
        ready = self.set_up(module, rounds=rounds, purpose=purpose, history=history, hooks=hooks)
        with closing(ready.federation.trainer):
            run_together([ready.run(report)])
        return ready.trained(history)

    def set_up(
        self,
        module: nn.Module,
        *,
        rounds: int | None = None,
        purpose: str = "train",
        history: list[list[dict[str, Any]]] | None = None,
        hooks: tuple[ClientHooks, ...] = (),
        kind: type[Federation] = Federation,
        prepared: list[dict[str, Any]] | None = None,
    ) -> Ready:
        """Set up a training, for `run` to run its rounds. Raises what `check` raises.

        kind: the class of the federation. prepared: what the defences prepare, where that was settled elsewhere.
        Other parameters are those of `run`. Raises PluginError where the network to train returns no logits.
        """
        self.check(module, hooks)
        if purpose == "train":
            makers = [self.spec.model, *(d for d in self.spec.defences if type(d).model is not Defence.model)]
            shape, classes = self.data.input_shape, self.data.num_classes
            check_logits(module, shape, classes, self.device, makers)
        spec, settings = self.spec, self.spec.federation
        rounds = settings.rounds if rounds is None else rounds
        schedule = self._schedule(self.clients, rounds, purpose)
        history = history or []
        seed = self.seed if purpose == "train" else derive(self.seed, purpose)
        noise_seed = f"{self.stage_key}:{purpose}:{len(history)}"
        with seeded_modules(self.device, seed, "set-up"):
            prepared = self._prepare(schedule, history) if prepared is None else prepared
            rules = self.rules(prepared, 0 if purpose == "train" else settings.rounds)
            clients = self._clients(prepared, hooks)
        trainer = self._trainer(module, seed, noise_seed)
        trainer.generator = self.generator
        if channels_last(module, spec.compute, self.device):
            trainer.facts["channels_last"] = True
        recorder = None
        if spec.variant is not None and (spec.variant.recorded_rounds or spec.variant.canaries):
            kept = spec.variant.recorded_rounds
            recorder = Recorder(kept, rounds, self.planting, settings.clients, self.counts())
        federation = kind(module, clients, trainer, rules, seed, noise_seed, recorder)
        every, last = settings.evaluate_every, rounds

        def evaluate(round: int) -> dict[str, float]:
            due = round + 1 == last or (every and (round + 1) % every == 0)
            return self.validate(module) if due else {}

        def multiplier(round: int) -> float:
            return settings.local.schedule.multiplier(round, last)

        return Ready(federation, schedule, multiplier, evaluate, prepared, recorder)

    def _trainer(self, module: nn.Module, seed: int, noise_seed: str) -> LocalTrainer:
        """The trainer that the scenario's `compute` asks for."""
        compute, local = self.spec.compute, self.spec.federation.local
        arguments = (module, local, seed, noise_seed, compute.precision, self.device)
        if compute.vectorised(self.device):
            how = {"apart": compute.clients == "semi-vectorised", "calibrates": compute.clients == "auto"}
            return VectorisedTrainer(*arguments, chunk=compute.chunk, **how)
        if self.at_a_time > 1:
            return ThreadedTrainer(*arguments, at_a_time=self.at_a_time)
        return LocalTrainer(*arguments)

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Accuracy and mean cross-entropy on the validation split (never on test)."""
        with seeded_modules(self.device, self.seed, "validation"):
            logits = torch.from_numpy(predict(module, self.data.val.images, 512, self.device))
        labels = self.data.val.labels.cpu()
        return {
            "val_accuracy": float((logits.argmax(1) == labels).double().mean()),
            "val_loss": float(functional.cross_entropy(logits.double(), labels)),
        }

    def guarantees(self, prepared: list[list[dict[str, Any]]]) -> list[Guarantee]:
        """The guarantees that defences of the stack give for these trainings together.

        `harness.privacy.lineage.strongest` decides which of them hold.
        """
        found = []
        malicious = set(map(str, self.malicious))
        shuffles = any(self.sampling(size).method != "poisson" for size in self.sizes())
        for position, defence in enumerate(self.spec.defences):
            guarantee = promised(defence, [training[position] for training in prepared])
            if guarantee is not None:
                # Without malicious clients: no accounting covers what they do to their records, or what they leave out.
                own = {i: spent for i, spent in guarantee.client_epsilon.items() if i not in malicious}
                settled: dict[str, Any] = {"by": defence.name, "client_epsilon": own}
                if shuffles and guarantee.unit == "record" and guarantee.sampling.get("method") == "poisson":
                    why = f"{defence.name} counts on Poisson sampling, and clients shuffle their records into batches"
                    settled |= {"holds": False, "broken_by": [*guarantee.broken_by, why]}
                found.append(guarantee.model_copy(update=settled))
        return found

    # parts --------------------------------------------------------------------------------------

    def _schedule(self, clients: int, rounds: int, purpose: str = "train") -> list[list[int]]:
        """Which of this many clients take part in each round."""
        spec, settings = self.spec, self.spec.federation
        always = self.malicious if spec.threat is not None and spec.threat.participation == "always" else ()
        return participants(
            clients, settings.participation, rounds, self.seed, purpose, always, settings.sampling
        )

    def _taking_part(self, clients: int, rounds: int, purpose: str = "train") -> set[int]:
        """Which of this many clients take part in some round."""
        return {i for ids in self._schedule(clients, rounds, purpose) for i in ids}

    def sampling(self, size: int, batch_size: int | None = None) -> Sampling:
        """How a client with `size` records draws batches; batch_size: None for the scenario's."""
        batch_size = batch_size or self.spec.federation.local.batch_size
        sampling = Sampling()
        for defence in self.spec.defences:
            sampling = defence.sampling(size, batch_size) or sampling
        return sampling

    def sizes(self) -> list[int]:
        """How many records each client holds."""
        return [len(c) for c in self.pool.clients]

    def counts(self) -> list[int]:
        """The weight of each client's update in a round's mean, canaries included."""
        sizes = self._held()
        return sizes if self.spec.weighting == "examples" else [1] * len(sizes)

    def _held(self) -> list[int]:
        """How many records each client trains on, canaries included."""
        sizes = list(self.sizes())
        if self.planting is not None:
            sizes[self.planting.client] += len(self.planting.records[1]) * (not self.planting.clients)
            sizes += [1] * len(self.planting.clients)
        return sizes

    def _steps(self, size: int) -> int:
        local = self.spec.federation.local
        return steps_per_round(size, local.batch_size, local.epochs, local.steps)

    def _prepare(
        self, schedule: list[list[int]], history: list[list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        settings = self.spec.federation
        sizes = self._held()
        rounds = [sum(i in ids for ids in schedule) for i in range(len(sizes))]
        groups = self.data.train.groups
        largest = None
        if groups is not None:
            largest = int(np.unique(groups[self.pool.members], return_counts=True)[1].max())
        context = PrepareContext(
            sizes=sizes,
            steps=[self._steps(size) * count for size, count in zip(sizes, rounds, strict=True)],
            batch_size=settings.local.batch_size,
            records=sum(sizes),
            rounds=len(schedule),
            largest_group=largest,
            schedule=schedule,
            client_rate=settings.participation if settings.sampling == "poisson" else None,
        )
        found = []
        for position, defence in enumerate(self.spec.defences):
            with blamed(defence):
                found.append(
                    defence.prepare(replace(context, history=[training[position] for training in history]))
                )
        return found

    def _clients(self, prepared: list[dict[str, Any]], first: tuple[ClientHooks, ...] = ()) -> list[Client]:
        honest = (*first, *self.spec.defences)
        prepared = [*({} for _ in first), *prepared]
        attack, planting = self.spec.attack, self.planting
        poisoning = attack if isinstance(attack, PoisoningAttack) else None
        if planting is not None and planting.canaries.form == "gradient":
            honest = (*honest, GradientCanaries(planting, self.data.num_classes))
            prepared = [*prepared, {}]
        clients = []
        for i, positions in enumerate(self.pool.clients):
            images, labels = self.data.train.take(positions)
            if planting is not None and not planting.clients and i == planting.client:
                more = planting.records
                images, labels = torch.cat([images, more[0]]), torch.cat([labels, more[1]])
            client = self._client(i, images, labels, honest, prepared)
            if poisoning is not None and i in self.malicious:
                poisoned = poison(poisoning, images, labels, self._poison_context(i))
                client.attacking = self._attacker(i, *poisoned, poisoning, honest, prepared, len(first))
            clients.append(client)
        if planting is not None:
            clients += [
                self._canary(planting, len(clients) + position, number, prepared)
                for position, number in enumerate(planting.clients)
            ]
        return clients

    def _attacker(
        self,
        number: int,
        images: torch.Tensor,
        labels: torch.Tensor,
        attack: PoisoningAttack,
        honest: tuple[ClientHooks, ...],
        prepared: list[dict[str, Any]],
        task: int,
    ) -> Client:
        """A client while it attacks. task: how many of the first hooks belong to what is trained, not to a defence."""
        assert self.spec.threat is not None
        if self.spec.threat.capability_with(attack) == "data":
            return self._client(number, images, labels, (*honest, attack), [*prepared, {}])
        hooks, own = (*honest[:task], attack), [*prepared[:task], {}]
        return Client(number, images, labels, self._steps(len(labels)), Sampling(), hooks, own)

    def _poison_context(self, client: int) -> PoisonContext:
        spec = self.spec
        generator = torch_generator(spec.seed, "poison", client, device=self.device)
        return PoisonContext(client, self.data.num_classes, generator, tuple(self.malicious), spec.root)

    def _canary(self, planting: Planting, client: int, number: int, prepared: list[dict[str, Any]]) -> Client:
        """A canary that is a client: its update is set before the defences' hooks see it."""
        sent = planting.canaries.scale * planting.sign(number)
        hooks = (CanaryClient(int(planting.coordinates[number]), sent), *self.spec.defences)
        images, labels = planting.images[number : number + 1], torch.zeros(1, dtype=torch.int64)
        own = [{}, *prepared[-1 - len(self.spec.defences) : -1]]
        return Client(client, images, labels.to(images.device), 0, Sampling(), hooks, own)

    def _client(
        self,
        number: int,
        images: torch.Tensor,
        labels: torch.Tensor,
        hooks: tuple[ClientHooks, ...],
        prepared: list[dict[str, Any]],
    ) -> Client:
        size = len(labels)
        return Client(number, images, labels, self._steps(size), self.sampling(size), hooks, list(prepared))

    def _root(self) -> Client | None:
        """The root dataset, for a rule that has one, as a client without hooks: a seeded draw from validation."""
        for rule in self.spec.aggregators:
            if rule.root_records:
                val = self.data.val
                rng = numpy_generator(self.seed, "root dataset")
                drawn = np.sort(rng.permutation(len(val))[: rule.root_records])
                images, labels = val.take(drawn)
                steps = self._steps(len(labels))
                return Client(ROOT, images, labels, steps, Sampling())
        return None

    def rules(self, prepared: list[dict[str, Any]], done: int) -> Rules:
        """How the server turns updates into a step. prepared: one dict per defence. done: rounds trained before."""
        spec, settings = self.spec, self.spec.federation
        aggregators = list(spec.aggregators)
        for defence, own in zip(spec.defences, prepared, strict=True):
            aggregators[-1] = defence.aggregator(aggregators[-1], own)
        return Rules(
            aggregators=tuple(aggregators),
            tolerance=spec.tolerance,
            weighting=spec.weighting,
            buffers=settings.buffers,
            server=settings.server,
            compressors=spec.compressors,
            byzantine=spec.attack if isinstance(spec.attack, ByzantineAttack) else None,
            knowledge=spec.threat.knowledge if spec.threat is not None else None,
            malicious=tuple(self.malicious),
            done=done,
            active=spec.threat.active(done) if spec.threat is not None else None,
            root=self._root(),
            input_shape=self.data.input_shape,
        )
