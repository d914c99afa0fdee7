"""Which cells make sense: a combination that does not is left out, with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import pairwise, product
from typing import TYPE_CHECKING

from harness.borders import outlined
from harness.contracts.aggregator import PreAggregator
from harness.contracts.attack import KNOWLEDGE, ByzantineAttack, EvasionAttack, PoisoningAttack
from harness.contracts.compressor import Surroundings
from harness.contracts.defence import Defence, hiding
from harness.contracts.model import Model, Normalization
from harness.contracts.privacy import PrivacyAttack
from harness.errors import NotApplicable, PluginError, blamed
from harness.federation.chain import check_chain
from harness.federation.counts import (
    clients_per_round,
    fine_tuning_purpose,
    malicious_clients,
    own_seed,
    participants,
    tolerated,
)
from harness.nesting import with_nested
from harness.numerals import short
from harness.options import FedAvg
from harness.stacks import check_nothing_dropped, check_stack

if TYPE_CHECKING:
    from torch import nn

    from harness.contracts.compressor import ModelCompressor
    from harness.grid import Cell, DataFacts
    from harness.scenario import Scenario


def reason_not_applicable(cell: Cell, facts: DataFacts, module: nn.Module | None) -> str | None:
    """Why a cell makes no sense, or None. module: the scenario's model on the meta device.

    The answer is about the combination, over all its seeds: a mean over only some of its seeds would not be comparable
    with the rest of the grid.
    """
    try:
        _check_training(cell, module)
        _check_compression(cell, facts, module)
        _check_attack(cell, facts)
        _check_surrogate(cell, facts, module)
    except (NotApplicable, PluginError) as error:
        return str(error)
    return None


def _check_training(cell: Cell, module: nn.Module | None) -> None:
    check_stack(cell.defences, module)
    _check_view(cell)
    _check_chain(cell)
    _check_honest_clients(cell)
    _check_attackers(cell)
    for rule in cell.aggregators:
        if rule.data_access == "public":
            _check_public(rule.name, cell)
    for n in _round_sizes(cell):
        f = tolerated(n, cell.scenario.tolerance)
        for rule in cell.aggregators:
            try:
                with blamed(rule):
                    n, f = rule.check(n, f)
            except PluginError as error:
                if getattr(rule, "f", None) is None and re.search(r"\bf\b", str(error)):
                    raise PluginError(f"{error}; {_tolerance_of(cell.scenario)}") from error
                raise


def _tolerance_of(scenario: Scenario) -> str:
    """Where f comes from, for messages. Cells without an attack have the same f, so that cells can be compared."""
    told = f"f is the share federation.byzantine_tolerance of the clients, here {scenario.tolerance:g}"
    if scenario.federation.byzantine_tolerance is not None:
        return told
    return f"{told}: by default the largest `malicious` of the threats"


def _round_sizes(cell: Cell) -> list[int]:
    """The numbers of clients that rounds have, over all seeds; several where every client has a coin of its own.

    Beside the clients that the coins draw, a threat with `participation: always` adds its own to every round. Shadow
    models, and compressors that fine-tune, draw other coins. Raises NotApplicable for a training of empty rounds.
    """
    settings, threat = cell.scenario.federation, cell.threat
    if settings.sampling == "fixed":
        return [clients_per_round(settings.clients, settings.participation)]
    variants = cell.attack.trainings(cell) if isinstance(cell.attack, PrivacyAttack) else ()
    tuned = _fine_tunings(cell.model_compressors)
    sizes: set[int] = set()
    for seed in cell.scenario.seeds:
        always = threat.participation == "always"
        present = tuple(malicious_clients(settings.clients, threat.malicious, seed)) if always else ()
        for variant in (None, *variants):
            own = own_seed(seed, variant)
            trainings = {"train": settings.rounds, **(tuned if variant is None or variant.compressed else {})}
            for purpose, rounds in trainings.items():
                drawn = _drawn_sizes(settings.clients, settings.participation, rounds, own, purpose, present)
                if not drawn:
                    raise NotApplicable(
                        f"nobody is trained: coins draw no client in any round, under seed {seed}"
                    )
                sizes |= drawn
    return sorted(sizes)


def _fine_tunings(compressors: Sequence[ModelCompressor]) -> dict[str, int]:
    """Purpose -> rounds of each training that a chain of compressors asks for."""
    found: dict[str, int] = {}
    for position, compressor in enumerate(compressors):
        for rounds in compressor.fine_tunings:
            found[fine_tuning_purpose(position, len(found))] = rounds
    return found


@lru_cache(4096)
def _drawn_sizes(
    clients: int, participation: float, rounds: int, seed: int, purpose: str, present: tuple[int, ...]
) -> frozenset[int]:
    """The numbers of clients in a training's rounds, as its coins draw them; empty rounds are left out."""
    drawn = participants(clients, participation, rounds, seed, purpose, present, "poisson")
    return frozenset(len(ids) for ids in drawn) - {0}


