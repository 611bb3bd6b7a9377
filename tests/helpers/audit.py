"""An audit as tests run it: in this process, all pieces in turn."""

from datetime import UTC, datetime
from typing import Any

from tasks.audit.conclude import Outcome, conclude
from tasks.audit.kept import Kept
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import Settings


def audit(given: Settings, now: datetime | None = None, **request: Any) -> Outcome:
    """Audit an archive, sign what came of it, and return that."""
    with Kept() as kept:
        plan = plan_audit(given, Request(**request), now or datetime.now(UTC), kept)
        return conclude(given, plan, list(verify_pieces(given, plan, plan.pieces, kept=kept)), kept)
