"""The state of a run: a task joined to the models that act in it; one module a domain."""
