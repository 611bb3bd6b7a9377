"""The command line of the wheel. Each module is a group of commands; the work is done in other rooms."""

__all__: list[str] = []
