"""The study of StepVAR+: its settings, and how it compares with its rivals at equal cost, on the embedded model."""
