"""The flow that tells people: automations run it with what an event says, and it goes to every URL of `alert.urls`."""

from typing import Any

import apprise
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.settings import Settings


@flow(name="alert", persist_result=False, retries=3, retry_delay_seconds=30)
def alert(title: str, details: Any = "") -> State[Any]:
    """Send an alert.

    Args:
        title: what happened, in one line.
        details: more of it; what is no text is shown as it is.
    """
    get_run_logger().error("%s: %s", title, details)
    urls = Settings().alert.urls
    if not urls:
        return Completed(message=f"{title} (nobody was told: alert.urls is empty)")
    sender = apprise.Apprise()
    for url in urls:
        sender.add(url.get_secret_value())
    # A URL that apprise cannot read is none of its servers.
    sent = len(sender) == len(urls) and sender.notify(body=str(details) or title, title=title)
    if not sent:
        # A URL may hold a token: the setting is named, not its value.
        return Failed(message=f"{title} (not everybody could be told: check alert.urls and what they name)")
    return Completed(message=title)
