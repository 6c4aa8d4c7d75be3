"""What the pages share: the boot, forms from specs, figures, charts, the tree. No torch, here or below."""
