"""The style sheet of the report: readable on a phone, in the dark and on paper; no fonts or images from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --soft: #59636e; --back: #ffffff; --panel: #f6f8fa;
  --rule: #d1d9e0; --ink: #0b62b8; --span: #9ec5ee; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #9aa4af; --back: #14181d; --panel: #1c2229;
  --rule: #353d47; --ink: #6cb2f7; --span: #2c5680; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-bottom: .25rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .35rem 0; } .soft { color: var(--soft); font-size: .9rem; } .bad { color: var(--bad); }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; } thead th { color: var(--soft); font-size: .9rem; }
td small { color: var(--soft); white-space: nowrap; }
.interval { display: block; width: 100%; min-width: 6rem; height: 8px; margin-top: .2rem; }
.scale { fill: var(--rule); } .span { fill: var(--span); } .mark { fill: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .75rem; }
figure { margin: 0; padding: .6rem .6rem .3rem; background: var(--panel); border-radius: 6px; }
figcaption { font-size: .9rem; font-weight: 600; overflow-wrap: anywhere; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 10px; } .chart text.value { fill: var(--text); }
.grid { stroke: var(--rule); stroke-width: .6; } .line { fill: none; stroke: var(--ink); stroke-width: 1.6; }
.dot, .bar { fill: var(--ink); }
details { margin: .5rem 0; padding: .5rem .75rem; background: var(--panel); border-radius: 6px; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .75rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: .15rem 0 .5rem; }
.who { color: var(--soft); font-size: .85rem; font-weight: 600; }
@media print { details { break-inside: avoid; } }
"""
