"""Captioned rendered scenes: the grammar of their captions, the renderer and the judge."""
