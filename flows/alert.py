"""The flow that alerts people. Automations run it for an event; it sends the alert to every URL of `alert.urls`."""

from typing import Any

import apprise
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.publish import HEARD
from tasks.settings import Settings


@flow(name="alert", persist_result=False, retries=3, retry_delay_seconds=30, **HEARD)
def alert(title: str, details: Any = "") -> State[Any]:
    """Send an alert.

    Args:
        title: what happened, in one line.
        details: the details; values that are not text are shown as they are.
    """
    get_run_logger().error("%s: %s", title, details)
    urls = Settings().alert.urls
    if not urls:
        return Completed(message=f"{title} (not sent: alert.urls is empty)")
    sender = apprise.Apprise()
    for url in urls:
        sender.add(url.get_secret_value())
    # Apprise adds no server for a URL that it cannot read.
    sent = len(sender) == len(urls) and sender.notify(body=str(details) or title, title=title)
    if not sent:
        # A URL may hold a token: the setting is named, not its value.
        return Failed(message=f"{title} (not sent to every URL: check alert.urls and the services behind them)")
    return Completed(message=title)
