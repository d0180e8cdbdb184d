"""Check docstrings and words of the product's code: `python -m tests.support.docstring_rules PATH...` lists breaches.

Rules, for public functions, methods, classes and modules:
1. A function's docstring begins with a verb in the imperative (VERBS). A property, a class and a module begin with a
   noun phrase or a verb; nothing begins with a preposition, a conjunction or a relative pronoun.
2. The first paragraph ends with a period, and its first line has at most 100 characters of text.
3. It has more than three words, and is no bare reference to a rule.
4. A public function with two or more parameters has an `Args` section that names each of them.
5. Strings, comments and docstrings do not use words that the glossary replaced (REPLACED).
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("airweights", "bundle", "keys", "fleet", "packager", "device_agent")
VERBS: Final = frozenset((Path(__file__).with_name("verbs.txt")).read_text(encoding="utf-8").split())
MAX_FIRST_LINE: Final = 100
BAD_STARTS: Final = frozenset(
    (
        *(
            [
                "of",
                "in",
                "on",
                "at",
                "by",
                "for",
                "from",
                "to",
                "with",
                "without",
                "as",
                "where",
                "what",
                "when",
                "which",
                "who",
                "whose",
                "whether",
                "if",
                "while",
                "until",
            ]
        ),
        *(
            [
                "since",
                "because",
                "about",
                "above",
                "after",
                "before",
                "below",
                "beside",
                "between",
                "inside",
                "into",
                "like",
                "outside",
                "over",
                "per",
                "than",
            ]
        ),
        *(
            [
                "that",
                "this",
                "these",
                "those",
                "through",
                "under",
                "upon",
                "via",
                "how",
                "why",
                "does",
                "is",
                "are",
                "was",
                "were",
                "has",
                "have",
                "had",
                "can",
                "could",
            ]
        ),
        *(
            [
                "may",
                "might",
                "will",
                "would",
                "shall",
                "should",
                "it",
                "its",
                "it's",
                "they",
                "their",
                "there",
                "here",
                "all",
                "some",
                "any",
                "none",
                "nothing",
            ]
        ),
        *(["nobody", "somebody", "everything", "see"]),
    )
)
# Words that the glossary replaced: none has a meaning that we still need. Format ids keep their old names.
REPLACED: Final = re.compile(
    r"(?<!airweights[. ])\b(errands?|upkeep|forgiv(?:e|es|en|ing)|forgave|switchboard|holdings?|reseal(?:s|ed|ing)?|"
    r"line of bytes|"
    r"enrol(?:s|ment|ments)?|from nothing|held back|judgements?|somebody|nobody|whoever|"
    r"neighbours?|trust memory|teachers?|told|tells?|goes? on|went on|going on|by hand|strangers?|house rule|"
    r"a way back|line by line of|children|child process|child's|not hold|bytes plain|remembered)\b",
    re.IGNORECASE,
)
# Further words that the glossary replaced, and British spellings: not for docs, help texts and schemas.
OLD_WORDS: Final = re.compile(
    r"(?<!airweights[. ])\b(model lines?|armed|parked|newcomers?|in trial|on trial|gives? back|given back|gave back|"
    r"go(?:es)? back|keepers?|signer memory|yardsticks?|anew|plain bytes|can not|for good|colours?|behaviours?|"
    r"defences?|practise[sd]?|(?:optim|initial|serial|synchron|recogn|normal|organ|minim|maxim)is(?:e[sd]?|ing|ation))\b",
    re.IGNORECASE,
)

# The identifiers of old journals, which their migration has to name.
NAMES_OF_OLD_DATA: Final = {"device_agent/storage/journal_schema.py": {"remembered"}}


def old_words(text: str) -> list[str]:
    """Return the replaced words of a text for users: docs, help texts and schemas."""
    return [found[0] for pattern in (REPLACED, OLD_WORDS) for found in pattern.finditer(text)]


def breaches(path: Path) -> Iterator[str]:
    """Yield `path:line: what is wrong` for one file.

    Args:
        path: a Python file.
    """
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for line, text in _docstring_breaches(tree):
        yield f"{name}:{line}: {text}"
    for line, text in replaced_words(source):
        if text in NAMES_OF_OLD_DATA.get(str(name), ()):
            continue
        yield f"{name}:{line}: replaced word {text!r}"


def replaced_words(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the word for each replaced word in comments and strings.

    Args:
        source: Python source.
    """
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for found in REPLACED.finditer(token.string):
                yield token.start[0] + token.string[: found.start()].count("\n"), found[0]


