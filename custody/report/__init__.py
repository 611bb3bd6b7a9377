"""The integrity report: what the newest signed audit says of an archive, as one page for people who were not there."""

__all__: list[str] = []
