"""What an application imports to write audit events: writers, a spool on disk, redaction, middleware. Nothing heavy."""

__all__: list[str] = []
