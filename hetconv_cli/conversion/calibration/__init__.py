"""New weights from a few unlabelled images: least squares, layer by layer, against the original network."""
