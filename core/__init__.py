"""The service that pages, the terminal and notebooks call: specs, jobs, operations and the `ModelManager` that joins them.

Importing `core` loads neither torch nor Streamlit: the operations, which need torch, are imported by the job's own process.
"""
