"""The steps with side effects on servers: each module does one, and offers it to flows as coarse Prefect tasks."""
