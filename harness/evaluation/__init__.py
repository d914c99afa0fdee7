"""What a trained model is worth: predictions, evasion, membership samples and the gradient-masking check."""
