"""The faults that can be put into a source file: plausible slips, each a replacement of one stretch of its text.

What would only end in an exception at the first call (an unknown name, a string misspelt) is left out, as it says
nothing about the tests; so are messages, documentation, annotations and `repr`s.
"""

import ast
import builtins
import copy
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass


# Operators that are taken for one another.
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
# Names that are taken for one another.
NAMES = {
    "min": "max",
    "minimum": "maximum",
    "amin": "amax",
    "argmin": "argmax",
    "all": "any",
    "sum": "mean",
    "sin": "cos",
    "floor": "ceil",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "height": "width",
    "low": "high",
    "rows": "columns",
    "weight": "bias",
    "relu": "sigmoid",
    "normal_": "uniform_",
}
NAMES.update({other: name for name, other in NAMES.items()})
# Those that need nothing in front of them.
BARE_NAMES = {"min", "max", "all", "any", "height", "width", "low", "high", "rows", "columns"}
# Calls that give back something of the same kind: without one, the code runs on.
DROPPED_CALLS = {
    *("abs", "clamp", "clamp_", "clip", "exp", "log", "sqrt", "rsqrt", "square", "tanh", "sin", "cos", "radians"),
    *("sigmoid", "softmax", "log_softmax", "relu", "relu_", "gelu", "silu", "round", "rint", "floor", "ceil"),
    *(
        "normalize",
        "unit_length",
        "unit_vectors",
        "full_precision",
        "detach",
        "clone",
        "copy",
        "deepcopy",
    ),
    *("float", "double", "half", "long", "int", "bool", "to", "astype", "asarray"),
    *("sort", "sorted", "reversed", "flip", "cumsum", "unique", "triu", "masked_fill", "nan_to_num", "expand_as"),
    *("max", "min", "maximum", "minimum", "nonzero", "logical_not", "strip", "lower", "resolve", "absolute", "eval"),
    *("tuple", "list", "set", "removeprefix", "removesuffix", "replace", "ScaledGradient", "apply"),
}
# Modules that may be left out, by a part of their name.
DROPPED_MODULES = ("norm", "relu", "check", "modulat")
# Calls whose two first arguments can be exchanged without any change.
SYMMETRIC_CALLS = {"promote_types", "max", "min", "maximum", "minimum", "equal", "isclose", "allclose", "isinstance"}
# Calls whose plain numbers are axes and sizes, and arguments that are: another number is an exception at once.
SHAPE_CALLS = {
    *("unsqueeze", "squeeze", "flatten", "unflatten", "transpose", "permute", "view", "reshape", "expand", "repeat"),
    *("sum", "mean", "amax", "amin", "any", "all", "argmax", "argmin", "max", "min", "sort", "argsort", "cumsum"),
    *("size", "split", "chunk", "unbind", "index_add", "index_add_", "index_copy", "scatter_", "scatter_reduce"),
    *("scatter_reduce_", "gather", "new_zeros", "new_ones", "new_empty", "new_full", "zeros", "ones", "empty", "full"),
    *("logsumexp", "softmax", "index_select", "getattr", "round", "movedim", "swapaxes", "diff", "take_along_axis"),
}
SHAPE_ARGUMENTS = {"dim", "axis", "keepdim", "keepdims", "dim1", "dim2", "minlength", "ndmin"}
# What only another device, a crash of the machine, or a reader of the text would tell apart.
UNSEEN_ARGUMENTS = {
    "device",
    "strict",
    "encoding",
    "indent",
    "exist_ok",
    "missing_ok",
    "ignore_errors",
    "durable",
    "desc",
    "unit",
    "repr",
}
UNSEEN_CALLS = {"wait_for_everyone", "fsync", "_flush", "flush", "close", "free_memory", "reset_lock"}
PATH_WORDS = ("dir", "folder", "root", "path", "partial", "checkpoint", "source", "out", "base", "output", "file")
LOGGING = {"logger", "logging", "warnings", "print", "recorder"}
SKIPPED_FUNCTIONS = {"__repr__", "extra_repr", "build_parser", "add_arguments"}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        path: File, from the root of the repository.
        line: Where it begins, from 1.
        kind: What sort of slip it is.
        start: First byte that is replaced.
        end: Byte behind the last one.
        text: What stands there instead.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    text: str

    def apply(self, source: bytes) -> bytes:
        """The file's content with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def parses(self, source: bytes) -> bool:
        """Whether the file is still Python with the fault in it; a look at all faults of a file takes seconds."""
        try:
            ast.parse(self.apply(source))
        except SyntaxError:
            return False
        return True

    def key(self, source: bytes) -> str:
        """A name that stays the same as long as the file does."""
        digest = hashlib.sha256(self.apply(source)).hexdigest()[:12]
        return f"{self.path}:{self.line}:{self.kind}:{digest}"

    def describe(self, source: bytes) -> str:
        """What was there, and what is there now, in one line."""
        before = " ".join(source[self.start : self.end].decode().split())
        return f"{self.path}:{self.line} {self.kind}: {before[:90]}  ->  {' '.join(self.text.split())[:90]}"


def find_faults(path: str, source: bytes) -> list[Fault]:
    """All faults that the operators of this module know for a file, without repetition, in its order.

    A few may be no Python any more; see `Fault.parses`.
    """
    finder = _Finder(path, source)
    found = {}
    for node, kind, text in finder.body(ast.parse(source)):
        # Two equal entries exchanged, say.
        if text == ast.unparse(node):
            continue
        start, end = finder.span(node)
        fault = Fault(path, node.lineno, kind, start, end, text)
        changed = fault.apply(source)
        if changed != source:
            found.setdefault(changed, fault)
    return sorted(found.values(), key=lambda fault: (fault.start, fault.end, fault.text))


class _Finder:
    """Walks over a syntax tree and gives (node, kind, text that replaces it)."""

    def __init__(self, path: str, source: bytes):
        self.path = path
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.words = set(re.findall(r"\w+", source.decode()))

    def knows(self, name: str) -> bool:
        """Whether a name can be used in the file."""
        return name in self.words or hasattr(builtins, name)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Bytes of a node."""
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def body(self, owner: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
        """Of a module, class or function, without its documentation."""
        statements = owner.body
        if statements and isinstance(statements[0], ast.Expr) and isinstance(statements[0].value, ast.Constant):
            statements = statements[1:]
        for statement in statements:
            yield from self.statement(statement)

    def statement(self, node: ast.stmt) -> Iterator[tuple[ast.AST, str, str]]:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.Assert)):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name in SKIPPED_FUNCTIONS:
                return
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default is not None:
                    yield from self.expression(default)
            yield from self.body(node)
        elif isinstance(node, ast.ClassDef):
            yield from self.body(node)
        elif isinstance(node, ast.Raise):
            # A check that no longer refuses. A bare `raise` passes on what others found.
            if node.exc is not None:
                yield node, "raise removed", "pass"
        elif isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Call) and not _is_logging(node.value):
                if not _is_super(node.value) and _called(node.value) not in UNSEEN_CALLS:
                    yield node, "statement removed", "pass"
                yield from self.arguments(node.value)
            elif isinstance(node.value, (ast.Yield, ast.YieldFrom)):
                yield from self.children(node.value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self.expression(node.value)
        elif isinstance(node, ast.AugAssign):
            yield node, "statement removed", "pass"
            if type(node.op) in OPERATORS:
                changed = copy.copy(node)
                changed.op = OPERATORS[type(node.op)]()
                yield node, "operator", ast.unparse(changed)
            yield from self.expression(node.value)
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            return
        else:
            if isinstance(node, (ast.If, ast.While)) and not _is_comparison(node.test):
                yield node.test, "condition negated", f"not ({ast.unparse(node.test)})"
            if isinstance(node, ast.Assign) and _is_type(node.value):
                return
            if isinstance(node, ast.Assign) and all(isinstance(t, ast.Subscript) for t in node.targets):
                yield node, "statement removed", "pass"
            if isinstance(node, ast.Continue):
                yield node, "statement removed", "pass"
            yield from self.children(node)

    def children(self, node: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from self.statement(child)
            elif isinstance(child, ast.expr):
                yield from self.expression(child)
            elif isinstance(child, (ast.keyword, ast.comprehension, ast.ExceptHandler, ast.withitem, ast.match_case)):
                if isinstance(child, ast.comprehension):
                    for test in [test for test in child.ifs if not _is_comparison(test)]:
                        yield test, "condition negated", f"(not ({ast.unparse(test)}))"
                yield from self.children(child)

    def expression(self, node: ast.expr) -> Iterator[tuple[ast.AST, str, str]]:
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            return
        if isinstance(node, ast.Call) and _is_logging(node):
            return
        changed = copy.copy(node)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not (_is_text(node) or _is_path(node)):
            changed.op = OPERATORS[type(node.op)]()
            yield node, "operator", f"({ast.unparse(changed)})"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
            yield node, "operator", f"({ast.unparse(node.operand)})"
        elif isinstance(node, ast.BoolOp):
            changed.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
            yield node, "operator", f"({ast.unparse(changed)})"
        elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            changed.ops = [COMPARISONS[type(node.ops[0])]()]
            yield node, "comparison", f"({ast.unparse(changed)})"
        elif isinstance(node, ast.IfExp):
            changed.body, changed.orelse = changed.orelse, changed.body
            yield node, "branches exchanged", f"({ast.unparse(changed)})"
        elif isinstance(node, ast.Constant):
            yield from ((node, "constant", text) for text in _other_constants(node.value))
            return
        elif isinstance(node, (ast.List, ast.Tuple)) and len(node.elts) > 1 and not _are_texts(node):
            changed.elts = [*node.elts[1::-1], *node.elts[2:]]
            yield node, "elements exchanged", ast.unparse(changed)
        elif isinstance(node, ast.Dict):
            pairs = [index for index in range(len(node.keys) - 1) if node.keys[index] and node.keys[index + 1]]
            for index in pairs:
                changed.values = list(node.values)
                changed.values[index : index + 2] = node.values[index : index + 2][::-1]
                yield node, "entries exchanged", ast.unparse(changed)
        elif isinstance(node, ast.Call):
            yield from self.call(node)
            yield from self.arguments(node)
            return
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if name in NAMES and (isinstance(node, ast.Attribute) or (name in BARE_NAMES and self.knows(NAMES[name]))):
            changed = copy.copy(node)
            setattr(changed, "attr" if isinstance(node, ast.Attribute) else "id", NAMES[name])
            yield node, "name", ast.unparse(changed)
        yield from self.children(node)

    def call(self, node: ast.Call) -> Iterator[tuple[ast.AST, str, str]]:
        name = _called(node)
        plain = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_module = owner is None or _is_module(owner)
        is_ours = isinstance(owner, ast.Name) and owner.id == "self"
        # What moves a tensor to where it is on the only device of these tests.
        is_move = name == "to" and [ast.unparse(argument).rpartition(".")[2] for argument in plain] == ["device"]
        if is_ours and any(part in name for part in DROPPED_MODULES) and plain:
            yield node, "call dropped", f"({ast.unparse(plain[0])})"
        elif name in DROPPED_CALLS and not (is_module or is_ours or is_move):
            yield node, "call dropped", f"({ast.unparse(owner)})"
        elif name in DROPPED_CALLS and is_module and plain:
            yield node, "call dropped", f"({ast.unparse(plain[0])})"
        variables = [isinstance(argument, (ast.Name, ast.Attribute)) for argument in node.args[:2]]
        if len(variables) == 2 and all(variables) and name not in SYMMETRIC_CALLS and not name[:1].isupper():
            changed = copy.copy(node)
            changed.args = [*node.args[1::-1], *node.args[2:]]
            yield node, "arguments exchanged", ast.unparse(changed)
        for index, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in SHAPE_ARGUMENTS | UNSEEN_ARGUMENTS:
                changed = copy.copy(node)
                changed.keywords = node.keywords[:index] + node.keywords[index + 1 :]
                yield node, f"argument {keyword.arg} dropped", ast.unparse(changed)

    def arguments(self, node: ast.Call) -> Iterator[tuple[ast.AST, str, str]]:
        """Faults within a call's arguments."""
        name = _called(node)
        yield from self.expression(node.func)
        is_layer = name[:1].isupper() and isinstance(node.func, ast.Attribute) and _is_module(node.func.value)
        for argument in () if is_layer else node.args:
            if not (name in SHAPE_CALLS and _is_number(argument)):
                yield from self.expression(argument)
        for keyword in node.keywords:
            if keyword.arg not in SHAPE_ARGUMENTS | UNSEEN_ARGUMENTS:
                yield from self.expression(keyword.value)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_number(node: ast.expr) -> bool:
    node = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Tuple) and all(map(_is_number, node.elts)))


