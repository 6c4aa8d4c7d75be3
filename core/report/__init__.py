"""Reports: a comparison or a branch of the lineage as one document, re-made from the store, byte-identical but for its date.

`content` reads the store into a `Document` of plain blocks; `markdown`, `html` and `pdf` draw any document; `data` writes the figures as
CSV and JSON. Nothing here knows torch, and reportlab is loaded only where a chart or a PDF is made.
"""
