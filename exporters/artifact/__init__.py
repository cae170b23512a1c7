"""What every export has in common: the winner, its weights, the folder that appears, the record."""