def _check_view(cell: Cell) -> None:
    """Raises NotApplicable where the server sees only sums of updates, and some method needs single updates."""
    hider = hiding(cell.defences)
    if hider is None:
        return
    looking = [rule.name for rule in cell.aggregators if not rule.sum_only]
    looking += [d.name for d in cell.defences if type(d).aggregator is not Defence.aggregator]
    looking += [compressor.name for compressor in cell.update_compressors if not compressor.summable]
    if looking:
        raise NotApplicable(
            f"{looking[0]} needs every update; with {hider.name} the server sees only their sum"
        )
    if isinstance(cell.attack, ByzantineAttack) and cell.threat.knowledge != "own":
        raise NotApplicable(
            f"with {hider.name} nobody sees other clients' updates; the threat {cell.threat.name!r} grants them, "
            "set `knowledge: own`"
        )


def _check_honest_clients(cell: Cell) -> None:
    """Raises NotApplicable where a client whom a rule trusts, or an attack needs, is absent or malicious."""
    settings, threat = cell.scenario.federation, cell.threat
    honest = [
        (f"{rule.name} trusts", rule.trusts, "trust another one, or the server's own update")
        for rule in cell.aggregators
        if rule.trusts
    ]
    if isinstance(cell.attack, ByzantineAttack) and cell.attack.needs_clients:
        honest.append((f"{cell.attack.name} needs", cell.attack.needs_clients, "name another one"))
    for who, clients, instead in honest:
        if absent := [client for client in clients if client >= settings.clients]:
            raise NotApplicable(
                f"{who} client {absent[0]}, but the clients run from 0 to {settings.clients - 1}"
            )
        if settings.participation < 1:
            raise NotApplicable(
                f"{who} client {clients[0]}, which does not take part in every round with "
                f"participation {settings.participation:g}"
            )
        for seed in cell.scenario.seeds if threat.malicious else ():
            malicious = malicious_clients(settings.clients, threat.malicious, seed)
            if misplaced := sorted(set(clients) & set(malicious)):
                raise NotApplicable(
                    f"{who} client {misplaced[0]}, which is malicious under seed {seed}: {instead}"
                )


def _check_attackers(cell: Cell) -> None:
    """Raises NotApplicable where attackers break a guarantee, or where none is drawn: scores are then of no attack.

    They break one that counts on a coin for every client, if the threat has them take part in every round.
    """
    settings, threat = cell.scenario.federation, cell.threat
    if not threat.malicious:
        return
    if threat.participation == "always" and settings.sampling == "poisson":
        for defence in cell.defences:
            if defence.protects == "client":
                raise NotApplicable(
                    f"{defence.name} counts on a coin for every client (federation.sampling: poisson), and under "
                    f"the threat {threat.name!r} the malicious ones take part always"
                )
    for seed in cell.scenario.seeds:
        attacked = _rounds_attacked(
            settings.clients,
            settings.participation,
            settings.rounds,
            seed,
            settings.sampling,
            threat.malicious,
            threat.participation == "always",
            threat.active(),
        )
        if not attacked:
            raise NotApplicable(
                f"nobody attacks: no malicious client is drawn in a round that the threat {threat.name!r} attacks, "
                f"under seed {seed}; set `participation: always` or more rounds"
            )
        if isinstance(cell.attack, ByzantineAttack):
            for n, m in attacked:
                with blamed(cell.attack):
                    cell.attack.check_round(n, m, sees_others=m < n and threat.knowledge != "own")


