"""The page's scripts and styles as one inline module and one inline style.

The scripts are ES modules, readable as they are, but a page cannot import from inside itself. Each becomes a function
that returns what it exports, and its imports read from those results.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w/.]+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const|let) (\w+)", re.MULTILINE)
_STYLES = ("page.css",)


def source(name: str) -> str:
    """The text of a file of this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def script(entry: str = "main.js") -> str:
    """The module ``entry`` and all it imports, joined in the order of their dependencies.

    Raises:
        ValueError: modules that import one another in a circle, or a form of import that is not understood.
    """
    done: dict[str, str] = {}
    _add(entry, done, ())
    return "".join(done.values())


@cache
def style() -> str:
    """All style sheets: the page's own first, then one per view, by name."""
    others = sorted(file.name for file in files(__package__).iterdir()
                    if file.name.endswith(".css") and file.name not in _STYLES)
    return "".join(source(name) for name in (*_STYLES, *others))


@cache
def vendored() -> str:
    """The vendored libraries as one classic script; their licences stand in it as comments."""
    folder = files(__package__).joinpath("vendor")
    order = folder.joinpath("order.txt").read_text(encoding="utf-8").split()
    licence = folder.joinpath("LICENSE").read_text(encoding="utf-8").replace("*/", "* /")
    return f"/*\n{licence}*/\n" + "".join(
        folder.joinpath(name).read_text(encoding="utf-8").rstrip() + "\n" for name in order)


def digest(text: str) -> str:
    """The hash by which a Content-Security-Policy allows an inline element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _add(name: str, done: dict[str, str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules import in a circle: {' -> '.join((*above, name))}")
    if name in done:
        return
    text = source(name)
    for found in _IMPORT.finditer(text):
        _add(f"{found[2]}.js", done, (*above, name))
    body = _IMPORT.sub(
        lambda found: f"const {{{found[1].replace(' as ', ': ')}}} = {_variable(found[2] + '.js')};\n", text)
    if re.search(r"^import\b", body, re.MULTILINE):
        raise ValueError(f"{name}: only imports of the form import {{ a }} from \"./file.js\"; are understood")
    exported = _EXPORT.findall(text)
    body = re.sub(r"^export ", "", body, flags=re.MULTILINE)
    done[name] = (f"// {name}\nconst {_variable(name)} = (() => {{\n{body}return {{ {', '.join(exported)} }};\n}})();\n"
                  if name != "main.js" else f"// {name}\n{body}")


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name.removesuffix(".js"))
