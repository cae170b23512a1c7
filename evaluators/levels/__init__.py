"""Building and refitting levels: passes of calibration text through the model."""