@lru_cache(4096)
def _rounds_attacked(
    clients: int,
    participation: float,
    rounds: int,
    seed: int,
    sampling: str,
    share: float,
    always: bool,
    active: range,
) -> tuple[tuple[int, int], ...]:
    """The sizes of the rounds that are attacked: (clients, malicious ones), where there are any of these.

    active: the rounds, from 0, in which the threat attacks. share: of malicious clients; always: they take part in
    every round.
    """
    attackers = malicious_clients(clients, share, seed)
    present = attackers if always else ()
    drawn = participants(clients, participation, rounds, seed, "train", present, sampling)
    found = {
        (len(ids), len(set(attackers).intersection(ids)))
        for round, ids in enumerate(drawn)
        if round in active
    }
    return tuple(sorted((n, m) for n, m in found if m))


def _check_chain(cell: Cell) -> None:
    """Raises NotApplicable where rules before a rule, or the server optimiser, do not meet what it declares to need."""
    merging = None
    for rule in cell.aggregators:
        if rule.follows_clients and merging is not None:
            raise NotApplicable(
                f"{rule.name} needs to know whose update a row is; {merging.name}, before it, merges clients' updates"
            )
        if isinstance(rule, PreAggregator) and rule.merges_clients:
            merging = rule
    server = cell.scenario.federation.server
    setting = [rule.name for rule in cell.aggregators if rule.sets_weights]
    if setting and not (isinstance(server, FedAvg) and server.lr == 1):
        raise NotApplicable(
            f"{setting[0]} sets the global weights itself, which only the server optimiser fedavg with lr 1 carries "
            f"out, not {server.name} with lr {getattr(server, 'lr', 1):g}"
        )


def _check_compression(cell: Cell, facts: DataFacts, module: nn.Module | None) -> None:
    check_chain(cell.update_compressors)
    for compressor in cell.model_compressors:
        if compressor.data_access == "public":
            _check_public(compressor.name, cell)
        hooks = compressor.fine_tuning_hooks
        check_nothing_dropped(cell.defences, [(f"{compressor.name}'s fine-tuning", hooks)])
        if cell.defences and compressor.fine_tuning_rounds:
            _check_students(compressor, cell, facts)
    for compressor, following in pairwise(cell.model_compressors):
        if compressor.comes_last:
            raise NotApplicable(
                f"{compressor.name} must come last: it leaves no weights in float32 for {following.name}"
            )
    for compressor, rule in product(cell.model_compressors, cell.aggregators):
        if rule.remembers_clients and compressor.fine_tuning_rounds:
            raise NotApplicable(
                f"{compressor.name} fine-tunes, for which rules begin anew: {rule.name} would have forgotten what it "
                "has learned of clients"
            )
        if rule.perturbs_weights and not compressor.differentiable:
            raise NotApplicable(
                f"{rule.name} deploys copies with other weights, and those of {compressor.name} are no parameters"
            )
    if module is not None:
        surroundings = Surroundings(
            facts.input_shape, facts.num_classes, partial(_outline_in, cell.scenario, facts)
        )
        for compressor in cell.model_compressors:
            with blamed(compressor):
                compressor.check(module, surroundings)


def _check_students(compressor: ModelCompressor, cell: Cell, facts: DataFacts) -> None:
    """Raises NotApplicable where the defences cannot train a model among a compressor's parameters.

    The compressor fine-tunes that model instead of the scenario's.
    """
    for model in with_nested(compressor):
        if not isinstance(model, Model):
            continue
        try:
            check_stack(cell.defences, _outline_in(cell.scenario, facts, model))
        except NotApplicable as error:
            raise NotApplicable(f"{compressor.name} trains {model.label()}: {error}") from error


