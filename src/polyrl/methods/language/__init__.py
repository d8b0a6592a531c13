"""Online reinforcement learning of language models."""
