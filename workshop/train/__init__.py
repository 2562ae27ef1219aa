"""How the embedded family was made: `python -m workshop.train PART` trains one part from nothing, resumably."""
