"""The leaderboard of ``docs/leaderboard.md``: every method and composition of the registry at equal cost."""
