"""Where a backfill copies events to: Elasticsearch, the archive's own tables, a Kafka topic, a folder.

What a target has already is the only memory of a backfill: each target knows it by itself, so that a backfill that was
stopped, killed or started twice leaves each event there once. Two at the same time do so too, but for a topic, which
takes no answer for an event that the other has not sent yet.
"""
