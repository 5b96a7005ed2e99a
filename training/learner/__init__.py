"""What SFT and GRPO share: the policy model, packing, DeepSpeed, checkpoints, the canary."""
