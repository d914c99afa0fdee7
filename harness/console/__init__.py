"""What the command line prints: progress, tables and plugin pages. Nothing here computes a score."""