def _other_constants(value: object) -> list[str]:
    if isinstance(value, bool):
        return [repr(not value)]
    if isinstance(value, int):
        return [repr(value + 1)]
    if isinstance(value, float):
        # Smaller ones only keep a division from failing.
        return ["1.0"] if value == 0 else [repr(2 * value)] if abs(value) > 1e-5 else []
    return []


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )


def _is_path(node: ast.BinOp) -> bool:
    """Whether `/` joins a path."""
    names = {
        getattr(part, "attr", getattr(part, "id", "")) for side in (node.left, node.right) for part in ast.walk(side)
    }
    return isinstance(node.op, ast.Div) and any(word in name.lower() for name in names for word in PATH_WORDS)


def _are_texts(node: ast.List | ast.Tuple) -> bool:
    """Whether these are names, or types, whose order mostly says nothing."""
    words = [
        element.value if isinstance(element, ast.Constant) else getattr(element, "attr", getattr(element, "id", None))
        for element in node.elts
    ]
    are_types = [isinstance(word, str) and word[:1].isupper() and not word.isupper() for word in words]
    are_texts = [isinstance(e, ast.Constant) and isinstance(e.value, str) for e in node.elts]
    return all(are_texts) or all(are_types)


def _is_module(node: ast.expr) -> bool:
    """Whether what stands before the dot is a module, whose function is called, and no value with a method."""
    if isinstance(node, ast.Attribute):
        return _is_module(node.value) and node.attr in ("nn", "functional", "linalg", "utils", "special", "random")
    return isinstance(node, ast.Name) and node.id in (
        "torch",
        "np",
        "nn",
        "F",
        "math",
        "init",
        "json",
        "yaml",
        "ndimage",
    )


def _is_super(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Call)
        and _called(node.func.value) == "super"
    )


def _is_comparison(node: ast.expr) -> bool:
    """Whether a condition has a fault of its own as an expression, which its negation would only repeat."""
    pairs = (ast.Is, ast.IsNot, ast.In, ast.NotIn, ast.Eq, ast.NotEq)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    return isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], pairs)


def _is_logging(node: ast.Call) -> bool:
    owner = node.func
    while isinstance(owner, ast.Attribute):
        if owner.attr in LOGGING:
            return True
        owner = owner.value
    return isinstance(owner, ast.Name) and owner.id in LOGGING


def _is_type(node: ast.expr) -> bool:
    """Whether a value is a type with parameters, such as `dict[str, Any]`."""
    kinds = ("dict", "list", "tuple", "set", "Callable", "Mapping", "Sequence", "Union", "Literal")
    return isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in kinds


def _is_type_checking(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"
