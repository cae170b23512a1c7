"""The method `frontier`: repeated exact allocation from slopes or measured changes around the best profiles."""
