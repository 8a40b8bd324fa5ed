"""Does a graph say what the model does: its predictions beside what interventions measure (METHOD 7)."""
