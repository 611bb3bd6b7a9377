"""Reads metrics with Prometheus' own parser."""

from prometheus_client.parser import text_string_to_metric_families

_ORDER = ("log", "event_type", "kind", "reason", "flow", "step", "backend", "error_type", "le")


def values_of(text: bytes) -> dict[tuple[str, ...], float]:
    """Return each number of a text by its name and the values of its labels, `log` and `flow` first."""
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    values = {}
    for sample in samples:
        labels = sorted(sample.labels.items(), key=lambda item: _ORDER.index(item[0]))
        values[sample.name, *(value for _, value in labels)] = sample.value
    assert len(values) == len(samples)
    return values
