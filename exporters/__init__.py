"""Export and evaluation of search results: models in serving formats, recipes, and the report."""
