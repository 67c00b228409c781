"""The picture world, the embedded models that were trained on it, and the prompt lists. Imports nothing of `loophil`."""
