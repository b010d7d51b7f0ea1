"""A saved model without torch: what its config says of the experts, preprocessing with Pillow, exported graphs.

With `routing` and a few modules of `utils` these files are also the wheel `pertinence-runtime`. Imports numpy, Pillow,
ONNX Runtime, huggingface-hub, safetensors, `routing` and `utils`; never torch.
"""
