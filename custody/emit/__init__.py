"""Write audit events from an application: what a server imports to emit to Kafka, Elasticsearch or an archive."""

__all__: list[str] = []
