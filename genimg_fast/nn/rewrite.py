# SPDX-License-Identifier: MIT
"""Rewrites a method so that layers which it calls on each other's output run as one call; all else in it stays as it is.

``x = F.relu(self.bn(self.conv(x)))`` becomes ``x = _genimg_fast_run_in_turn((F.relu, self.bn, self.conv), x, ...)``,
which gives the same value whatever the three are when it runs.  So nothing is assumed of them, nor of the method's other
statements, and any control flow may stand around.  All expressions are evaluated once and in Python's own order, so that a
property may count, and an input change what is called on it; only the layers' calls wait for the last of them.

Two calls are joined where nobody but the second can see the result of the first: where one is the argument of the other, and
where the statement before assigns it to a local variable that is then overwritten or never read again.  A loop that does nothing
but ``x = layer(x)`` is such statements.
"""

from __future__ import annotations

import ast
import copy
import functools
import linecache
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from types import CodeType, FunctionType
from typing import NamedTuple

from genimg_fast.nn.layers import ACTIVATION_METHODS

RUN_IN_TURN = "_genimg_fast_run_in_turn"
"""The function that rewritten methods call.  It is a global of their file, since whoever holds such a method may call it when the
module is of its plain class again.

It takes the functions of nested calls from last to first; the input; the other arguments of each from first to last, where any
has some; and of each later statement the layer, or a list of both for its nested calls."""

HEAD, SEQUENTIAL, AFTER, BEFORE = "head", "sequential", "after", "before"
_ARGUMENT = "argument"
"""The role of what the method is given, as in ``def _upsample_conv(self, x, conv)``: any layer, or none.  It is joined with an
upsampling before it alone: of any other chain the source is to say what it is."""
RoleOf = Callable[[str], str | None]
"""Source of a layer, such as ``self.conv`` or ``(F.leaky_relu, (0.2,), {})``, to one of these; None for what is no layer.
Layers that a loop calls, such as ``*self.layers``, are a head where calls of them pay."""


class NotRewritableError(Exception):
    """The source of a function is not at hand, or is not what runs."""


class Rewritten(NamedTuple):
    function: FunctionType
    """With calls of layers joined."""
    chains: list[str]
    """Sources of those that it joins: each of a tuple of layers that feed each other, from first to last."""
    joins_argument: bool
    """Whether it joins what it is given with an upsampling before it; which layer that is, its source does not tell."""
    reads: set[str]
    """Attributes that it neither calls, nor calls a method of, nor merely tests, such as ``self.layers`` of
    ``enumerate(self.layers)``."""


def rewrite(function: FunctionType, role_of: RoleOf) -> Rewritten:
    """`function`, a method, with calls of layers joined.

    Raises:
        NotRewritableError: with the reason.
    """
    code = function.__code__
    tree = copy.deepcopy(_tree_of(function))
    definitions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _stands_at(node, code))
    definition = next(definitions, None)
    if definition is None:
        raise NotRewritableError("it is not a def")
    reads = _reads(definition)
    variables = _Variables(definition, code)
    finder = _Finder(variables, role_of)
    body = [finder.visit(statement) for statement in definition.body]
    writer = _Writer()
    definition.body = [writer.visit(statement) for statement in _inline(body, finder)]
    if not writer.chains:
        return Rewritten(function, [], False, reads)
    rewritten = _with_code(function, _compile(ast.fix_missing_locations(tree), code))
    return Rewritten(rewritten, writer.chains, writer.joins_argument, reads)


def _reads(definition: ast.FunctionDef) -> set[str]:
    nodes = list(ast.walk(definition))
    others: list[ast.expr] = []
    for node in nodes:
        if isinstance(node, ast.Call):
            others.append(node.func)
            if isinstance(node.func, ast.Attribute) and node.func.attr not in _ITERATING:
                others.append(node.func.value)
        elif isinstance(node, ast.Compare):
            others += [node.left, *node.comparators]
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            others.append(node.test)
        elif isinstance(node, ast.BoolOp):
            others += node.values
        elif isinstance(node, ast.UnaryOp):
            others.append(node.operand)
    apart = {id(node) for node in others}
    return {
        ast.unparse(node)
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in apart
    }


