"""What `custody check` tries before anything runs: one module for each part, and what runs them all."""
