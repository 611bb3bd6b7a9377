"""Roll: indices, storage tiers and the end of evidence, once a day."""
