"""LoopHIL: live preference tuning of text-to-image diffusion models with LOOP (leave-one-out PPO)."""

__version__ = "0.1.0"
