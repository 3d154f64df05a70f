"""How good accelerated images are: against dense ones of the same seed, and against their prompts.

``run`` generates and times many methods in turn, ``folder`` keeps what was measured, ``metrics`` measures, ``summary``
makes figures of it, ``report`` tables, charts and a page. ``comparison`` compares one method with dense.
"""