_ITERATING = ("children", "named_children", "modules", "named_modules", "items", "values", "__iter__")
"""Methods that hand out the layers of what they are called on."""


def _tree_of(function: FunctionType) -> ast.Module:
    """Of the file that the function was compiled from, what its code depends on."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not source:
        raise NotRewritableError("its source is not available")
    try:
        body = _parse(source).body
        # mostly its class: to copy and compile the whole of a large file takes seconds a model
        around = next(statement for statement in body if (statement.end_lineno or 0) >= code.co_firstlineno)
        tree = ast.Module([s for s in body if s is around or not isinstance(s, _WITHOUT_IMPORTS)], [])
        compiled = _compile(tree, code)
    except (SyntaxError, ValueError, StopIteration):
        compiled = None
    if compiled != code:  # the file has been edited since, or a decorator or an import hook made other code of it
        raise NotRewritableError("its source is not what runs")
    return tree


_parse = functools.lru_cache(maxsize=32)(ast.parse)


# `f` in `f.relu(x)` compiles to other code where the file imports it.
_WITHOUT_IMPORTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr)


def _compile(tree: ast.Module, wanted: CodeType) -> CodeType:
    """The code of the function that stands where `wanted` stands in the source."""

    def search(outer: CodeType):
        for code in outer.co_consts:
            if isinstance(code, CodeType):
                if (code.co_name, code.co_firstlineno) == (wanted.co_name, wanted.co_firstlineno):
                    yield code
                yield from search(code)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # which its first compilation gave
        return next(search(compile(tree, wanted.co_filename, "exec", dont_inherit=True)))


def _stands_at(definition: ast.FunctionDef, code: CodeType) -> bool:
    first_line = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    return (definition.name, first_line) == (code.co_name, code.co_firstlineno)


def _with_code(function: FunctionType, code: CodeType) -> FunctionType:
    assert code.co_freevars == function.__code__.co_freevars
    twin = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(twin, function)
    del twin.__wrapped__  # type: ignore[attr-defined]
    return twin


class _Variables:
    """Of one function: which there are, and who sees them."""

    def __init__(self, definition: ast.FunctionDef, code: CodeType):
        self.self_name = code.co_varnames[0]
        self.arguments = {node.arg for node in ast.walk(definition.args) if isinstance(node, ast.arg)}
        self.local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        names = [node for node in ast.walk(definition) if isinstance(node, ast.Name)]
        self.reads = Counter(name.id for name in names if isinstance(name.ctx, ast.Load))
        self.writes = Counter(name.id for name in names if not isinstance(name.ctx, ast.Load))
        self.deleted = {name.id for name in names if isinstance(name.ctx, ast.Del)}
        loops = [node for node in ast.walk(definition) if isinstance(node, ast.For)]
        self.loops = Counter(ast.unparse(loop.target) for loop in loops)
        self.loops_in_their_own = {
            ast.unparse(loop.target)
            for loop in loops
            for s in loop.body
            for node in ast.walk(s)
            if isinstance(node, ast.For) and ast.unparse(node.target) == ast.unparse(loop.target)
        }
        bodies = [(ast.unparse(loop.target), node) for loop in loops for s in loop.body for node in ast.walk(s)]
        self.reads_in_loops = Counter(
            name
            for name, node in bodies
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
        )
        self.seen_by_others = {*code.co_cellvars, *code.co_freevars, self.self_name}
        if self.reads.keys() & {"locals", "vars", "eval", "exec"}:
            self.seen_by_others = self.local
        self.keeps_self = not self.writes[self.self_name]
        self.constant_arguments = {name for name in self.arguments - self.seen_by_others if not self.writes[name]}

    def is_gone(self, name: str, after: ast.stmt, inside: int = 0) -> bool:
        """Whether nobody sees the value of this local variable once the statement, which reads it once, has run.

        Args:
            inside: how often a statement that will be part of this one reads and writes it.
        """
        if name not in self.local or name in self.seen_by_others:
            return False
        if isinstance(after, ast.Return) or _assigned_name(after) == name:
            return True
        return name not in self.arguments and self.reads[name] == self.writes[name] == 1 + inside

    def is_of_loops(self, name: str) -> bool:
        """Whether a variable is set by loops alone, and read within them alone."""
        if name in self.loops_in_their_own:
            return False
        return self.writes[name] == self.loops[name] and self.reads[name] == self.reads_in_loops[name]

    def may_move(self, expression: ast.expr) -> bool:
        """Whether it can be evaluated before a layer's call: it is made of constants, globals and attributes of self."""
        nodes = list(ast.walk(expression))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        return (
            self.keeps_self
            and all(isinstance(node, _MOVABLE) and getattr(node, "attr", None) not in _WRITTEN for node in nodes)
            and not names & self.local - {self.self_name}
        )


