"""Fine-tuning under constraints: pure maths, then the module that runs it."""
