"""Who calls AWS, or the file system, for errors: the id of an access key and where it is from, or a user. No secret."""

import os
import pwd
import re
from typing import Any

from custody.errors import legible

_KEY_ID = re.compile(r"[A-Za-z0-9_]{1,32}")
"""Ids of access keys. AWS's have 20 characters, and its secrets 40: a secret in the id's setting must not be shown."""


def aws_caller(session: Any) -> str:
    """Return who signs the requests of a boto3 session, whose clients were made already. Makes no request.

    Args:
        session: a `boto3.session.Session`.
    """
    credentials = session.get_credentials()
    if credentials is None:
        return "nobody: there are no credentials"
    method = str(credentials.method)
    try:
        name = str(credentials.access_key)
        key = f"access key {name}" if _KEY_ID.fullmatch(name) else "an access key with an id that looks like none"
    except Exception as error:  # noqa: BLE001 - credentials that cannot be renewed: a provider may raise anything
        key = f"an access key that cannot be renewed ({type(error).__name__})"
    role = os.environ.get("AWS_ROLE_ARN") if method == "assume-role-with-web-identity" else None
    if role:
        return f"{key} of role {legible(role)}"
    # Only these providers do without a profile.
    if method in {"env", "explicit", "iam-role", "container-role"}:
        return f"{key} of {method}"
    return f"{key} of profile {legible(session.profile_name)} ({legible(method)})"


def user() -> str:
    """Return the user that this process runs as: name and number."""
    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"the user of uid {number}"