def _outline_in(scenario: Scenario, facts: DataFacts, model: Model) -> nn.Module:
    """The network, as `outlined`, of a model other than the scenario's own, for the same data."""
    constants = scenario.normalization
    written = None if constants is None else constants.model_dump_json()
    return _outline(model, facts.input_shape, facts.num_classes, written)


@lru_cache(64)
def _outline(
    model: Model, input_shape: tuple[int, int, int], num_classes: int, constants: str | None
) -> nn.Module:
    """As `outlined`, once for all cells. constants: of the normalisation, as JSON, which the cache can hash."""
    normalization = None if constants is None else Normalization.model_validate_json(constants)
    return outlined(model, input_shape, num_classes, normalization)


def _check_public(name: str, cell: Cell) -> None:
    if "val" not in cell.scenario.unprotected:
        raise NotApplicable(
            f"{name} needs public data and the scenario declares none; "
            "add `unprotected: [val]` if the validation split may be used freely"
        )


def _check_attack(cell: Cell, facts: DataFacts) -> None:
    attack, threat = cell.attack, cell.threat
    if attack is None:
        return
    with blamed(attack):
        attack.check(facts.num_classes, facts.input_shape)
    target = attack.backdoor_target if isinstance(attack, PoisoningAttack) else None
    if target is not None and not 0 <= target < facts.num_classes:
        raise NotApplicable(
            f"{attack.name}: its backdoor_target is {target}, but the classes run from 0 to {facts.num_classes - 1}"
        )
    if isinstance(attack, PrivacyAttack):
        optimizer = cell.scenario.federation.local.optimizer.name
        if attack.needs_sgd and optimizer != "sgd":
            raise NotApplicable(f"{attack.name} needs clients that step with sgd, not {optimizer}")
        levels = KNOWLEDGE["privacy"]
        if levels.index(threat.knowledge) > levels.index(attack.knowledge):
            raise NotApplicable(
                f"{attack.name} needs knowledge: {attack.knowledge}; the threat {threat.name!r} grants "
                f"{threat.knowledge}"
            )
    if threat.capability == "data" and attack.controls_training:
        raise NotApplicable(
            f"{attack.name} needs capability: training; the threat {threat.name!r} grants data alone"
        )
    if isinstance(attack, ByzantineAttack):
        levels = KNOWLEDGE["training"]  # from the most knowledge to the least
        if levels.index(threat.knowledge) > levels.index(attack.knowledge):
            raise NotApplicable(
                f"{attack.name} needs knowledge: {attack.knowledge}; the threat {threat.name!r} grants "
                f"{threat.knowledge}"
            )
    if isinstance(attack, EvasionAttack):
        if attack.access == "gradients" and threat.knowledge == "black-box" and attack.surrogate is None:
            raise NotApplicable(f"{attack.name} needs gradients; the threat {threat.name!r} is black-box")
        if threat.budget is not None and attack.norm != threat.budget.norm:
            bounded = f"bounded in {attack.norm}" if attack.norm else "not bounded by a norm"
            raise NotApplicable(
                f"{attack.name} is {bounded}; the budget of {threat.name!r} is in {threat.budget.norm}"
            )
        radius = attack.radius(None if threat.budget is None else threat.budget.eps)
        if threat.budget is not None and radius is not None and radius > threat.budget.eps:
            raise NotApplicable(
                f"{attack.name} asks for eps = {short(radius)}, more than the budget of {threat.name!r}, "
                f"{short(threat.budget.eps)}"
            )
        if not cell.ways:
            names = ", ".join(c.name for c in cell.model_compressors if not c.differentiable)
            raise NotApplicable(
                f"{attack.name} needs gradients; {names} is not differentiable — add `surrogate: uncompressed`"
            )


def _check_surrogate(cell: Cell, facts: DataFacts, module: nn.Module | None) -> None:
    """Raises NotApplicable where the surrogate, which is trained and compressed like any model, makes no sense."""
    behind, attack = cell.behind_transfer, cell.attack
    if behind is None or attack is None:
        return
    try:
        _check_training(behind, module)
        _check_compression(behind, facts, module)
    except (NotApplicable, PluginError) as error:
        raise NotApplicable(f"the surrogate of {attack.name}: {error}") from error
