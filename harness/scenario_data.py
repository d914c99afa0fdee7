"""Finds what in a scenario does not fit its data, before a run, and reports it at its place in the file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from harness.borders import outlined
from harness.contracts.attack import PoisoningAttack
from harness.contracts.model import Model
from harness.contracts.privacy import PrivacyAttack
from harness.dealing import Records, deal, set_apart
from harness.errors import HarnessError, PluginError, ScenarioError
from harness.extras import to_install
from harness.federation.counts import own_seed
from harness.grid import cells
from harness.identity import engine_version
from harness.nesting import plugins_in, with_nested
from harness.privacy.accounting import ACCOUNTANTS, APPROXIMATE, MAX_NOISE, accountant_extras, epsilon
from harness.scenario_errors import render
from harness.scenario_parts import Found
from harness.scenario_reporter import Reporter
from harness.sweeps import variants
from harness.yaml_loader import Document, Location, parse

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.base import Plugin
    from harness.contracts.data import Split, Splits
    from harness.contracts.privacy import TrainingVariant
    from harness.scenario_models import Scenario

STACKS = ("defences", "aggregators", "compressors")
BOUNDS = set(ACCOUNTANTS) - set(APPROXIMATE)
LARGEST = 2**40  # bytes of a network's weights; whether fewer fit into a machine shows where they are trained
REACHED = 0.05  # every accountant reaches any epsilon above it; checking costs seconds of imports
DRAWING = 1.0  # seconds after which no further seed's partition is drawn
SOME = 1024  # images looked at in one step
REPEATED = 0.01  # tolerated share of test images that are in train: public collections have a few duplicates


def check_fit(scenario: Scenario, splits: Splits, text: str | None = None) -> None:
    """Raises ScenarioError with every part of a scenario that cannot work with its data.

    text: what the scenario was read from; by default its file is read again, for lines and columns.
    """
    found = list(misfits(scenario, splits))
    if found:
        raise _error(scenario, _document(scenario, text), found)


def check_installed(scenario: Scenario, text: str | None = None) -> None:
    """Raises ScenarioError where a scenario needs libraries that are not installed, with the pip command for each.

    text: as for `check_fit`.
    """
    found = list(_uninstalled(scenario))
    if found:
        raise _error(scenario, _document(scenario, text), found)


def _uninstalled(scenario: Scenario) -> Found:
    if scenario.engine != "local":
        try:
            engine_version(scenario.engine)
        except HarnessError as error:
            yield ("engine",), str(error)
    for place, plugin in _plugins(scenario):
        for part in with_nested(plugin):
            if command := to_install(part.extras):
                yield place, f"{part.name} needs what is not installed: {command}"
            accountant = getattr(part, "accountant", None)
            if command := to_install(accountant_extras(accountant)):
                here = (*place, "accountant") if part is plugin else place
                yield here, f"the accountant {accountant} needs what is not installed: {command}"


def _plugins(scenario: Scenario) -> Iterator[tuple[Location, Plugin]]:
    """Every plugin that a scenario names, with its location: in stacks, (axis, stack, position)."""
    for name in type(scenario).model_fields:
        value = getattr(scenario, name)
        if name in STACKS:
            yield from (((name, i, j), one) for i, stack in enumerate(value) for j, one in enumerate(stack))
        elif name in ("metrics", "trackers"):
            yield from (((name, i), one) for i, one in enumerate(value or ()))
        else:
            yield from (((name,), one) for one in plugins_in(value))


def remarks(scenario: Scenario, splits: Splits) -> list[str]:
    """Notes on data that can be used, but on which scores mean less than they seem to."""
    found = (*_lacking(scenario, splits), repeats(scenario, splits), *_subsets(scenario, len(splits.test)))
    return [note for note in found if note]


def _lacking(scenario: Scenario, splits: Splits) -> Iterator[str]:
    """Notes on classes without a training image (an empty folder, an unused label), and on those without a test one."""
    classes = set(range(splits.num_classes))
    untaught, untested = (classes - set(split.labels.tolist()) for split in (splits.train, splits.test))
    for part, missing, so in (
        ("training", untaught, "no model can learn it"),
        ("test", untested - untaught, "no score says anything about it"),
    ):
        if missing:
            names = ", ".join(splits.class_names[i] for i in sorted(missing))
            yield f"no {part} image of {scenario.dataset.label()} is of the class {names}: {so}"


def _subsets(scenario: Scenario, records: int) -> Iterator[str]:
    """A note for each declared subset that is larger than the test split, which is then used whole."""
    declared = {
        f"threat {threat.name}": threat.subset for threat in scenario.threats if threat.phase != "privacy"
    }
    for who, subset in {**declared, "evaluation": scenario.evaluation.subset}.items():
        if subset is not None and subset > records:
            yield f"{who}: subset is {subset}, but there are {records} test images: all of them are used"


def repeats(scenario: Scenario, splits: Splits) -> str | None:
    """A note where more test images than is usual in collections are training images too."""
    share = splits.repeated()
    if share <= REPEATED:
        return None
    return (
        f"{share:.1%} of the test images of {scenario.dataset.label()} are training images too, pixel by pixel: "
        "accuracy on them measures memory; split by record, and by patient or site if one has several"
    )


def unusable(scenario: Scenario, error: HarnessError, text: str | None = None) -> ScenarioError:
    """The error for a scenario whose data cannot be loaded, at the value it is about, or else at the dataset's name.

    text: as for `check_fit`.
    """
    document = _document(scenario, text)
    place = _dataset_place(document, error) if document is not None else ()
    name = scenario.dataset.name
    message = f"the dataset {name} cannot be used: {str(error).removeprefix(f'dataset {name}: ')}"
    return _error(scenario, document, [(place, message)])


def _dataset_place(document: Document, error: HarnessError) -> Location:
    """The place of the value in the error's details, by its location in the dataset or else by the value itself."""
    spec = document.data.get("dataset")
    base: Location = ("dataset", *spec) if isinstance(spec, dict) else ("dataset",)
    if not isinstance(error, PluginError) or not error.details:
        return base
    location, _, value = error.details[0]
    return (*base, *location) if location else _place_of(value, base, document)


