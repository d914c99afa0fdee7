"""The published leaderboard: submissions, statistics and pages."""
