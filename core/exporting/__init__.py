"""Exports: a stored model as ONNX or torch.export graphs, or as safetensors in our keys or the published ones.

`tools` says what is installed and what to install; `graphs` writes graphs and `files` weight files; `programs` runs what was written, so
that every export is checked and timed by its own runtime; `snippets` writes the lines that run it elsewhere.
"""
