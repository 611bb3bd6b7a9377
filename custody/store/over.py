"""A store over another one: it does something itself, and passes on the rest."""

from typing import Any

from custody.store.protocol import Store


class Over:
    """Passes on what a class that inherits from it does not do itself. To a type checker it is no `Store`: cast it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            # `copy` asks before there is a store, and would ask without end.
            raise AttributeError(name)
        return getattr(self._store, name)
