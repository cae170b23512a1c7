"""The method `frontier`: slopes, exact allocation, and again around the result."""
