"""Every flag that the engine puts on records. Plugins have none of their own."""

from __future__ import annotations

from harness.contracts.privacy import VIOLATION
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.diverged import FLAG as UNANSWERED
from harness.evaluation.dropped import FLAG as DROPPED
from harness.evaluation.masking import FLAG as MASKED
from harness.evaluation.unscored import FLAG as UNSCORED

FLAGS = frozenset({CONSTANT, DROPPED, MASKED, UNANSWERED, UNSCORED, VIOLATION})
