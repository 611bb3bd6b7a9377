"""Types of flows' optional parameters.

Prefect's form shows `X | None` as a choice between two types, of which one is called "None". So each of these has a
schema of its own: that of the value, with its rules. An empty field means that the parameter is not given.
"""

from datetime import datetime
from typing import Annotated

from pydantic import Field, WithJsonSchema

_NAME = "^[A-Za-z0-9._@-]+(/[0-9]+)?$"

Time = Annotated[datetime | None, WithJsonSchema({"type": "string", "format": "date-time"})]
"""A time. Without a zone it is UTC."""
Logs = Annotated[
    list[Annotated[str, Field(pattern=_NAME)]] | None,
    WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": _NAME}}),
]
"""Logs, `<topic>/<partition>`, or topics."""
Text = Annotated[Annotated[str, Field(min_length=1)] | None, WithJsonSchema({"type": "string", "minLength": 1})]
Days = Annotated[Annotated[int, Field(ge=0)] | None, WithJsonSchema({"type": "integer", "minimum": 0})]
Seconds = Annotated[Annotated[float, Field(gt=0)] | None, WithJsonSchema({"type": "number", "exclusiveMinimum": 0})]
