"""How the embedded family was made: `python -m mudi_core.mini.train PART` trains one part from nothing, resumably."""
