"""Who stands where, and how it is drawn: layout, cut-outs, canvas, Seg-Mix."""
