"""Many prompts on many devices: rows of a file become images in a folder, on Ray Data."""
