"""Search: Elasticsearch, filled from the archive and compared with it. The only tasks that know its client."""
