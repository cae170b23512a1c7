"""The stylesheet of the report, for light and dark mode, without fonts or files from elsewhere."""

_SHADES = ("#fdf3c4", "#e3eeb5", "#bfe2b6", "#8fd1bb", "#5cbcc2", "#3a9fc1", "#2e7cb5", "#2f58a8", "#3a2fa0")
_DARK_TEXT = "#10202b"

COLOURS = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2126; --soft: #5d6670;
  --faint: #d9dde1; --front: #c2410c; --first: #2563a8; --second: #64748b; --third: #7c5aa6; --good: #15803d;
  --mute: #eceef0; --gone: #d4d8dc; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --ink: #e8eaed; --soft: #a2abb5;
  --faint: #353b42; --front: #fb923c; --first: #7ab3ef; --second: #a7b2bf; --third: #bfa0e8; --good: #6cc98a;
  --mute: #2a3036; --gone: #3a424a; } }
"""

CHART = """
svg text { fill: var(--ink); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart { display: block; width: 100%; min-width: 560px; height: auto; }
.grid { stroke: var(--faint); stroke-width: 1; }
.axis { stroke: var(--soft); fill: none; }
svg .tick, svg .title { fill: var(--soft); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.dashed { stroke-dasharray: 5 4; stroke-width: 1.5; }
.front { --hue: var(--front); } .first { --hue: var(--first); } .second { --hue: var(--second); }
.third { --hue: var(--third); }
.line { stroke: var(--hue); }
.dot { fill: var(--hue); stroke: var(--card); stroke-width: 1.5; }
.whisker { stroke: var(--hue); stroke-width: 1.5; fill: none; }
.dashed .whisker { opacity: .55; }
.reach { fill: transparent; }
.mark[data-selects] { cursor: pointer; }
.mark:hover .dot { stroke: var(--ink); }
svg .name { fill: var(--hue); font-weight: 600; }
.leader { stroke: var(--faint); fill: none; }
"""

STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 2px 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 2px; }
p { margin: 0 0 14px; max-width: 78ch; }
.kicker, .note { color: var(--soft); }
.kicker { font-size: 13px; letter-spacing: .04em; margin: 0; }
.note { font-size: 13.5px; max-width: 120ch; }
section { background: var(--card); border: 1px solid var(--faint); border-radius: 10px; padding: 20px 22px;
  margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 0;
  padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--faint); border-radius: 10px; padding: 11px 16px; }
.tiles b { display: block; font-size: 21px; font-weight: 620; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
"""
    + CHART
    + """
.choice { position: absolute; opacity: 0; pointer-events: none; }
.tabs { display: flex; flex-wrap: wrap; gap: 6px; margin: 10px 0 14px; }
.tabs label { border: 1px solid var(--faint); border-radius: 7px; padding: 4px 12px; cursor: pointer; font-size: 14px; }
.tabs label:hover { border-color: var(--soft); }
.panel { display: none; }
.map { display: block; height: auto; max-width: none; }
.cell text { font-size: 11px; text-anchor: middle; pointer-events: none; }
.map .row { fill: var(--soft); }
.level-dense rect, i.level-dense { fill: var(--mute); background: var(--mute); }
.level-keep rect, i.level-keep { fill: var(--mute); background: var(--mute); }
.level-drop rect, i.level-drop { fill: transparent; stroke: var(--gone); stroke-dasharray: 3 2;
  border: 1px dashed var(--soft); }
.level-drop text, .level-dense text { fill: var(--soft); }
.cell:hover rect { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: none; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-top: 14px; font-size: 13.5px; }
.key small { color: var(--soft); margin-left: 6px; font-size: 12.5px; }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px; margin-right: 7px;
  vertical-align: -2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { text-align: right; font-weight: 600; color: var(--soft); font-size: 13px; padding: 6px 9px;
  border-bottom: 1px solid var(--faint); white-space: nowrap; }
td { text-align: right; padding: 6px 9px; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th.word, td.word { text-align: left; }
tr.chosen td { font-weight: 620; }
tr.chosen td.word:first-child, tr.chosen .dotted { color: var(--front); }
tr.start td { border-top: 1px solid var(--soft); }
tbody tr:last-child td { border-bottom: 0; }
td small { color: var(--soft); font-weight: 400; display: inline-block; min-width: 112px; }
.better { color: var(--good); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 12px 0 0; font-size: 14px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
code, pre { font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: var(--mute); border-radius: 8px; padding: 12px 16px; margin: 10px 0 0; overflow-x: auto; }
@media print { section { break-inside: avoid; } .panel { display: block; } .tabs { display: none; } }
"""
    + "".join(
        f".shade-{i} rect, i.shade-{i} {{ fill: {color}; background: {color}; }}\n"
        f".shade-{i} text {{ fill: {_DARK_TEXT if i < 5 else '#ffffff'}; }}\n"
        for i, color in enumerate(_SHADES)
    )
)


def selection_rules(identifiers: list[str]) -> str:
    """Return CSS rules that show the panel of the checked radio button and highlight its tab and its dot in the chart.

    Args:
        identifiers: ids of the radio buttons.
    """
    return "".join(
        f"#{i}:checked ~ section .panel-{i} {{ display: block; }}\n"
        f"#{i}:checked ~ section label[for={i}] {{ background: var(--ink); color: var(--card); border-color: var(--ink); }}\n"
        f"#{i}:focus-visible ~ section label[for={i}] {{ outline: 2px solid var(--front); outline-offset: 2px; }}\n"
        f"#{i}:checked ~ section [data-selects={i}] .dot {{ stroke: var(--ink); stroke-width: 2.5; }}\n"
        for i in identifiers
    )


def section(title: str, note: str, body: str) -> str:
    """Return the HTML of a section: its heading, an explanatory note and its body (HTML each)."""
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{body}\n</section>'
