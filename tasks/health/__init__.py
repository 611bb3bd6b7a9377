"""The health of an installation: what `custody status`, metrics and alerts say of it."""
