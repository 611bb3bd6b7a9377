"""Objects under one root, in a folder or in an S3 bucket. No code here knows what the objects mean."""

__all__ = ["open", "protocol"]
