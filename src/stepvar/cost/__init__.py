"""What a generation costs: operations, memory, time; and the settings for a speed-up."""
