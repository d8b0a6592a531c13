"""What a run needs around its recipe: context, budget, logging, checkpoints, health, progress."""
