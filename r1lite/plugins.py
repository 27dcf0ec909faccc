"""Functions that are named in recipes and cards: `rewards.math:accuracy` or `./my_rewards.py:brevity`."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from r1lite.records import digest

REPOSITORY = Path(__file__).resolve().parent.parent
FROM_FILE = "plugin_"  # begins the names of modules that were loaded from a path
# What a plug-in may build on and whose edits must therefore show in the keys of what it made.
TRACKED_PACKAGES = ("rewards", "r1lite")


def load_function(reference: str) -> Callable[..., Any]:
    """The function behind `module:name` or `path.py:name`; a ValueError says what is missing and where."""
    module_name, _, name = reference.rpartition(":")
    if not module_name:
        raise ValueError(f"{reference!r} names no function; write module:function or path/to/file.py:function")
    module = load_module(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        found = ", ".join(key for key, value in own.items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"{module_name} has no function {name!r}; it has: {found or 'none'}")
    return cast(Callable[..., Any], function)


def reference_to(function: Callable[..., Any]) -> str:
    """What load_function, in another process, finds a module's function by."""
    module = sys.modules[function.__module__]
    name = str(module.__file__) if module.__name__.startswith(FROM_FILE) else module.__name__
    return f"{name}:{function.__qualname__}"


def load_module(name: str) -> ModuleType:
    path = source_file(name)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        alias = f"{FROM_FILE}{digest(str(path))[:12]}"
        if alias not in sys.modules:
            spec = importlib.util.spec_from_file_location(alias, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[alias] = module  # before it runs: dataclasses and pickle look their module up
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[alias]
                raise
        return sys.modules[alias]
    except Exception as error:  # a plug-in's top level may raise anything
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def source_file(name: str) -> Path:
    """The file of a module name or of a path that ends in .py."""
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise ValueError(f"there is no file {name} (looked in {Path.cwd()})")
        return path
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))  # rewards/ lies beside the package
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(
            f"there is no module {name!r}; write a module such as rewards.math, or a path that ends in .py"
        )
    return Path(spec.origin)


def source_hashes(reference: str) -> dict[str, str]:
    """sha256 of the file behind a reference and of every file of rewards/ or r1lite/ it imports, by path."""
    waiting, hashes = [source_file(reference.rpartition(":")[0])], {}
    while waiting:
        path = waiting.pop()
        source = path.read_bytes()
        shown = str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)
        if shown not in hashes:
            hashes[shown] = digest(source)
            waiting += [source_file(module) for module in tracked_imports(source)]
    return dict(sorted(hashes.items()))


def tracked_imports(source: bytes) -> set[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return set()  # loading the plug-in reports it, with its line
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
            modules |= {name for alias in node.names if is_module(name := f"{node.module}.{alias.name}")}
    return {module for module in modules if module.split(".")[0] in TRACKED_PACKAGES}


def is_module(name: str) -> bool:
    return name.split(".")[0] in TRACKED_PACKAGES and (REPOSITORY / (name.replace(".", "/") + ".py")).is_file()
