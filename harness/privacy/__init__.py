"""Privacy: accounting of noisy training, and what keeps or breaks a guarantee afterwards."""
