"""Generators: they turn prompts into completions on a worker; `base` holds the contract.

`transformers` decodes a Hugging Face model in batches, `scripted` gives canned answers without a model.
Nothing is imported here, so that the contract and `scripted` stay free of torch.
"""
