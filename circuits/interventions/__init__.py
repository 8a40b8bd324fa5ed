"""Push on the model and see whether it moves as the graph says (METHOD 7)."""
