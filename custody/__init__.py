"""Archive audit events and prove that nobody changed, dropped or invented one. FORMAT.md is the specification."""
