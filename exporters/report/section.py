"""A part of the report under its own heading."""


def section(title: str, note: str, body: str) -> str:
    """HTML of a heading, what there is to know, and the body."""
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{body}\n</section>'
