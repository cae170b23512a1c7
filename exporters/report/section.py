"""HTML of one section of the report."""


def section(title: str, note: str, body: str) -> str:
    """Return the HTML of a section: its heading, an explanatory note and its body (HTML each)."""
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{body}\n</section>'