def _place_of(value: Any, base: Location, document: Document) -> Location:
    """The place below `base` that holds a value, or else `base`."""
    below = (place for place in document.values if place[: len(base)] == base)
    reporter = Reporter(document)
    return next((place for place in below if reporter.at(place) == value), base)


def _document(scenario: Scenario, text: str | None) -> Document | None:
    """The document that the scenario was read from; None where it is gone or no longer valid."""
    if text is None:
        try:
            text = "" if scenario.path is None else scenario.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            text = ""
    document = parse(text)
    return document if document.complete and isinstance(document.data, dict) else None


def _error(
    scenario: Scenario, document: Document | None, found: Iterable[tuple[Location, str]]
) -> ScenarioError:
    """One error with all findings, each at its place where there is a document."""
    if document is None:
        return ScenarioError("; ".join(message for _, message in found))
    reporter = Reporter(document)
    for place, message in found:
        reporter.report(_in_file(place, reporter), message)
    return ScenarioError(render(reporter.problems, str(scenario.path or "<scenario>"), document.lines))


def _in_file(place: Location, reporter: Reporter) -> Location:
    """Where a plugin or its parameter stands in the file; any other place is returned as it is.

    place: (axis, stack, position in the stack, parameter) or, for an attack, (threats, the threat's name, number,
    parameter); the parameter may be missing. Stacks and attacks are numbered as they are after sweeps are expanded. In
    the file, a stack of one plugin may stand without a list.
    """
    if len(place) < 3 or place[0] not in (*STACKS, "threats"):
        return place
    base, items = place[:1], reporter.document.data[place[0]]
    position: str | int = 0
    if place[0] == "threats":
        name, number, *parameter = place[1:]
        threat = next(i for i, raw in enumerate(items) if raw["name"] == name)
        base, items = ("threats", threat, "attacks"), items[threat]["attacks"]
    else:
        number, position, *parameter = place[1:]
    expanded = ((i, *each) for i, item in enumerate(items) for each in variants(item, (*base, i)))
    item, value, choices = list(expanded)[int(number)]
    listed = isinstance(value, list)
    named = value[position] if listed else value
    steps = (*([position] if listed else []), *([next(iter(named))] if isinstance(named, dict) else []))
    return reporter.trace((*base, item), (*steps, *parameter), choices)


