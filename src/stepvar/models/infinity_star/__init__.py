"""The InfinityStar family: text to video."""
