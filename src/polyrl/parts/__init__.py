"""Standard parts that several papers share, one module a stage."""
