"""The state of a study in its storage: attributes, budget, trial queue, failures and memory."""
