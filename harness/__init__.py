"""All that keeps a run honest, alive and visible, and is not the idea."""