def misfits(scenario: Scenario, splits: Splits) -> Found:
    """(location, what is wrong) of everything that does not fit; for stacks and attacks, locations as in `_in_file`."""
    pool, clients = Records(splits.train.labels, splits.train.groups), scenario.federation.clients
    total = records = len(splits.train)
    try:
        records = len(set_apart(pool, scenario.holdout, scenario.seeds[0])[0])
    except HarnessError as error:
        yield ("holdout",), str(error)
    else:
        if clients <= records:
            yield from _undrawable(scenario, pool)
    if clients > records:
        kept = f", of which {records} are trained on" if records < total else ""
        yield (
            ("federation", "clients"),
            f"{clients} clients cannot share the {total} training records{kept}: at most {records}",
        )
    constants = list(_constants(scenario, splits.input_shape[0]))
    # Building a model with wrong constants would only report them again.
    yield from constants or _unbuildable(scenario, splits)
    yield from _deltas(scenario, records)
    yield from _epsilons(scenario, records)
    yield from _attributes(scenario, splits)
    yield from _success_records(scenario, splits)


def _constants(scenario: Scenario, channels: int) -> Found:
    for name in ("mean", "std"):
        value = getattr(scenario.normalization, name, None)
        if isinstance(value, list) and len(value) != channels:
            yield (
                ("normalization", name),
                f"normalization.{name} has {len(value)} values, the images {channels} channels; one number serves all",
            )


def _unbuildable(scenario: Scenario, splits: Splits) -> Found:
    """The scenario's model and those that stacked plugins hold, where these images and classes cannot train them."""
    classes = splits.num_classes
    if classes < 2:
        named = ", ".join(splits.class_names)
        yield (
            ("dataset",),
            f"all images of {scenario.dataset.name} are of one class ({named}); at least two are needed",
        )
        return
    for place, model in _models(scenario):
        try:
            module = outlined(model, splits.input_shape, classes, scenario.normalization)
            if not any(weight.requires_grad for weight in module.parameters()):
                yield place, f"{model.label()} has nothing to train: it has no parameter, or all are frozen"
            size = sum(weight.nbytes for weight in module.parameters())
            if size > LARGEST:
                yield (
                    place,
                    f"the weights of {model.label()} take {size / 2**40:,.0f} TiB, more than can be trained",
                )
        except HarnessError as error:
            yield place, str(error)
        except Exception:
            continue  # a plugin's bug: planning, or the run, will name the plugin


def _models(scenario: Scenario) -> Iterator[tuple[Location, Model]]:
    yield ("model",), scenario.model
    for axis in STACKS:
        for i, stack in enumerate(getattr(scenario, axis)):
            for j, plugin in enumerate(stack):
                for parameter in type(plugin).model_fields:
                    for held in plugins_in(getattr(plugin, parameter)):
                        yield from (
                            ((axis, i, j, parameter), one)
                            for one in with_nested(held)
                            if isinstance(one, Model)
                        )


def _undrawable(scenario: Scenario, records: Records) -> Found:
    """The first seed for which no partition can be drawn, as its trainings would draw it, so that none could begin.

    The same for each privacy attack and the shadow models that it trains, which have fewer records. On large data not
    every draw is tried: they mostly fail or succeed alike, and a run reports it in any case.
    """
    end = time.monotonic() + DRAWING
    for place, whose, variant in ((("federation", "partition"), "", None), *_shadows(scenario)):
        for seed in scenario.seeds:
            try:
                deal(records, scenario.federation, scenario.holdout, seed, variant, own_seed(seed, variant))
            except HarnessError as error:
                # The error counts what the holdout leaves, and the user may not have asked for one: privacy threats do.
                left = f"; holdout: {scenario.holdout:g} removed that share before"
                taken = left if scenario.holdout and variant is None else ""
                yield place, f"no partition can be drawn with seed {seed}{whose}: {error}{taken}"
                return
            except Exception:
                return  # a plugin's bug: a run keeps its traceback in the records of the cells
            if time.monotonic() > end:
                return


def _shadows(scenario: Scenario) -> Iterator[tuple[Location, str, TrainingVariant]]:
    """The trainings on other records that privacy attacks ask for: (location of the attack, in words, training)."""
    known: set[TrainingVariant] = set()
    for threat in scenario.threats:
        for i, attack in enumerate(threat.attacks):
            if not isinstance(attack, PrivacyAttack):
                continue
            try:
                variants = attack.trainings(next(cell for cell in cells(scenario) if cell.attack is attack))
            except Exception:
                continue  # a plugin's bug: planning fails its cells
            for variant in variants:
                if variant.keep is not None and variant not in known:
                    known.add(variant)
                    whose = f" for {variant.name}, which {attack.name} trains on {variant.keep:.0%} of the records"
                    yield ("threats", threat.name, i), whose, variant