def _docstring_breaches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    text = ast.get_docstring(tree)
    if text is None:
        yield 1, "module: no docstring"
    else:
        yield from _first_line_breaches(1, "module", text, needs_verb=False)
    yield from _body_breaches(tree.body, "")


def _body_breaches(body: Iterable[ast.stmt], prefix: str) -> Iterator[tuple[int, str]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            if not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text is None:
                    yield node.lineno, f"{prefix}{node.name}: no docstring"
                else:
                    yield from _first_line_breaches(node.lineno, prefix + node.name, text, needs_verb=False)
            yield from _body_breaches(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _function_breaches(node, prefix)


def _function_breaches(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> Iterator[tuple[int, str]]:
    name, text = prefix + node.name, ast.get_docstring(node)
    decorators = {ast.unparse(item).partition("(")[0].rpartition(".")[2] for item in node.decorator_list}
    is_public = not any(part.startswith("_") for part in name.split("."))
    if text is None:
        if is_public and not decorators & {"overload", "override", "setter"}:
            yield node.lineno, f"{name}: no docstring"
        return
    is_noun = bool(decorators & {"property", "cached_property", "fixture"}) or not is_public
    yield from _first_line_breaches(node.lineno, name, text, needs_verb=not is_noun)
    if not is_public or decorators & {"command", "group", "override", "property"} or node.name in ("as_json", "parse"):
        return
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    names = [item.arg for item in arguments if item.arg not in ("self", "cls") and not item.arg.startswith("_")]
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    if len(names) >= 2 and section is None:
        yield node.lineno, f"{name}: no Args for {', '.join(names)}"
    elif section is not None:
        documented = set(re.findall(r"^ {4}([\w, *]+):", section[1], re.MULTILINE))
        listed = {part.strip(" *") for row in documented for part in row.split(",")}
        for missing in [item for item in names if item not in listed]:
            yield node.lineno, f"{name}: Args does not name {missing}"


def _first_line_breaches(line: int, name: str, text: str, *, needs_verb: bool) -> Iterator[tuple[int, str]]:
    paragraph = text.split("\n\n")[0]
    words = re.findall(r"[\w`'-]+", paragraph)
    first = words[0].strip("`'") if words else ""
    if re.fullmatch(r"(?:rules?|see)\b[\w ,.`-]*", paragraph, re.IGNORECASE) and len(words) < 6:
        yield line, f"{name}: says no more than where to read: {paragraph!r}"
    elif len(words) <= 3:
        yield line, f"{name}: too short: {paragraph!r}"
    elif first.lower() in BAD_STARTS:
        yield line, f"{name}: begins with {first!r}: {paragraph.splitlines()[0]!r}"
    elif needs_verb and first.lower() not in VERBS:
        yield line, f"{name}: {first!r} is no known verb: {paragraph.splitlines()[0]!r}"
    if not paragraph.rstrip().endswith((".", ":", "?")):
        yield line, f"{name}: the first paragraph does not end with a period"
    if len(text.splitlines()[0]) > MAX_FIRST_LINE:
        yield line, f"{name}: the first line has {len(text.splitlines()[0])} characters, at most {MAX_FIRST_LINE}"


def product_files() -> list[Path]:
    """Return every Python file of the product's packages, sorted."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def main(arguments: list[str]) -> int:
    """Print the breaches in the given files and folders, or in all packages; return 1 if there are any.

    Args:
        arguments: paths.
    """
    given = [Path(argument).resolve() for argument in arguments]
    files = [file for path in given for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    found = [line for file in files or product_files() for line in breaches(file)]
    for line in found:
        print(line)
    print(f"{len(found)} breaches", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
