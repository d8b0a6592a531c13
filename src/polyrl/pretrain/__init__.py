"""What is made before a run: starting models, reward models, frozen DPO policies, demonstrations for them."""
