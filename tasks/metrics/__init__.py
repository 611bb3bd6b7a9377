"""The numbers of an installation, for Prometheus, OpenTelemetry and CloudWatch."""
