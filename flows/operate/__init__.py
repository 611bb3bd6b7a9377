"""The operator's commands: what is no flow, beside the flows."""
