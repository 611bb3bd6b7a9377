"""What tests of the library share: its command line."""

from tests.helpers.commands import custody

__all__ = ["custody"]
