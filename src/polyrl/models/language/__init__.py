"""Language models, their critics, reward models, and how they read text."""
