"""The flow that alerts people. Automations run it for an event; it sends the alert to every URL of `alert.urls`."""

import os
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError
from flows.publish import HEARD, fail
from tasks.alert import Alert, send
from tasks.settings import Settings

_PASSPHRASE = "CUSTODY_KEYRING_PASSPHRASE"  # noqa: S105 - a name


@flow(name="alert", flow_run_name="alert: {title}", persist_result=False, retries=0, **HEARD)
def alert(title: str, details: str = "", run: str = "", read_on: str = "") -> State[Any]:
    """Send an alert. The run fails if somebody who should be told was not, or if nobody should be told.

    Args:
        title: What happened, in one line.
        details: What is wrong, with which object, and what to do.
        run: The address of the run that found it.
        read_on: The command that explains this alert.
    """
    # The deployment empties this variable, because Prefect cannot unset one and an alert opens no keyring. To the
    # settings an empty passphrase is a mistake.
    if not os.environ.get(_PASSPHRASE):
        os.environ.pop(_PASSPHRASE, None)
    try:
        delivery = send(Settings(), Alert(title, details, run, read_on))
    except CustodyError as error:
        return fail(f"{title}: nobody was told: {error}")
    if delivery.failed or not delivery.told:
        return fail(f"{title}: {delivery.summary()}")
    return Completed(message=f"{title}: {delivery.summary()}")
