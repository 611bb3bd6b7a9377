"""What is exported: values of metrics at one time."""

from dataclasses import dataclass

from tasks.metrics.catalogue import Metric


@dataclass(frozen=True, slots=True)
class Distribution:
    """The value of a histogram.

    Attributes:
        counts: observations of each bucket alone, in the order of `BUCKETS`; the last is of what is above all bounds.
        sum: sum of all observations.
    """

    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value: of a metric, for the values of its labels."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | Distribution

    @property
    def attributes(self) -> dict[str, str]:
        """The labels with their names."""
        return dict(zip(self.metric.labels, self.labels, strict=True))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All samples of an installation.

    Attributes:
        archive: the archive's URL.
        since: when the totals began to be counted, in seconds since 1970.
        at: when the samples were taken, in seconds since 1970.
        samples: the values.
    """

    archive: str
    since: float
    at: float
    samples: tuple[Sample, ...]
