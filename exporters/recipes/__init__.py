"""Export of profiles as recipes without weights, from which other programs compress the model themselves."""
