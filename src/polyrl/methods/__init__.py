"""One file a paper: the parts that the paper adds, and its recipe."""