_MOVABLE = (
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.Tuple, ast.Dict, ast.expr_context),
    *(ast.Slice, ast.UnaryOp, ast.unaryop, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop),
)
_WRITTEN = ("num_batches_tracked", "running_mean", "running_var")
"""Attributes that a layer's call changes."""


class _Layers(ast.expr):
    """In the tree in place of nested calls of layers, or of only one; and of those in the statements after it."""

    _fields = ("input",)

    def __init__(self, input: ast.expr, calls: ast.Call):
        super().__init__()
        self.functions: list[ast.expr] = []
        self.arguments: list[ast.expr] = []
        self.later: list[ast.expr] = []
        """Of later statements: what the call takes for each."""
        self.layers: list[ast.expr] = []
        """All of them, as the elements of a tuple."""
        self.roles: list[str] = []
        self.input = input
        self.calls = calls
        ast.copy_location(self, calls)

    def nested(self) -> list[ast.expr]:
        """What Python evaluates before the input, and what after it."""
        has_arguments = any(isinstance(arguments, ast.Tuple) for arguments in self.arguments)
        arguments = ast.Tuple(self.arguments, ast.Load()) if has_arguments else ast.Constant(None)
        return [ast.Tuple([*reversed(self.functions)], ast.Load()), arguments]


def _pays(roles: list[str]) -> bool:
    """Whether layers with these roles are worth one call."""
    pairs = set(pairwise(roles))
    return HEAD in roles or roles.count(SEQUENTIAL) > 1 or bool(pairs & {(BEFORE, SEQUENTIAL), (BEFORE, _ARGUMENT)})


def _may_feed(before: list[str], after: list[str]) -> bool:
    """Whether layers with these roles may be joined: an argument with an upsampling before it alone."""
    return before[0] != _ARGUMENT and (after[0] != _ARGUMENT or before[-1] == BEFORE)


class _Finder(ast.NodeTransformer):
    """Puts `_Layers` in place of the calls of layers."""

    def __init__(self, variables: _Variables, role_of: RoleOf):
        self.variables, self.role_of = variables, role_of

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function, arguments = _function_and_arguments(node)
        role = self.role(function, arguments) if function is not None else None
        if function is None or role is None:
            return self.generic_visit(node)
        is_method = not node.args
        input = self.visit(node.func.value if is_method else node.args[0])  # type: ignore[attr-defined]
        if not isinstance(input, _Layers) or not _may_feed(input.roles, [role]):
            if is_method:
                node.func.value = input  # type: ignore[attr-defined]
            else:
                node.args[0] = input
            input = _Layers(input, node)
        input.functions.append(function)
        input.arguments.append(arguments)
        input.layers.append(_layer_of(function, arguments))
        input.roles.append(role)
        input.calls = node
        return input

    def role(self, function: ast.expr, arguments: ast.expr) -> str | None:
        layer = _layer_of(function, arguments)
        if isinstance(layer, ast.Name) and layer.id in self.variables.constant_arguments:
            return _ARGUMENT
        return self.role_of(ast.unparse(layer)) if self.variables.may_move(layer) else None

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node  # whose variables are its own

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda  # type: ignore[assignment]  # noqa: N815


