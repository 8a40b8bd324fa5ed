"""Where attention comes in: which heads carry an edge, and what a head's scores are made of (METHOD 6)."""
