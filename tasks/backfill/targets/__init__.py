"""Where a backfill copies events to: Elasticsearch, the archive's own tables, a Kafka topic, a folder.

What a target has already is the only memory of a backfill, so that one that was stopped or killed can be started again.
Elasticsearch, tables and folders then have each event once, even if two backfills run at the same time. A topic has
each event at least once.
"""