def _function_and_arguments(call: ast.Call) -> tuple[ast.expr | None, ast.expr]:
    """What is called on the first argument, and what with: (args, kwargs), or None.  No function where it can be no layer."""
    nothing = ast.Constant(None)
    more = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    if not call.args and not more and isinstance(call.func, ast.Attribute) and call.func.attr in ACTIVATION_METHODS:
        return ast.Constant(call.func.attr), nothing
    if not call.args or isinstance(call.args[0], ast.Starred) or any(k.arg is None for k in call.keywords):
        return None, nothing
    names: list[ast.expr | None] = [ast.Constant(keyword.arg) for keyword in call.keywords]
    kwargs = ast.Dict(names, [keyword.value for keyword in call.keywords])
    return call.func, ast.Tuple([ast.Tuple(call.args[1:], ast.Load()), kwargs], ast.Load()) if more else nothing


def _layer_of(function: ast.expr, arguments: ast.expr) -> ast.expr:
    """The layer as one expression: with arguments the fields of `layers.Call`."""
    return ast.Tuple([function, *arguments.elts], ast.Load()) if isinstance(arguments, ast.Tuple) else function


def _inline(body: list[ast.stmt], finder: _Finder) -> list[ast.stmt]:
    """`h = f(x)` and `y = g(h)` as `y = g(f(x))`, where both are layers and nobody else sees `h`."""
    result: list[ast.stmt] = []
    for statement in body:
        # not in `try` and `with`, which may go on after an error with what was assigned before it
        if isinstance(statement, ast.For):
            statement = _unroll(statement, finder) or statement
        if isinstance(statement, (ast.If, ast.For, ast.While)):
            statement.body, statement.orelse = _inline(statement.body, finder), _inline(statement.orelse, finder)
        result.append(statement)
        while len(result) > 1:  # such as an upsampling, which waits for what comes after the padding after it
            inlined = _inline_pair(result[-2], result[-1], finder.variables, set(map(_assigned_name, result[:-2])))
            if inlined is None:
                break
            result[-2:] = [inlined]
    return result


def _unroll(loop: ast.For, finder: _Finder) -> ast.stmt | None:
    """`for f in self.layers: x = f(x)` as `x = self.layers[-1](...self.layers[0](x))`, where nobody else sees `f`.

    Or with `x = F.relu(f(x))`.
    """
    variables, statement = finder.variables, loop.body[0]
    name = _assigned_name(statement)
    if name is None or len(loop.body) > 1 or loop.orelse or not isinstance(loop.target, ast.Name):
        return None
    layer, value = loop.target.id, statement.value  # type: ignore[attr-defined]
    after = value.layers if isinstance(value, _Layers) else []
    call = value.input if isinstance(value, _Layers) else value
    if not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
        return None
    if not _is_name(call.func, layer) or not _is_name(call.args[0], name):
        return None
    if name == layer or not variables.is_of_loops(layer) or not variables.may_move(loop.iter):
        return None
    if not {name, layer} <= variables.local - variables.seen_by_others:
        return None
    role = finder.role_of(f"*{ast.unparse(loop.iter)}")
    if role is None:
        return None
    joined = _Layers(call.args[0], call)
    layers = ast.Starred(_each(loop, after), ast.Load())
    joined.later, joined.layers, joined.roles = [layers], [layers], [role]
    statement.value = joined  # type: ignore[attr-defined]
    return statement


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _each(loop: ast.For, after: list[ast.expr]) -> ast.expr:
    """What the loop runs over; with layers after each, `[each for f in self.layers for each in (f, F.relu)]`."""
    if not after:
        return loop.iter
    assert isinstance(loop.target, ast.Name)
    together = ast.Tuple([ast.Name(loop.target.id, ast.Load()), *after], ast.Load())
    loops = [(loop.target, loop.iter), (ast.Name(_EACH, ast.Store()), together)]
    return ast.ListComp(ast.Name(_EACH, ast.Load()), [ast.comprehension(target, over, [], 0) for target, over in loops])


_EACH = "_genimg_fast_each"  # which the layers after each do not mention


