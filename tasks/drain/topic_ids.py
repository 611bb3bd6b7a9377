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

        Ids are never used again. So if the answer is the log's id, all records that came before the question are of the
        log's topic.

        Raises:
            SourceError: the broker does not answer, or the topic does not exist.
        """
        with self._lock:
            asked, answer = self._answers.get(topic, (-math.inf, Future()))
            is_too_old = asked < since
            if is_too_old:
                asked, answer = time.monotonic(), Future()
                self._answers[topic] = asked, answer
        if is_too_old:
            try:
                answer.set_result(self._ask(topic))
            except BaseException as error:
                with self._lock:
                    # Who waits gets the error. Who comes later asks again.
                    if self._answers.get(topic) == (asked, answer):
                        del self._answers[topic]
                answer.set_exception(error)
                raise
        return answer.result()
