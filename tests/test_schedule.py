"""The order in which stages start, and what falls with one that fails."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from harness.schedule import Schedule


def graph(**needs: tuple[str, ...]):
    return {key: SimpleNamespace(key=key, needs=tuple(need)) for key, need in needs.items()}


def drain(schedule: Schedule) -> list[str]:
    found = []
    while (stage := schedule.take()) is not None:
        found.append(stage.key)
        schedule.finished(stage.key)
    return found


CHAINS = graph(t1=(), c1=("t1",), a1=("t1", "c1"), t2=(), c2=("t2",), a2=("t2", "c2", "t1"))


def test_stages_come_in_the_plans_order_as_soon_as_they_can():
    schedule = Schedule(CHAINS, CHAINS, set())
    assert schedule.take().key == "t1"
    assert schedule.take().key == "t2"  # nothing before it is ready
    assert schedule.take() is None
    schedule.finished("t2")
    schedule.finished("t1")
    assert drain(schedule) == ["c1", "a1", "c2", "a2"]
    assert not schedule


def test_what_is_done_is_not_given_out_and_what_nobody_wants_neither():
    assert drain(Schedule(CHAINS, ["a1"], {"t1"})) == ["c1", "a1"]
    assert drain(Schedule(CHAINS, [], set())) == []
    assert drain(Schedule(CHAINS, ["a2"], {"a2"})) == []


def test_what_a_wanted_stage_needs_is_run_though_no_cell_names_it():
    assert drain(Schedule(CHAINS, ["a2"], set())) == ["t1", "t2", "c2", "a2"]


def test_a_failure_takes_with_it_what_follows_and_nothing_else():
    schedule = Schedule(CHAINS, CHAINS, set())
    assert schedule.take().key == "t1"
    assert schedule.take().key == "t2"
    schedule.finished("t2")
    assert schedule.failed("t1") == ["t1", "c1", "a1", "a2"]
    assert drain(schedule) == ["c2"]
    assert len(schedule) == 0


def test_a_ready_stage_falls_with_another_that_it_does_not_wait_for_any_more():
    schedule = Schedule(graph(a=(), b=(), c=("a", "b"), d=("c",)), "abcd", set())
    schedule.take(), schedule.take()
    schedule.finished("b")
    assert schedule.failed("a") == ["a", "c", "d"]
    assert schedule.take() is None


@pytest.mark.parametrize("seed", range(20))
def test_any_graph_is_run_as_the_plain_scan_would(seed):
    rng = random.Random(seed)
    keys = [f"s{i:02d}" for i in range(40)]
    stages = graph(**{k: tuple(rng.sample(keys[:i], min(i, rng.randrange(4)))) for i, k in enumerate(keys)})
    broken = set(rng.sample(keys, 3))
    schedule = Schedule(stages, keys, set())
    waiting, done, running = list(keys), set(), []
    while waiting or running:
        while len(running) < 3:  # the definition: the first of the plan whose needs are all done
            expected = next((k for k in waiting if set(stages[k].needs) <= done), None)
            given = schedule.take()
            assert (given and given.key) == expected
            if expected is None:
                break
            waiting.remove(expected)
            running.append(expected)
        key = running.pop(rng.randrange(len(running)))
        if key not in broken:
            done.add(key)
            schedule.finished(key)
            continue
        lost = {key}
        for other in waiting:
            if lost & set(stages[other].needs):
                lost.add(other)
        waiting = [k for k in waiting if k not in lost]
        assert schedule.failed(key) == sorted(lost)
    assert not schedule


def test_each_dependency_is_looked_at_a_few_times_however_many_stages_wait():
    looked = 0

    class Counted(tuple):
        def __iter__(self):
            nonlocal looked
            for item in tuple.__iter__(self):
                looked += 1
                yield item

    n = 2000
    keys = [f"s{i}" for i in range(n)]
    needs = {k: Counted(keys[max(0, i - 1) : i]) for i, k in enumerate(keys)}
    stages = {k: SimpleNamespace(key=k, needs=needs[k]) for k in keys}
    schedule = Schedule(stages, keys, set())
    assert drain(schedule) == keys
    assert looked <= 3 * n


def test_stages_beside_another_wait_for_its_end():
    stages = graph(a=(), b=(), c=(), d=("b",))
    schedule = Schedule(stages, "abcd", set(), {"a": ("b", "c")})
    assert schedule.take().key == "a"
    assert schedule.take() is None
    schedule.drop("b")  # computed with it
    assert schedule.take().key == "d"
    schedule.finished("a")
    assert schedule.take().key == "c"  # was not
    assert not schedule


def test_stages_beside_one_that_failed_come_by_themselves():
    schedule = Schedule(graph(a=(), b=(), c=("a",), d=("b",)), "abcd", set(), {"a": ("b",)})
    assert schedule.take().key == "a"
    assert schedule.failed("a") == ["a", "c"]
    assert schedule.take().key == "b"
    schedule.finished("b")
    assert schedule.take().key == "d"
