"""Structured texts, changed value by value: all that is not changed stays as it is, character by character.

Each function takes a text and a visitor, and returns the text with the visitor's values, or None if the text is not of
its kind. Nothing is parsed and written anew, so number forms, blanks, order and duplicates are those of the original.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

import yaml

from .names import NameKind, kind_of, name_within, option_name
from .shapes import given_in

if TYPE_CHECKING:
    from collections.abc import Callable

# A JSON text is strings, punctuation, and all else: numbers and literals.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)
_XML_TOKEN = re.compile(
    r"<!\[CDATA\[(?P<cdata>.*?)\]\]>|<!--(?P<comment>.*?)-->|<[?!][^>]*>|<(?P<close>/?)(?P<tag>[A-Za-z_][\w.:-]*)"
    r"(?P<attributes>(?:\s+[\w.:-]+(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=`]+(?<!/)))?)*)\s*(?P<empty>/?)>|(?P<text>[^<]+)",
    re.DOTALL,
)
_XML_ATTRIBUTE = re.compile(
    r"(?P<name>[\w.:-]+)\s*=\s*(?:(?P<quote>[\"'])(?P<quoted>.*?)(?P=quote)|(?P<bare>[^\s\"'<>=`]+(?<!/)))", re.DOTALL
)
_PERCENT_RUN = re.compile(
    r"(?:[\w.~!*'()+/:@,;$-]|%[0-9A-Fa-f]{2})*%[0-9A-Fa-f]{2}(?:[\w.~!*'()+/:@,;$-]|%[0-9A-Fa-f]{2})*"
)
DEEPEST = 200  # arrays and objects inside each other that are followed


_NOTHING: Mapping[str, str] = MappingProxyType({})


class Place(NamedTuple):
    """Where a value stands.

    Attributes:
        name: The name of its member, element, attribute or variable; empty if it has none.
        beside: The other members of the same object, those that are text.
        above: The names of what encloses it, innermost first.
    """

    name: str = ""
    beside: Mapping[str, str] = _NOTHING
    above: tuple[str, ...] = ()


Visit = "Callable[[str, Place], str]"


def rewrite_json(
    text: str, visit: Callable[[str, Place], str], visit_number: Callable[[str, Place], str] | None = None
) -> str | None:
    """Change the strings of a JSON text, names of members included (which have an empty name themselves).

    Args:
        text: A whole JSON object or array.
        visit: Gets each string, decoded, and its place.
        visit_number: Gets each number as it is written.

    Returns:
        The changed text, or None if this is no JSON object or array.
    """
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    changes: list[tuple[int, int, str]] = []
    _Json(text, visit, visit_number, changes).read()
    return _changed(text, changes)


class _Json:
    """One pass over the tokens of a valid JSON text."""

    def __init__(
        self,
        text: str,
        visit: Callable[[str, Place], str],
        visit_number: Callable[[str, Place], str] | None,
        changes: list[tuple[int, int, str]],
    ) -> None:
        self.visit, self.visit_number, self.changes = visit, visit_number, changes
        self.text = text
        self.columns: list[str] = []
        self.tokens = [(match[0], match.start()) for match in _JSON_TOKEN.finditer(text)]
        self.at = 0

    def read(self) -> None:
        self.value("", {}, ())

    def value(self, name: str, beside: Mapping[str, str], above: tuple[str, ...]) -> None:
        word, start = self.tokens[self.at]
        if word == "{":
            self.members((name, *above))
        elif word == "[":
            self.at += 1
            pair_name = self.name_of_pair()
            if kind_of(pair_name) is NameKind.SECRET:
                self.value(name, beside, above)
                self.at += 1
                self.value(pair_name, {}, (name, *above))
            self.items(name, beside, above)
            self.at += 1
        else:
            self.at += 1
            place = Place(name, beside, above)
            if word.startswith('"'):
                self.string(word, start, place)
            elif self.visit_number is not None and (word[0].isdigit() or word[0] == "-"):
                self.note(word, start, self.visit_number(word, place))

    def items(self, name: str, beside: Mapping[str, str], above: tuple[str, ...]) -> None:
        columns = self.columns if above and name == "" and above[0] == "rows" else []
        option, index = "", 0
        given = self.given()
        while self.tokens[self.at][0] != "]":
            word = self.tokens[self.at][0]
            if word == ",":
                self.at += 1
                index += 1
                continue
            if index in given:
                self.part(given[index], (name, *above))
            elif option and word.startswith('"') and not word.startswith('"-'):
                self.value(option, {}, (name, *above))
            elif index < len(columns) and word not in ("{", "["):
                self.value(columns[index], {}, (name, *above))
            elif name == "rows" and word == "[":
                self.value("", beside, (name, *above))
            else:
                self.value(name, beside, above)
            option = option_name(_decoded(word)) if word.startswith('"-') else ""

    def given(self) -> dict[int, int]:
        """Return where passwords stand in an array that is a command and its arguments."""
        words, at = [], self.at
        while self.tokens[at][0].startswith('"'):
            words.append(_decoded(self.tokens[at][0]))
            if self.tokens[at + 1][0] != ",":
                break
            at += 2
        return given_in(words) if any(word.startswith("-") for word in words) else {}

    def part(self, begin: int, above: tuple[str, ...]) -> None:
        """Visit the end of a string as a password; what stands before it stays."""
        word, start = self.tokens[self.at]
        self.at += 1
        value = _decoded(word)
        changed = value[:begin] + self.visit(value[begin:], Place("password", above=above))
        if changed != value:
            self.note(word, start, json.dumps(changed, ensure_ascii=word.isascii()))

    def name_of_pair(self) -> str:
        """Return the first of two strings that are all of an array: a name, where a pair is written so."""
        pair = [word for word, _ in self.tokens[self.at : self.at + 4]]
        is_pair = len(pair) == 4 and pair[0].startswith('"') and pair[1::2] == [",", "]"] and pair[2].startswith('"')
        return _decoded(pair[0]) if is_pair else ""

    def members(self, above: tuple[str, ...]) -> None:
        beside = self.texts()
        self.at += 1
        while self.tokens[self.at][0] != "}":
            word, start = self.tokens[self.at]
            if word == ",":
                self.at += 1
                continue
            self.string(word, start, Place("", {}, above))
            self.at += 2
            first = self.at
            self.value(name_within(_decoded(word), beside), beside, above)
            if _decoded(word) == "columns":
                self.columns = self.names_of_columns(first)
        self.at += 1

    def names_of_columns(self, first: int) -> list[str]:
        """Return the names of the columns of the rows that follow, as Log Analytics and Resource Graph write tables."""
        (word, start), (_, end) = self.tokens[first], self.tokens[self.at - 1]
        columns = json.loads(self.text[start : end + 1], strict=False) if word == "[" else []
        return [str(each.get("name", "")) if isinstance(each, dict) else str(each) for each in columns]

    def texts(self) -> dict[str, str]:
        """Return the members of the object that begins here; numbers and truth values as they are written."""
        depth, at = 0, self.at
        found: dict[str, str] = {}
        while True:
            word = self.tokens[at][0]
            if word in "{[":
                depth += 1
            elif word in "}]":
                depth -= 1
                if depth == 0:
                    return found
            elif depth == 1 and word == ":" and self.tokens[at + 1][0] not in ("{", "["):
                value = self.tokens[at + 1][0]
                found[_decoded(self.tokens[at - 1][0])] = _decoded(value) if value.startswith('"') else value
            at += 1

    def string(self, word: str, start: int, place: Place) -> None:
        value = _decoded(word)
        changed = self.visit(value, place)
        if changed != value:
            self.note(word, start, json.dumps(changed, ensure_ascii=word.isascii()))

    def note(self, word: str, start: int, changed: str) -> None:
        if changed != word:
            self.changes.append((start, start + len(word), changed))


def _decoded(token: str) -> str:
    if "\\" not in token:
        return token[1:-1]
    value: str = json.loads(token, strict=False)
    return value


def rewrite_xml(text: str, visit: Callable[[str, Place], str]) -> str | None:
    """Change texts, CDATA, comments and attributes of XML or HTML; None if the text does not begin as such."""
    if not re.match(r"\s*<[?!A-Za-z]", text):
        return None
    document = _Xml(text, visit)
    for match in _XML_TOKEN.finditer(text):
        document.read(match)
    return _changed(text, document.changes)


class _Xml:
    """One pass over the tags and texts of a document, well-formed or not."""

    def __init__(self, text: str, visit: Callable[[str, Place], str]) -> None:
        self.whole, self.visit = text, visit
        self.changes: list[tuple[int, int, str]] = []
        self.open_tags: list[str] = []  # outermost first
        self.named: list[str] = []  # what the attributes of each open tag call it
        self.beside: dict[str, str] = {}  # the text that was last seen of each element

    def read(self, match: re.Match[str]) -> None:
        names = [(_local(tag), named) for tag, named in zip(self.open_tags, self.named, strict=True)]
        above = tuple(name for pair in reversed(names) for name in pair if name)
        name, outer = (above[0], above[1:]) if above else ("", ())
        if match["close"]:
            while self.open_tags and self.close() != match["tag"]:
                pass
        elif match["tag"]:
            beside = self.attributes(match, (_local(match["tag"]), *above))
            if not match["empty"] and match["tag"].lower() not in _EMPTY_TAGS:
                self.open_tags.append(match["tag"])
                self.named.append(next((beside[naming] for naming in ("name", "key") if naming in beside), ""))
        elif match["text"] is not None:
            self.beside[name] = html.unescape(match["text"].strip())
            self.change(match, "text", self.place(name, outer), lambda text: html.escape(text, quote=False))
        elif match["cdata"]:
            self.change(match, "cdata", Place(name, {}, outer))
        elif match["comment"]:
            self.change(match, "comment", Place("", {}, above))

    def close(self) -> str:
        self.named.pop()
        return self.open_tags.pop()

    def place(self, name: str, outer: tuple[str, ...]) -> Place:
        """Return the place of a text: a tag, its name in an attribute, or the key before it in a property list."""
        named = self.named[-1] if self.named else ""
        if kind_of(named) in (NameKind.SECRET, NameKind.KEY):
            return Place(named, dict(self.beside), (name, *outer))
        if name in ("string", "data") and outer[:1] == ("dict",):
            return Place("value", {"key": self.beside.get("key", "")}, outer)
        return Place(name, dict(self.beside), outer)

    def attributes(self, tag: re.Match[str], above: tuple[str, ...]) -> dict[str, str]:
        found = list(_XML_ATTRIBUTE.finditer(self.whole, *tag.span("attributes")))
        beside = {each["name"]: html.unescape(each["quoted"] or each["bare"] or "") for each in found}
        for each in found:
            group = "bare" if each["quoted"] is None else "quoted"
            self.change(each, group, Place(_local(each["name"]), beside, above), html.escape)
        return beside

    def change(
        self, match: re.Match[str], group: str, place: Place, escape: Callable[[str], str] | None = None
    ) -> None:
        value = match[group] if escape is None else html.unescape(match[group])
        if not value.strip():
            return
        changed = self.visit(value, place)
        if changed != value:
            self.changes.append((*match.span(group), changed if escape is None else escape(changed)))


def attributes_of(text: str) -> list[re.Match[str]]:
    """Return the attributes of a tag; the value of each is in one of the groups `quoted` and `bare`."""
    return list(_XML_ATTRIBUTE.finditer(text))


def _local(name: str) -> str:
    return name.rpartition(":")[2]


# Elements of HTML that have no end tag.
_EMPTY_TAGS = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"})


# The loader written in C is several times faster; PyYAML is there without it, too.
_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_YAML_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_YAML_PLAIN = re.compile(r"[\w./+=][\w./+=@%-]*")


def rewrite_yaml(text: str, visit: Callable[[str, Place], str]) -> str | None:
    """Change the values of YAML, or return None if the text is no mapping or list of YAML. Comments are not visited."""
    documents: list[yaml.Node | None] = []
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        documents += yaml.compose_all(text, Loader=_YamlLoader)
    if not documents or any(isinstance(document, yaml.ScalarNode) for document in documents):
        return None
    reader = _Yaml(text, visit)
    for document in documents:
        if document is not None:
            reader.value(document, "", {}, ())
    return _changed(text, reader.changes)


class _Yaml:
    """One pass over the nodes of YAML. One that has an anchor is visited where it stands first."""

    def __init__(self, text: str, visit: Callable[[str, Place], str]) -> None:
        self.text, self.visit = text, visit
        self.changes: list[tuple[int, int, str]] = []
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, name: str, beside: Mapping[str, str], above: tuple[str, ...]) -> None:
        if id(node) in self.seen or len(above) > DEEPEST:
            return
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            members = [(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
            texts = {key: value.value for key, value in members if isinstance(value, yaml.ScalarNode)}
            for key, value in members:
                self.value(value, name_within(key, texts), texts, (name, *above))
        elif isinstance(node, yaml.SequenceNode):
            self.items(node.value, name, beside, above)
        elif isinstance(node, yaml.ScalarNode):
            self.scalar(node, Place(name, beside, above))

    def items(self, items: list[yaml.Node], name: str, beside: Mapping[str, str], above: tuple[str, ...]) -> None:
        arguments = [item.value for item in items if isinstance(item, yaml.ScalarNode)]
        is_command = len(arguments) == len(items) and any(argument.startswith("-") for argument in arguments)
        option, given = "", given_in(arguments) if is_command else {}
        for index, item in enumerate(items):
            is_option = isinstance(item, yaml.ScalarNode) and item.value.startswith("-")
            if index in given and isinstance(item, yaml.ScalarNode):
                self.scalar(item, Place("password", above=(name, *above)), given[index])
            else:
                self.value(item, option if option and not is_option else name, beside, above)
            option = option_name(item.value) if is_option else ""

    def scalar(self, node: yaml.ScalarNode, place: Place, begin: int = 0) -> None:
        if not node.value:
            return
        changed = node.value[:begin] + self.visit(node.value[begin:], place)
        if changed == node.value:
            return
        start, end = node.start_mark.index, node.end_mark.index
        properties = _YAML_PROPERTIES.match(self.text, start, end)
        start = end if properties is None else properties.end()
        self.changes.append((start, end, self.written(node, self.text[start:end], changed)))

    @staticmethod
    def written(node: yaml.ScalarNode, raw: str, changed: str) -> str:
        if raw.startswith("|"):
            head, *lines = raw.split("\n")
            old, new = node.value.split("\n"), changed.split("\n")
            if len(old) == len(new) <= len(lines) + 1:
                indents = [line[: len(line.rstrip("\r")) - len(was)] for line, was in zip(lines, old, strict=False)]
                ends = ["\r" if line.endswith("\r") else "" for line in lines]
                made = [indent + text + end for indent, text, end in zip(indents, new, ends, strict=False)]
                return "\n".join([head, *made, *lines[len(made) :]])
        if raw.startswith("'"):
            return "'" + changed.replace("'", "''") + "'"
        quoted = json.dumps(changed, ensure_ascii=False)
        if raw.startswith((">", "|")):
            return quoted + raw[len(raw.rstrip()) :]
        is_plain = not raw.startswith('"') and _YAML_PLAIN.fullmatch(changed)
        return changed if is_plain else quoted


def rewrite_events(text: str, change: Callable[[str], str]) -> str | None:
    """Change the data of server-sent events whose JSON stands on several lines; None if there is none."""
    lines = re.split(r"(\r\n|\n|\r)", text)
    start, has_changed = 0, False
    for end in range(0, len(lines) + 2, 2):
        if end < len(lines) and lines[end].strip():
            continue
        data = [index for index in range(start, min(end, len(lines)), 2) if lines[index].startswith("data:")]
        values = [re.sub("^data: ?", "", lines[index]) for index in data]
        whole = "\n".join(values)
        if len(data) > 1 and json_or_none(whole) is not None and (changed := change(whole)) != whole:
            has_changed = True
            made = changed.split("\n")
            made += [""] * (len(data) - len(made))
            for index, was, new in zip(data, values, made, strict=True):
                lines[index] = lines[index][: len(lines[index]) - len(was)] + new
        start = end + 2
    return "".join(lines) if has_changed else None


def events(text: str) -> list[str]:
    """Return the data of server-sent events that stand on several lines."""
    found: list[str] = []

    def note(whole: str) -> str:
        found.append(whole)
        return whole

    rewrite_events(text, note)
    return found


def rewrite_csv(text: str, visit: Callable[[str, Place], str]) -> str | None:
    """Change the fields of a table whose first line names its columns; None if no column is one of secrets."""
    header, _, rest = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    names = [_csv_value(name) for name in header.rstrip("\r").split(delimiter)] if len(header) < 4096 else []
    if len(names) < 2 or not rest or not {kind_of(name) for name in names} & {NameKind.SECRET, NameKind.KEY}:
        return None
    if not all(re.fullmatch(r"[A-Za-z_][\w .()/-]{0,60}", name) for name in names):
        return None
    field = re.compile(rf"(?:^|{delimiter})(\"(?:[^\"]|\"\")*\"|[^{delimiter}]*)")
    made = [header + "\n"]
    for line in rest.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        fields = field.findall(bare) if '"' in bare else bare.split(delimiter)
        if bare and len(fields) != len(names):
            return None
        changed = [
            _csv_changed(old, visit(_csv_value(old), Place(name))) for name, old in zip(names, fields, strict=False)
        ]
        made.append(delimiter.join(changed) + line[len(bare) :])
    return "".join(made)


def _csv_value(field: str) -> str:
    return field[1:-1].replace('""', '"') if len(field) > 1 and field[0] == field[-1] == '"' else field


def _csv_changed(field: str, changed: str) -> str:
    if changed == _csv_value(field):
        return field
    return '"' + changed.replace('"', '""') + '"' if field.startswith('"') else changed


def rewrite_query(text: str, visit: Callable[[str, Place], str], above: tuple[str, ...] = ()) -> str:
    """Change the values of a query or form; what has no "=" is a value without a name."""
    parts = re.split("([&])", text)
    beside = {}
    for part in parts[::2]:
        name, _, value = part.partition("=")
        beside[unquote(name.replace("+", " "))] = unquote(value.replace("+", " "))
    for index in range(0, len(parts), 2):
        name, equals, value = parts[index].partition("=")
        if not equals:
            name, value = "", name
        decoded = unquote(value.replace("+", " "))
        changed = visit(decoded, Place(unquote(name.replace("+", " ")), beside, above))
        if changed != decoded:
            parts[index] = f"{name}{equals}{quote(changed, safe='')}"
    return "".join(parts)


def rewrite_percent_encoded(text: str, visit: Callable[[str], str]) -> str:
    """Change what is percent-encoded inside a text."""

    def change(run: re.Match[str]) -> str:
        decoded = unquote(run[0])
        changed = visit(decoded)
        if changed == decoded:
            return run[0]
        safe = "".join(char for char in "/:@,;$-!*'()+=&?" if char in run[0])
        return quote(changed, safe=safe)

    return _PERCENT_RUN.sub(change, text) if "%" in text else text


def from_base64(text: str) -> bytes | None:
    """Return the bytes that base64 of either alphabet stands for, None if it is none. Line breaks are allowed."""
    if ("/" in text or "+" in text) and ("-" in text or "_" in text):
        return None
    joined = text if text.isalnum() else _BLANK.sub("", text)
    if len(joined) < 4 or not _BASE64.fullmatch(joined) or len(joined.rstrip("=")) % 4 == 1:
        return None
    try:
        return base64.b64decode(joined.rstrip("=").translate(_FROM_URL_SAFE) + "==")
    except (binascii.Error, ValueError):
        return None


_BLANK = re.compile(r"\s")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]+|[A-Za-z0-9_-]+)={0,2}")
_FROM_URL_SAFE = str.maketrans("-_", "+/")


def to_base64(content: bytes, like: str) -> str:
    """Return the base64 of some bytes in the alphabet, padding and line length of another one."""
    encoded = base64.b64encode(content).decode()
    if re.search("[-_]", like) or not re.search("[+/=]", like):
        encoded = encoded.translate(str.maketrans("+/", "-_")) if re.search("[-_]", like) else encoded
    if not like.rstrip().endswith("=") and len(re.sub(r"\s", "", like)) % 4:
        encoded = encoded.rstrip("=")
    lines = like.split("\n")
    if len(lines) > 1 and lines[0]:
        width, end = len(lines[0].rstrip("\r")), "\r\n" if lines[0].endswith("\r") else "\n"
        encoded = end.join(encoded[at : at + width] for at in range(0, len(encoded), width))
        encoded += end if like.endswith("\n") else ""
    return encoded


def _changed(text: str, changes: list[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, new in sorted(changes):
        parts += [text[at:start], new]
        at = end
    return "".join((*parts, text[at:]))


def json_or_none(text: str) -> Any:
    """Return the JSON object or array of a text, None if it is none."""
    if not text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        return None
    try:
        return json.loads(text.lstrip("\ufeff"), strict=False)
    except (ValueError, RecursionError):
        return None
