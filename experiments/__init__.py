"""What made each file in results/: one file a question, run as `python -m experiments.NAME`."""
