"""The ids that topics have now: whether records that were read are of the topic that its log names.

Kafka answers a question for a topic's id with all of its partitions, and each log of the topic asks before it appends.
So logs share an answer, where it is young enough for each of them.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock


class TopicIds:
    """Asks for the ids of topics. Threads may share it."""

    def __init__(self, ask: Callable[[str], str | None]) -> None:
        """Take what asks Kafka for a topic's id; it raises SourceError."""
        self._ask = ask
        self._lock = Lock()
        self._answers: dict[str, tuple[float, Future[str | None]]] = {}
        """When each topic was asked for last, and the answer."""

    def of(self, topic: str, since: float) -> str | None:
        """Return a topic's id by an answer to a question that was asked at this time, by `time.monotonic`, or later.

        Records that came before the question are of this topic, unless its log says otherwise.

        Raises:
            SourceError: the broker does not answer, or the topic does not exist.
        """
        with self._lock:
            asked, answer = self._answers.get(topic, (-math.inf, Future()))
            is_too_old = asked < since
            if is_too_old:
                answer = Future()
                self._answers[topic] = time.monotonic(), answer
        if is_too_old:
            try:
                answer.set_result(self._ask(topic))
            except BaseException as error:
                answer.set_exception(error)
                raise
        return answer.result()
