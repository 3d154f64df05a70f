"""How good pictures are: against the dense picture of the same seed, and against their captions."""
