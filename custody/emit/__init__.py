"""Write audit events from an application: what a server imports to emit to Kafka, Elasticsearch or an archive."""