def _inline_pair(
    first: ast.stmt, second: ast.stmt, variables: _Variables, assigned: set[str | None]
) -> ast.stmt | None:
    """Both as one statement; None where they stay two.

    Args:
        assigned: the variables that statements before the first one assign.
    """
    conditional = isinstance(first, ast.If)
    first = _as_assignment(first, variables, assigned)
    name = _assigned_name(first)
    condition = None
    if (
        isinstance(second, ast.If) and len(second.body) == 1 and not second.orelse
    ):  # such as `if self.bn: x = self.bn(x)`
        condition, second = second.test, second.body[0]
        if _assigned_name(second) != name or not variables.may_move(condition):
            return None
    if name is None or not (isinstance(second, ast.Return) or _assigned_name(second)):
        return None
    before, after = first.value, second.value  # type: ignore[attr-defined]
    if not (isinstance(before, _Layers) and isinstance(after, _Layers) and set(before.roles) != {AFTER}):
        return None
    if not _may_feed(before.roles, after.roles):
        return None
    inside = 1 if conditional and name in assigned else 0
    if not (_is_name(after.input, name) and variables.is_gone(name, second, inside)):
        return None
    if _asks(before, [*([] if condition is None else [condition]), *after.layers]):
        return None
    if not _pays([*before.roles, *after.roles]):
        return None
    layers = after.layers
    later = [*_as_later(after), *after.later]
    if condition is not None:
        layers, later = [_chosen(condition, layers)], [_chosen(condition, later)]
    before.layers += layers
    before.later += later
    before.roles += after.roles
    before.calls = after.calls
    second.value = ast.copy_location(before, after)  # type: ignore[attr-defined]
    return second


def _asks(layers: _Layers, expressions: list[ast.expr]) -> bool:
    """Whether an expression reads what a call of these layers may set: an attribute of one of them."""
    sources = {ast.unparse(layer) for layer in layers.layers}
    return any(
        isinstance(node, ast.Attribute) and ast.unparse(node.value) in sources
        for expression in expressions
        for node in ast.walk(expression)
    )


def _as_assignment(statement: ast.stmt, variables: _Variables, assigned: set[str | None]) -> ast.stmt:
    """`if self.up: x = self.up(x)` as the assignment of a call of layers, or of none; others as they are."""
    if not (isinstance(statement, ast.If) and len(statement.body) == 1 and not statement.orelse):
        return statement
    (inside,) = statement.body
    name = _assigned_name(inside)
    if name is None or not variables.may_move(statement.test) or name in variables.deleted:
        return statement
    if name not in variables.arguments and name not in assigned:  # it may have no value, where the condition is false
        return statement
    layers = inside.value  # type: ignore[attr-defined]
    if not (isinstance(layers, _Layers) and _is_name(layers.input, name)):
        return statement
    perhaps = _Layers(layers.input, layers.calls)
    perhaps.later = [_chosen(statement.test, [*_as_later(layers), *layers.later])]
    perhaps.layers, perhaps.roles = [_chosen(statement.test, layers.layers)], layers.roles
    assignment = copy.copy(inside)
    assignment.value = ast.copy_location(perhaps, layers)  # type: ignore[attr-defined]
    return assignment


def _as_later(layers: _Layers) -> list[ast.expr]:
    """Of nested calls: what the call takes for those of a later statement."""
    if not layers.functions:
        return []
    return [layers.layers[0] if len(layers.functions) == 1 else ast.List(layers.nested(), ast.Load())]


def _chosen(condition: ast.expr, elements: list[ast.expr]) -> ast.expr:
    """The elements of a tuple, or none of them."""
    chosen = ast.IfExp(condition, ast.Tuple(elements, ast.Load()), ast.Tuple([], ast.Load()))
    return ast.Starred(chosen, ast.Load())


def _assigned_name(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None


class _Writer(ast.NodeTransformer):
    """Writes `_Layers` as one call where that fuses something, else as the calls they were."""

    def __init__(self) -> None:
        self.chains: list[str] = []
        self.joins_argument = False

    def visit__Layers(self, node: _Layers) -> ast.AST:
        if not _pays(node.roles):
            return self.generic_visit(node.calls)
        self.chains.append(ast.unparse(ast.Tuple(node.layers, ast.Load())))
        self.joins_argument = self.joins_argument or (BEFORE, _ARGUMENT) in pairwise(node.roles)
        run_in_turn = ast.Name(RUN_IN_TURN, ast.Load())
        functions, arguments = node.nested()
        call = ast.Call(run_in_turn, [functions, self.visit(node.input), arguments, *node.later], [])
        return ast.copy_location(call, node)
