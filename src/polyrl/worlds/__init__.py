"""A world joins a task to the models that act in it; one module a wing. The loop and the parts see only `World`."""
