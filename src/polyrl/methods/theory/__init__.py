"""Methods with guarantees, on problems whose answers are computed exactly. One file a paper."""
