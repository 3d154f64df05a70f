"""Captioned clips of moving objects: the grammar of their captions, the renderer and the judge."""
