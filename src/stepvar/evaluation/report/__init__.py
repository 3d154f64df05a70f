"""What an evaluation found, as tables, charts and a page."""