def _deltas(scenario: Scenario, records: int) -> Found:
    for i, stack in enumerate(scenario.defences):
        for j, defence in enumerate(stack):
            delta = getattr(defence, "delta", None)
            units, what = records, "training records"
            if defence.protects == "client":
                units, what = scenario.federation.clients, "clients"
            if defence.protects and isinstance(delta, float) and delta >= 1 / units:
                yield (
                    ("defences", i, j, "delta"),
                    f"{defence.name}: delta {delta:g} must be below 1 / {units} = {1 / units:.3g}, one over the "
                    f"number of {what}",
                )


def _epsilons(scenario: Scenario, records: int) -> Found:
    """Target epsilons that no noise reaches: an accountant's bound stays above 0, however much noise there is."""
    for i, stack in enumerate(scenario.defences):
        for j, defence in enumerate(stack):
            target, accountant = getattr(defence, "epsilon", None), getattr(defence, "accountant", None)
            if accountant not in BOUNDS or not isinstance(target, float) or target > REACHED:
                continue
            delta = getattr(defence, "delta", None) or 1 / (10 * records)
            # One step at a sampling rate of one record in all: any training has more to account for.
            least = epsilon([(MAX_NOISE, 1 / records, 1)], delta, accountant)
            if least > target:
                yield (
                    ("defences", i, j, "epsilon"),
                    f"{defence.name}: no noise reaches epsilon {target:g}: at delta {delta:.3g} the accountant "
                    f"{accountant} gives at least {least:.2g}",
                )


def _attributes(scenario: Scenario, splits: Splits) -> Found:
    """Attributes by which an attack compares clients, but which all training images have, or none."""
    for threat in scenario.threats:
        for i, attack in enumerate(threat.attacks):
            observation = attack.observation if isinstance(attack, PrivacyAttack) else None
            if observation is None or observation.attribute is None:
                continue
            try:
                found = _sides(observation.attribute, splits.train)
            except Exception:
                continue  # a plugin's bug: a run keeps its traceback in the records of the cells
            if len(found) == 1:
                share = "every" if True in found else "no"
                yield (
                    ("threats", threat.name, i),
                    f"{attack.label()}: {share} training image has the attribute that it asks about, so that no two "
                    "clients differ in it",
                )


def _success_records(scenario: Scenario, splits: Splits) -> Found:
    """Attacks whose own test records, such as another data set's, cannot be had: their trainings would be useless."""
    for threat in scenario.threats:
        for i, attack in enumerate(threat.attacks):
            if not isinstance(attack, PoisoningAttack):
                continue
            try:
                records = attack.success_records(splits.input_shape, scenario.root)
                right = records is not None and _all_of_class(
                    attack.backdoor_target, records.images, splits.test
                )
            except HarnessError as error:
                yield ("threats", threat.name, i), str(error)
                continue
            except Exception:
                continue  # a plugin's bug: a run keeps its traceback in the records of the cells
            if right:
                name = splits.class_names[attack.backdoor_target or 0]
                yield (
                    ("threats", threat.name, i),
                    f"{attack.label()}: every image that it wants answered with the class {name} is a test image of "
                    "that class, so that there is nothing to attack; name another class",
                )


def _all_of_class(target: int | None, images: Tensor, test: Split) -> bool:
    """Whether all images are, pixel by pixel, test images of the class that an attack wants them to be taken for."""
    import numpy as np
    import torch

    from harness.evaluation.predict import to_pixels

    if target is None:
        return False
    known = to_pixels(torch.from_numpy(test.images[test.labels == target])).float().numpy()
    if not len(known) or known.shape[1:] != tuple(images.shape[1:]):
        return False
    pixels = {np.ascontiguousarray(image).tobytes() for image in known}
    wanted = to_pixels(images).float().numpy()
    return all(np.ascontiguousarray(image).tobytes() in pixels for image in wanted)


def _sides(attribute: Callable[[Tensor, Tensor], Tensor], split: Split) -> set[bool]:
    """Whether images have the attribute: {True}, {False}, or both, as soon as both were found."""
    import numpy as np
    import torch

    from harness.evaluation.predict import to_pixels

    seen: set[bool] = set()
    for start in range(0, len(split), SOME):
        part = split.take(np.arange(start, min(start + SOME, len(split))))
        images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
        seen |= set(attribute(to_pixels(images), labels).bool().tolist())
        if len(seen) == 2:
            break
    return seen
