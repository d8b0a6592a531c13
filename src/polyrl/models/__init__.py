"""What has parameters, by name, and what acts with it."""
