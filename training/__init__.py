"""Photos to checkpoints: Stable Diffusion, DreamBooth and LoRA. Knows neither Ray nor scores."""
