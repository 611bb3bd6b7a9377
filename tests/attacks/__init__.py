"""THREATS.md, row by row: each attack on a good archive, in a folder and in S3, and what verification says of it."""
