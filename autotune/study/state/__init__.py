"""What a study stores, and the rules over it: attributes, queue, budget, failures."""
