"""The study of ``docs/results.md``: every method at equal cost, and every setting of StepVAR, on the embedded model."""
