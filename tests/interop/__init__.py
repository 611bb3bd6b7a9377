"""Other people's implementations, held against ours."""
