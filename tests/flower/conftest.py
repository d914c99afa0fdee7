"""Flower's apps in this process."""

from __future__ import annotations

import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="the extra `flower` is not installed")

from direct import DirectGrid
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def task():
    """Messages can only be made within a task of Flower's."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


@pytest.fixture
def direct():
    return DirectGrid
