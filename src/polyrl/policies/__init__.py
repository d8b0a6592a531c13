"""Networks and distributions: language models, critics, reward models."""
