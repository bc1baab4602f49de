"""The integer network: the exact specification of what the accelerator computes (`docs/numbers.md`)."""
