"""`docs/quality.md` and its plots, from the rows that `scripts.measure_quality` brought to `docs/results/quality`.

    python -m scripts.quality    (in the root of the repository)

Nothing is measured here, and nothing is typed in: what a published ordering says is in `CLAIMS`, and whether it holds
is decided by the interval of a paired difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from markdown.extensions.toc import slugify
from scripts.measure_quality import RESULTS
from scripts.page import DOCS, escaped, table

from kvpolicy import RECIPES, from_json
from kvpolicy._repr import pretty
from kvpolicy_hf.evaluate import compare, summarise
from kvpolicy_hf.evaluate.lines import quality_against_bytes

PAGE = DOCS / "quality.md"
PICTURES = DOCS / "assets" / "quality"

HEAD = """\
---
hide: [navigation]
---

# Quality

<!-- All of this page is written by: python -m scripts.quality -->

What policies cost in quality, on models that everybody can run, measured by [`kvpolicy eval`](evaluate.md). Beside
every score stands its 95% interval (a bootstrap over independent groups of samples) and the share of the full cache's
bytes that was held. `quality` is the share of right answers; for perplexity, the likelihood of a token as a share of
what the full cache gives it. Storage grows ahead of the rows in it, so that `full` itself can stand above 100%. Recipes
run with the defaults of their papers, which were measured with larger models, longer prompts and other tasks: where an
ordering does not hold here, that says that it is none of every model and task, not that it was measured wrongly there.
"""
TITLES = {
    "smollm2-pydoc": "SmolLM2-135M-Instruct: the help topics of Python, 512 tokens of prompt",
    "smollm2-needle": "SmolLM2-135M-Instruct: a number hidden in 512 tokens of Python's help, and asked for at the end",
    "smollm2-jargon": "SmolLM2-135M-Instruct: the Jargon File, 512 tokens of prompt",
    "smollm2-held-out": "SmolLM2-135M-Instruct, on tasks that a composition's search has not seen",
    "demo": "The demo's vision-language model: questions about pictures",
    "bench": "The bench's vision-language model: questions that differ in where the answer lives",
    "bench-held-out": "The bench's model, on tasks that a composition's search has not seen",
    "demo-own": "A composition of our own, on the demo's model",
    "demo-held-out": "A composition of our own, on kinds of question that its search has not seen",
    "demo-photos": "A composition of our own, on kinds of picture that its search has not seen",
}
OWN = "composition"  # what `kvpolicy tune` found


@dataclass(frozen=True)
class Composition:
    """What a search found.

    Attributes:
        file: its JSON, beside the results.
        command: of the search.
        judged: what it is judged on.
    """

    file: str
    command: str
    judged: str


OF_BENCH = "composition-of-bench.json"
SEARCH_OF_BENCH = "python -m scripts.search_compositions bench --searches 16 --seconds 450"
COMPOSITIONS = {
    "bench": Composition(
        OF_BENCH,
        SEARCH_OF_BENCH,
        "Of what the searches ran, the twelve that answered best were judged on samples that none of them saw, and "
        "this was the best. It scores as H2O, gives to layers as PyramidKV, and keeps text first as LOOK-M and "
        "AirCache; no published recipe puts these together. Here it stands beside every recipe on the tasks of the "
        "search, on other samples again, at the same budget. It evicts nothing while it answers, so that it holds more "
        "bytes than recipes that do. The searches ran on the model as it was after 3,840 steps of training; since then "
        "it was trained for 800 more, and both tables of the bench are of the model as it is.",
    ),
    "bench-held-out": Composition(
        OF_BENCH,
        SEARCH_OF_BENCH,
        "Here it stands beside every recipe on tasks that the search has not seen: other questions, other scenes, "
        "several pictures in a prompt, and a published set.",
    ),
    "smollm2-held-out": Composition(
        "composition-of-smollm2.json",
        "python -m scripts.search_compositions smollm2 --searches 2 --seconds 2700",
        "The search saw the help topics of Python and a needle in 512 tokens. On two cores it tried few compositions; "
        "the six that answered best were judged on samples that no search saw, and this was the best. Here it stands "
        "beside every recipe on the Jargon File and on a needle in twice as many tokens, at the same budget.",
    ),
    "demo-own": Composition(
        "composition.json",
        "kvpolicy tune demo --keep 0.2 --answered 400 --samples 12 --trials 100",
        "Here it stands beside every recipe on samples of other seeds than those of the search, at the same budget. It "
        "was found on this model and these tasks, and is no promise for others: search on yours.",
    ),
    "demo-held-out": Composition(
        "composition-of-short-answers.json",
        "kvpolicy tune demo --keep 0.2 --task grid-at --task grid-where --task photo-at --task photo-where "
        "--answered 300 --samples 12 --trials 80",
        "The search saw two kinds of question, what lies where and where something is, which are answered by a word or "
        "two. Here it stands beside every recipe on the other two kinds, at the same budget: to read out a row, and to "
        "say the password, a word before the picture. What a search gains on one kind of question need not carry over "
        "to another.",
    ),
    "demo-photos": Composition(
        "composition-of-grids.json",
        "kvpolicy tune demo --keep 0.2 --task grid-at --task grid-where --task grid-row --task grid-password "
        "--answered 300 --samples 12 --trials 80",
        "The search saw grids that are full of objects, where all of a picture matters. Here it stands beside every "
        "recipe on a few objects on a photograph, where most of a picture does not, at the same budget.",
    ),
}
FOUND = """\
`%s` searched the parts on this model ([how](evaluate.md#search-for-a-better-one)), and found what is in
`docs/results/quality/%s`, for `kvpolicy.from_json`:

```text
%s
```

%s
"""


@dataclass(frozen=True)
class Claim:
    """That one policy is better than another.

    Attributes:
        says: who says what.
        policy: the one that is said to be better.
        other: the one that it is compared with.
        keeps: budgets; those at which both were measured count.
    """

    says: str
    policy: str
    other: str
    keeps: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1)


_ELASTIC = "Elastic Cache (arXiv 2407.18121)"
CLAIMS = (
    Claim(f"{_ELASTIC}, Fig. 3 and 4: better than H2O at every budget", "elastic_cache", "h2o"),
    Claim(f"{_ELASTIC}, Fig. 3 and 4: better than a local window", "elastic_cache", "streaming_llm"),
    Claim(f"{_ELASTIC}, ablation: merging is better than evicting", "elastic_cache", 'elastic_cache(merge="evict")'),
    Claim(f"{_ELASTIC}, ablation: by position, not by cluster", "elastic_cache", 'elastic_cache(merge="cluster")'),
    Claim(f"{_ELASTIC}, ablation: the sum, not the mean", "elastic_cache", 'elastic_cache(statistic="mean")'),
    Claim(f"{_ELASTIC}, ablation: the sum, not a moving average", "elastic_cache", 'elastic_cache(statistic="moving")'),
    Claim(f"{_ELASTIC}, ablation: by layer, not by head", "elastic_cache", 'elastic_cache(sets="head")'),
    Claim(f"{_ELASTIC}, ablation: by layer, not for the model", "elastic_cache", 'elastic_cache(sets="shared")'),
    Claim(f"{_ELASTIC}, ablation: a fixed point, not the oldest", "elastic_cache", 'elastic_cache(discard="recent")'),
    Claim(
        f"{_ELASTIC}, ablation: a fixed point, not by frequency", "elastic_cache", 'elastic_cache(discard="frequency")'
    ),
    Claim("LOOK-M (arXiv 2406.18139): text first, images merged, is better than H2O", "look_m", "h2o"),
    Claim("PyramidKV (arXiv 2406.02069): better than SnapKV at small budgets", "pyramid_kv", "snapkv", (0.2, 0.1)),
    Claim("D2O (arXiv 2406.13035): merging is better than H2O's eviction", "d2o", "h2o"),
    Claim("KVMerger (arXiv 2407.08454): merging is better than H2O's eviction", "kv_merger", "h2o"),
)


@dataclass(frozen=True)
class Run:
    """What was measured on one model."""

    rows: pl.DataFrame
    about: Mapping[str, str]

    @classmethod
    def load(cls, folder: Path) -> Run:
        """From its files."""
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return cls(pl.read_parquet(folder / "rows.parquet").with_columns(said=pl.lit(None), answer=pl.lit(None)), about)


def runs(folder: Path = RESULTS) -> dict[str, Run]:
    """Those that there are, by name."""
    return {name: Run.load(folder / name) for name in TITLES if (folder / name / "rows.parquet").exists()}


def rendered(found: Mapping[str, Run]) -> str:
    """The page."""
    summaries = {name: summarise(run.rows) for name, run in found.items()}
    parts = [HEAD, *glance(found, summaries)]
    for name, run in found.items():
        summary = summaries[name]
        parts += [
            f"## {TITLES[name]}\n",
            provenance(name, run),
            f"![Quality against bytes](assets/quality/{name}.png)\n",
        ]
        if name in COMPOSITIONS:
            parts += own(run, summary, COMPOSITIONS[name])
        parts += filter(None, (orderings(run, by) for by in MEASURES))
        if name not in COMPOSITIONS:
            parts += tables(summary)
        parts += by_task(summary)
    return "\n".join(parts)


def glance(found: Mapping[str, Run], summaries: Mapping[str, pl.DataFrame]) -> Iterable[str]:
    """The page in one table: what is best where, at one budget."""
    of_recipes = pl.col("policy").is_in([name for name in RECIPES if name != "full"]) & (pl.col("keep") == BY_TASK)
    lines = []
    for name, run in found.items():
        of_all = summaries[name].filter(pl.col("task") == "all", pl.col("metric") == "quality")
        best = (
            of_all.filter(of_recipes)
            .sort(pl.col("value").round(6), "policy", descending=[True, False])
            .row(0, named=True)
        )
        cells = [
            f"[{TITLES[name]}](#{anchor(TITLES[name])})",
            escaped(best["policy"]),
            f"{round(best['value'], 9):.3f}",
        ]
        if OWN in run.rows["policy"]:
            mine = of_all.filter(pl.col("policy") == OWN).row(0, named=True)
            against = compare(run.rows, OWN, BY_TASK, best["policy"], BY_TASK).filter(pl.col("task") == "all")
            cells += [f"{round(mine['value'], 9):.3f}", signed(against.row(0, named=True))]
        lines.append([*cells, *[""] * (5 - len(cells))])
    yield f"## At a glance, keep {BY_TASK:g}\n"
    yield table(["", "best recipe", "its quality", "our composition", "is better by [95%]"], lines, words=2) + "\n"


def anchor(title: str) -> str:
    """Of a heading, as Python-Markdown makes it."""
    return str(slugify(title, "-"))


def provenance(name: str, run: Run) -> str:
    """The command, the machine, the versions."""
    about, samples = run.about, run.rows.group_by("task").agg(pl.col("sample").n_unique())
    counts = ", ".join(f"{task} {count}" for task, count in sorted(samples.rows()))
    versions = ", ".join(f"{part} {about[part]}" for part in ("torch", "transformers", "python"))
    return (
        f"`python -m scripts.measure_quality {name}`, {about['date']}, {about['device']} ({about['processor']}), "
        f"{about['dtype']}, {versions}. Samples: {counts}.\n"
    )


@dataclass(frozen=True)
class Measure:
    """What an ordering goes by.

    Attributes:
        title: of its table.
        column: of the rows.
        about: what it is.
    """

    title: str
    column: str
    about: str


MEASURES = (
    Measure("Published orderings, measured again", "quality", ""),
    Measure(
        "The same by ROUGE-L",
        "rouge",
        "ROUGE-L of what is answered against what the model itself answers with the full cache, right or wrong: the "
        "protocol of Elastic Cache. Answers here are short, so that it says less than for long descriptions.\n",
    ),
)


def orderings(run: Run, measure: Measure = MEASURES[0]) -> str:
    """Whether published orderings hold here."""
    if run.rows[measure.column].null_count() == len(run.rows):
        return ""
    run = Run(run.rows.with_columns(quality=pl.col(measure.column)), run.about)
    budgets: dict[str, set[float]] = {}
    for policy, keep in run.rows.select("policy", "keep").unique().rows():
        budgets.setdefault(policy, set()).add(keep)
    lines = []
    for claim in CLAIMS:
        both = budgets.get(claim.policy, set()) & budgets.get(claim.other, set())
        cells = [_ordering(run, claim, keep) for keep in claim.keeps if keep in both]
        if cells:
            pair = f"`{claim.policy}` against `{claim.other}`"
            lines.append(f"| {claim.says} | {pair} | {'<br>'.join(cells)} |")
    if not lines:
        return ""
    head = (
        f"| what is published | | difference in {measure.column} at each budget [95%], and whether it holds here |\n"
        f"|---|---|---|"
    )
    return "\n".join([f"### {measure.title}\n", measure.about, head, *lines]) + "\n"


VERDICTS = {"better": "holds", "worse": "**reversed**", "undecided": "undecided"}


def _ordering(run: Run, claim: Claim, keep: float) -> str:
    found = compare(run.rows, claim.policy, keep, claim.other, keep).filter(pl.col("task") == "all").row(0, named=True)
    return f"{keep:g}: {signed(found)}, {VERDICTS[found['verdict']]}"


def own(run: Run, summary: pl.DataFrame, what: Composition) -> Iterable[str]:
    """The composition, against every recipe, and against itself with one part changed."""
    found = (RESULTS / what.file).read_text(encoding="utf-8")
    yield FOUND % (what.command, what.file, pretty(from_json(found)), what.judged)
    of_all = summary.filter(pl.col("task") == "all", pl.col("metric") == "quality")
    measured = {row["policy"]: row for row in of_all.iter_rows(named=True)}
    mine = measured.pop(OWN)
    yield f"Its quality is {round(mine['value'], 9):.3f} (the mean over tasks), with {mine['kept']:.0%} of the bytes.\n"
    ordered = sorted(measured, key=lambda name: (-round(measured[name]["value"], 6), name))
    for title, chosen in (
        ("Against every recipe", [name for name in ordered if name in RECIPES]),
        ("What each part brings", [name for name in ordered if name not in RECIPES]),
    ):
        if not chosen:
            continue
        head = "| | bytes | quality | the composition is better by [95%] | |\n|---|---:|---:|---:|---|"
        yield "\n".join([f"### {title}\n", head, *(_against_own(run, measured[name]) for name in chosen)]) + "\n"


def _against_own(run: Run, other: Mapping[str, Any]) -> str:
    name, quality = escaped(other["policy"]), round(other["value"], 9)
    against = compare(run.rows, OWN, 0.2, other["policy"], other["keep"])
    found = against.filter(pl.col("task") == "all").row(0, named=True)
    return f"| {name} | {other['kept']:.0%} | {quality:.3f} | {signed(found)} | {found['verdict']} |"


def valued(row: Mapping[str, Any]) -> str:
    """A value with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*(round(row[end], 9) for end in ("value", "low", "high")))


def signed(row: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    # Sums are formed in any order: what is zero but for rounding has no sign of its own.
    value, low, high = (round(row[name], 9) + 0.0 for name in ("difference", "difference_low", "difference_high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def tables(summary: pl.DataFrame) -> Iterable[str]:
    """A table a budget, the best first."""
    of_all = summary.filter(pl.col("task") == "all")
    metrics = [name for name in ("quality", "perplexity", "rouge") if name in of_all["metric"].unique()]
    for keep in sorted(of_all.filter(pl.col("policy") != "full")["keep"].drop_nulls().unique(), reverse=True):
        cells: dict[str, dict[str, dict[str, Any]]] = {}
        for row in of_all.filter((pl.col("keep") == keep) | (pl.col("policy") == "full")).iter_rows(named=True):
            cells.setdefault(row["policy"], {})[row["metric"]] = row
        ordered = sorted(cells, key=lambda policy: (-round(cells[policy]["quality"]["value"], 6), policy))
        yield f"### keep {keep:g}\n"
        yield _table(metrics, [(policy, cells[policy]) for policy in ordered])


BY_TASK = 0.2  # the budget at which tasks stand side by side


def by_task(summary: pl.DataFrame) -> Iterable[str]:
    """Quality on each of several tasks, the best of each in bold: where the answer lives decides who is good at it."""
    shown = ((pl.col("keep") == BY_TASK) & pl.col("policy").is_in([*RECIPES, OWN])) | (pl.col("policy") == "full")
    found = summary.filter(pl.col("metric") == "quality", shown)
    tasks = [task for task in found["task"].unique(maintain_order=True) if task != "all"]
    if len(tasks) < 2:
        return
    quality = {(row["policy"], row["task"]): round(row["value"], 9) for row in found.iter_rows(named=True)}
    ordered = sorted({policy for policy, _ in quality}, key=lambda name: (-round(quality[name, "all"], 6), name))
    best = {task: max(quality[policy, task] for policy in ordered if policy != "full") for task in tasks}

    def cell(policy: str, task: str) -> str:
        share = quality[policy, task]
        return f"**{share:.0%}**" if policy != "full" and share == best[task] > 0 else f"{share:.0%}"

    lines = [[escaped(policy), *(cell(policy, task) for task in tasks)] for policy in ordered]
    yield f"### By task, keep {BY_TASK:g}\n"
    yield table(["policy", *tasks], lines, words=1) + "\n"


def _table(metrics: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    head = ["policy", "bytes", *(f"{metric} [95%]" for metric in metrics), "quality against full [95%]"]
    lines = []
    for policy, found in rows:
        values = [valued(found[metric]) if metric in found else "" for metric in metrics]
        quality = found["quality"]
        against = "" if quality["difference"] is None else signed(quality)
        lines.append([escaped(policy), f"{quality['kept']:.0%}", *values, against])
    return table(head, lines, words=1) + "\n"


def main() -> None:
    """Write the page and its plots."""
    found = runs()
    PAGE.write_text(rendered(found), encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, run in found.items():
        drawn = run.rows.filter(pl.col("policy").is_in([*RECIPES, OWN]))
        highlight = (OWN, "air_cache", "h2o", "elastic_cache") if OWN in drawn["policy"] else ()
        figure = quality_against_bytes(summarise(drawn), highlight=highlight)
        figure.savefig(PICTURES / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
