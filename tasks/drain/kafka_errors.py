"""Converts librdkafka's errors into ours: terminal or transient.

An error for a refusal says who was refused, by the name in the broker's ACLs, and which right is missing. It never has
a secret.
"""

import re
from collections.abc import Mapping

from confluent_kafka import KafkaError

from custody.errors import SourceRefused, TransientSourceError, legible

_UNAUTHORIZED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_UNAUTHENTICATED = {
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError._AUTHENTICATION,  # noqa: SLF001 - confluent-kafka's name for librdkafka's own codes
}
TERMINAL = {
    *_UNAUTHORIZED,
    *_UNAUTHENTICATED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
    KafkaError._INVALID_ARG,  # noqa: SLF001
    KafkaError._SSL,  # noqa: SLF001
}
"""Errors that do not pass."""
AWAY = {KafkaError._TRANSPORT, KafkaError._RESOLVE}  # noqa: SLF001
"""Errors of a connection to a broker."""
_NOISE = re.compile(r"^[^ ]+/[a-z0-9]+: | \(after [0-9]+ms in state .*$")
"""librdkafka's name for a connection before a reason, and its times and counts behind it. Both differ each time."""
_NAMES = {
    "GSSAPI": "sasl.kerberos.principal",
    "OAUTHBEARER": "sasl.oauthbearer.client.id",
}
"""The librdkafka property with the name that a SASL mechanism sends; `sasl.username` for the others."""


def principal(client: Mapping[str, str]) -> str:
    """Return the principal of a client, as ACLs name it, or where its name is from.

    Args:
        client: librdkafka's properties.
    """
    protocol = client.get("security.protocol", "plaintext").lower()
    if protocol.startswith("sasl"):
        mechanism = client.get("sasl.mechanisms", client.get("sasl.mechanism", "GSSAPI")).upper()
        name = client.get(_NAMES.get(mechanism, "sasl.username"))
        return f"User:{legible(name)}" if name else f"the user of {legible(mechanism)}"
    if protocol == "ssl":
        location = client.get("ssl.certificate.location") or client.get("ssl.keystore.location")
        if location:
            return f"the subject of the client certificate {legible(location)}"
        if "ssl.certificate.pem" in client:
            return "the subject of the client certificate in ssl.certificate.pem"
    return "User:ANONYMOUS"


def map_error(
    error: KafkaError, step: str, client: Mapping[str, str], needs: str
) -> SourceRefused | TransientSourceError:
    """Return custody's error for one of Kafka's.

    Args:
        error: the error.
        step: what failed. The message begins with it.
        client: librdkafka's properties. They say who was refused.
        needs: the rights (ACLs) that the step needs.
    """
    if error.code() in _UNAUTHORIZED:
        return SourceRefused(f"{step}: {error.str()} (refused to {principal(client)}: allow it {needs})")
    if error.code() in _UNAUTHENTICATED:
        return SourceRefused(
            f"{step}: {error.str()} (refused to {principal(client)}: check the user and the password, certificate or"
            " token in kafka.client)"
        )
    if error.code() in TERMINAL or error.fatal():
        return SourceRefused(f"{step}: {error.str()}; check the topic, the client's rights and kafka.client's settings")
    return TransientSourceError(f"{step}: {error.str()}; the next run tries again")


def is_of_group(error: KafkaError) -> bool:
    """Return whether the broker refused the group. Reading needs none: partitions are assigned, not subscribed to."""
    return error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED


def reading(topic: str) -> str:
    """Return the rights that reading a topic needs."""
    return f"Describe and Read on topic {topic}"


def reason_of(error: KafkaError) -> str:
    """Return why a broker is away, in librdkafka's words, without its name for the connection and its times."""
    return _NOISE.sub("", error.str())
