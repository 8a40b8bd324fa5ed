"""Whether a stated chain of thought is what the model computed: influence through its positions, and ablations."""
