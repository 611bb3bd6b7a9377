"""The targets of a backfill: Elasticsearch, the archive's own tables, a Kafka topic, a folder.

A backfill keeps no state except in its target, so one that was stopped or killed can be started again. Elasticsearch,
tables and folders get each event once, even if two backfills run at the same time. A topic gets each event at least
once.
"""
