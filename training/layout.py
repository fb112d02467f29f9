"""Names of the files in a checkpoint folder (`training.checkpoint`). Ground: it knows nothing else of the project."""

STATE_FILE = "training_state.safetensors"
MANIFEST_FILE = "MANIFEST.json"
LORA_FILE = "pytorch_lora_weights.safetensors"
