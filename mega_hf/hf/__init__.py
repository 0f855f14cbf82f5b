"""The only folder that imports timm, transformers, datasets and huggingface_hub."""
