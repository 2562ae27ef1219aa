"""Who stands where, and how it is drawn: layouts, cut-outs, canvases, Seg-Mix."""
