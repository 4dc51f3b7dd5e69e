"""The encoder in torch: open_clip models, with exact derivatives."""
