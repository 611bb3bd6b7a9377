"""Who calls AWS, or the file system, for errors: the id of an access key and where it is from, or a user. No secret."""

import os
import pwd
from typing import Any

from custody.errors import legible


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
        key = f"access key {legible(str(credentials.access_key))}"
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
