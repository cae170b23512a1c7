"""What leaves: models in serving formats, profiles, the report."""
