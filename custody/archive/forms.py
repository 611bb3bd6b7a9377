"""The two kinds of signed log that an archive has: the statements of a partition, and the audits."""

from typing import Any

from custody.format import audit, layout, manifest
from custody.format.audit import SignedAudit
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.tlog.log import Form

# A log never has 10¹¹ audits, so each key begins with a 0. This prefix leaves out the objects that audits refer to:
# they are in the same folder, and become many with time.
AUDITS: Form[SignedAudit] = Form(
    audit.parse, ("HMAC-SHA256", "Ed25519"), "audit", layout.audit_key, f"{layout.AUDITS}0"
)
"""The log of audits."""


def statements_of(log: Log) -> Form[Manifest]:
    """Return the form of a log of statements."""
    return Form(
        manifest.parse,
        ("HMAC-SHA256",),
        "statement",
        lambda sequence: layout.manifest_key(log, sequence),
        layout.log_prefix(log),
    )


def form_of(log: Log) -> Form[Any]:
    """Return the form of a log, whichever of the two it is."""
    return AUDITS if log == layout.AUDIT_LOG else statements_of(log)
