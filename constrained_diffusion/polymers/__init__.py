"""Polymers as strings: SMILES of a repeat unit, what makes one valid, and how it becomes a tensor."""
