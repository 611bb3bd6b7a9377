"""Every call of a drain to the outside, broken or cut short; the verifier judges what is left."""
