"""What a run folder says: the champion rule, the leaderboard, intervals, the verdict. Knows neither Ray nor torch."""
