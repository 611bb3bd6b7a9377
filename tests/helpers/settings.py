"""Shared by the tests of the auditor's and the operator's settings: the errors for wrong ones, and a secret."""

import json
from pathlib import Path

import pytest

from custody.errors import ConfigurationError
from custody.settings import Settings

CANARY = "canary-Zq7#secret"


def refusal(model: type[Settings], **arguments: object) -> str:
    """Return the error's text for a wrong setting."""
    with pytest.raises(ConfigurationError) as caught:
        model(**arguments)
    hidden = caught.value.__context__ is None or caught.value.__suppress_context__
    assert caught.value.__cause__ is None and hidden, "what it was raised from would be printed, and holds the input"  # noqa: PT018
    return str(caught.value)


def refusal_by(way: str, model: type[Settings], values: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the error's text for wrong values, given as `argument`, by `variables` or in the `file`."""
    if way == "argument":
        return refusal(model, **values)
    if way == "file":
        Path("custody.toml").write_text(toml(values))
        return refusal(model)
    if any(name == "keyring_passphrase" and not isinstance(value, str) for name, value in values.items()):
        pytest.skip("a variable is always text, so this is a passphrase")
    for name, value in values.items():
        monkeypatch.setenv(f"CUSTODY_{name.upper()}", value if isinstance(value, str) else json.dumps(value))
    return refusal(model)


def check_wrong_variable(
    model: type[Settings], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wants: str
) -> None:
    """Check that the error for a wrong variable names setting and variable, and says what it wants, in one line."""
    monkeypatch.setenv(variable, value)
    message = refusal(model)
    setting = variable.removeprefix("CUSTODY_").replace("__", ".").lower()
    assert message.startswith(f"{setting} in {variable}: ")
    assert wants in message
    assert "\n" not in message


def toml(values: dict[str, object]) -> str:
    """Write JSON types as TOML's inline tables."""

    def inline(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(name)} = {inline(inner)}" for name, inner in value.items()) + "}"
        return json.dumps(value)

    return "\n".join(f"{name} = {inline(value)}" for name, value in values.items())
