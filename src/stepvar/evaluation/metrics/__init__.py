"""What is measured of images and videos: against dense generation, against their prompts, and as sets."""
