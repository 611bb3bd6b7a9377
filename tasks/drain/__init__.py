"""Drain: Kafka into the archive, each log from its head to the last stable offset."""
