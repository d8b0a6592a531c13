"""The spine: what a recipe's updates are, and how they run. It knows no task and no network."""
