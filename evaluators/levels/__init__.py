"""Building, refitting and scoring of levels, most of it in passes of calibration text through the model."""
