"""What is to be solved: one folder a kind of task. Nothing here imports torch."""
