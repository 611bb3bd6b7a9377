"""Objects under one root: a folder, or a bucket of S3. Nothing here knows what the objects mean."""

__all__ = ["open", "protocol"]
