"""An adapter as a program of a few operations, and the formats it is written in.

Readers need these operations only: ``docs/export.md`` has them in JavaScript. Formats that know
fewer refuse an adapter that needs more, and say which formats can.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ..core import files
from ..core.arrays import Role, Vectors
from ..errors import FolderError, OptionError, require_extra

#: Of the ONNX graphs; onnxruntime reads it since 1.14.
OPSET = 18
_FORMAT = 1  # of JSON
_MOST_DIMENSIONS = 16_000  # of a vector in PostgreSQL
_SMALLEST_EXPONENT = -80  # exp of less is an error there, and nothing beside 1 anywhere

#: Result, operation, and arguments: names of values and weights, or a number.
Step = list[Any]


class Traceable(Protocol):
    """What :class:`Program` asks of an adapter."""

    @property
    def adapts_documents(self) -> bool:
        """Whether documents are mapped at all."""
        ...

    def trace(self, program: Program, vector: str, role: Role) -> str:
        """Add the steps of the adapter to a program; return the name of the result."""
        ...


@dataclass
class Program:
    """What an adapter does to one vector ``v0``, step by step.

    Operations, with vectors ``x`` and ``y``: ``linear`` (``W x + b``), ``normalize`` (to length
    1; a zero vector stays), ``add``, ``sub`` and ``mul`` (of a vector and a vector, or one number),
    ``relu``, ``leaky_relu`` (slope .01), ``tanh``, ``sigmoid``, ``exp``, ``clip`` (``x``, lowest,
    highest), ``concat``; and to one number: ``max``, ``log_sum_exp``, ``mean_top`` (of the ``k``
    largest).
    """

    input_dim: int
    weights: dict[str, Vectors] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    dims: dict[str, int] = field(default_factory=dict)
    output: str = "v0"

    @classmethod
    def of(cls, adapter: Traceable, input_dim: int, role: Role) -> Program:
        """Write down what an adapter does in one role."""
        program = cls(input_dim, dims={"v0": input_dim})
        program.output = program.through(adapter, "v0", role)
        return program

    def through(self, adapter: Traceable, vector: str, role: Role) -> str:
        """Pass a vector through an adapter; documents, if it adapts them."""
        if role == "document" and not adapter.adapts_documents:
            return vector
        return adapter.trace(self, vector, role)

    def weight(self, values: ArrayLike) -> str:
        """Add a constant; return its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(values, dtype=np.float32)
        return name

    def apply(self, operation: str, *arguments: str | int, dim: int | None = None) -> str:
        """Add a step whose result is as long as its first argument, or ``dim``; return its name."""
        name = f"v{len(self.steps) + 1}"
        self.steps.append([name, operation, *arguments])
        self.dims[name] = self.dims[str(arguments[0])] if dim is None else dim
        return name

    def linear(self, vector: str, weight: ArrayLike, bias: ArrayLike | None = None) -> str:
        """Add ``W x + b``."""
        matrix = np.asarray(weight, dtype=np.float32)
        offset = np.zeros(len(matrix)) if bias is None else bias
        names = self.weight(matrix), self.weight(offset)
        return self.apply("linear", vector, *names, dim=len(matrix))


def export(
    adapter: Traceable, path: Path, format: str, *, input_dim: int, role: Role, base: object
) -> None:
    """Write an adapter in one of :data:`FORMATS`; see :meth:`Adapter.export`."""
    if format not in FORMATS:
        raise OptionError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    if role not in ("query", "document"):
        raise OptionError(f'role: expected "query" or "document", got {role!r}.')
    if format == "sentence-transformers":
        _write_folder(adapter, path, input_dim, base)
        return
    if path.suffix == "":
        raise OptionError(f"{path}: expected the name of a file, such as {path}.{format}.")
    files.check_target(path, error=OptionError)
    program = Program.of(adapter, input_dim, role)
    data = _FILES[format](program, path)
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(data)


def _refuse(path: Path, format: str, holds: str) -> NoReturn:
    raise OptionError(
        f'{path}: "{format}" holds {holds} only, and this adapter is more; "onnx", "json" and '
        '"sql" hold every adapter.'
    )


def _json(program: Program, path: Path) -> bytes:
    data = {
        "format": _FORMAT,
        "input_dim": program.input_dim,
        "output_dim": program.dims[program.output],
        "weights": {name: _numbers(array) for name, array in program.weights.items()},
        "steps": program.steps,
        "output": program.output,
    }
    return json.dumps(data, separators=(",", ":")).encode()


def _numbers(array: Vectors) -> list[Any]:
    """Return nested lists, with as many digits as float32 has."""
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [float(f"{value:.9g}") for value in array]


def _numpy(program: Program, path: Path) -> bytes:
    """Fold what is ``normalise(W q + b)``, refuse the rest."""
    import io

    weight, bias = np.eye(program.input_dim), np.zeros(program.input_dim)
    normalized = 0
    for _, operation, *arguments in program.steps:
        if operation == "linear" and not normalized:
            matrix, offset = (program.weights[name].astype(np.float64) for name in arguments[1:])
            weight, bias = matrix @ weight, matrix @ bias + offset
        elif operation == "normalize":
            normalized = 1
        else:
            _refuse(path, "numpy", "normalise(W q + b)")
    buffer = io.BytesIO()
    arrays = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    np.savez(buffer, **arrays, normalize=np.int64(normalized))  # type: ignore[arg-type]
    return buffer.getvalue()


# --- ONNX -----------------------------------------------------------------------------------------
#: Operation → node, its attributes, and constants that follow its arguments.
_NODES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "linear": ("Gemm", {"transB": 1}, ()),
    "normalize": ("LpNormalization", {"axis": 1, "p": 2}, ()),
    "add": ("Add", {}, ()),
    "sub": ("Sub", {}, ()),
    "mul": ("Mul", {}, ()),
    "relu": ("Relu", {}, ()),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}, ()),
    "tanh": ("Tanh", {}, ()),
    "sigmoid": ("Sigmoid", {}, ()),
    "exp": ("Exp", {}, ()),
    "max": ("ReduceMax", {"keepdims": 1}, ("axis",)),
    "log_sum_exp": ("ReduceLogSumExp", {"keepdims": 1}, ("axis",)),
    "concat": ("Concat", {"axis": 1}, ()),
}


def _onnx(program: Program, path: Path) -> bytes:
    onnx = require_extra("onnx", extra="onnx")
    make = onnx.helper.make_node
    constants = dict(program.weights)
    nodes = [make("Identity", ["vectors"], ["v0"])]
    for name, operation, *arguments in program.steps:
        if operation == "mean_top":
            value, count = arguments
            constants |= {"axis": np.array([1]), f"{name}_k": np.array([count])}
            nodes.append(make("TopK", [value, f"{name}_k"], [f"{name}_top", f"{name}_at"], axis=1))
            nodes.append(make("ReduceMean", [f"{name}_top", "axis"], [name], keepdims=1))
        elif operation == "clip":
            value, low, high = arguments
            nodes.append(make("Max", [value, low], [f"{name}_low"]))
            nodes.append(make("Min", [f"{name}_low", high], [name]))
        else:
            kind, attributes, more = _NODES[operation]
            constants |= {each: np.array([1]) for each in more}
            nodes.append(make(kind, [*arguments, *more], [name], **attributes))
    nodes.append(make("Identity", [program.output], ["adapted"]))
    graph = onnx.helper.make_graph(
        nodes,
        "adapter",
        [_tensor(onnx, "vectors", program.input_dim)],
        [_tensor(onnx, "adapted", program.dims[program.output])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _tensor(onnx: Any, name: str, dim: int) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", dim])


# --- PostgreSQL -----------------------------------------------------------------------------------
#: Operation → expression over arrays of numbers; ``e`` is an element, ``{0}`` an argument.
_EACH = {
    "relu": "greatest(e, 0)",
    "leaky_relu": "greatest(e, 0.01 * e)",
    "tanh": "tanh(e)",
    "sigmoid": "0.5 + 0.5 * tanh(0.5 * e)",
    "exp": f"exp(greatest(e, {_SMALLEST_EXPONENT}))",
}
_SIGNS = {"add": "+", "sub": "-", "mul": "*"}


def _sql(program: Program, path: Path) -> bytes:
    name = re.sub(r"\W", "_", path.stem.lower(), flags=re.ASCII)
    name = name if name[:1].isalpha() else f"adapter_{name}"
    if max(program.dims.values()) > _MOST_DIMENSIONS:
        raise OptionError(
            f"{path}: PostgreSQL's vectors have at most {_MOST_DIMENSIONS:,} dimensions, and this "
            f'adapter needs {max(program.dims.values()):,}; "onnx" and "json" have no limit.'
        )
    tables = [
        line
        for _, operation, *arguments in program.steps
        if operation == "linear"
        for line in _table(name, arguments[1], *(program.weights[each] for each in arguments[1:]))
    ]
    body = [f"  {step[0]} := {_expression(name, program, step)};" for step in program.steps]
    lines = [
        "begin;",
        *tables,
        f"create or replace function {name}(v0 vector) returns vector",
        "language plpgsql stable strict parallel safe as $$",
        *(["declare", *(f"  {step[0]} vector;" for step in program.steps)] if body else []),
        "begin",
        f"  if vector_dims(v0) <> {program.input_dim} then",
        f"    raise 'expected {program.input_dim} dimensions, got %', vector_dims(v0);",
        "  end if;",
        *body,
        f"  return {program.output};",
        "end $$;",
        "commit;",
    ]
    return ("\n".join(lines) + "\n").encode()


def _table(name: str, weight: str, matrix: Vectors, bias: Vectors) -> Iterator[str]:
    """Yield statements that make a table with a row of the matrix and an offset per row."""
    table = f"{name}_{weight}"
    yield f"drop table if exists {table};"
    yield f"create table {table} (i integer primary key, w vector({matrix.shape[1]}), b real);"
    for row, (values, offset) in enumerate(zip(matrix, bias, strict=True)):
        yield f"insert into {table} values ({row}, '[{_listed(values)}]', {offset:.9g});"


def _listed(values: Vectors) -> str:
    return ",".join(f"{value:.9g}" for value in values)


def _expression(name: str, program: Program, step: Step) -> str:
    _, operation, *arguments = step
    first = str(arguments[0])
    elements = f"unnest({first}::real[]) with ordinality as u(e, i)"
    if operation == "linear":
        table = f"{name}_{arguments[1]}"
        return f"(select array_agg(b - (w <#> {first}) order by i)::vector from {table})"
    if operation == "normalize":
        return f"l2_normalize({first})"
    if operation in _EACH:
        return f"(select array_agg({_EACH[operation]} order by i)::vector from {elements})"
    if operation in _SIGNS:
        return f"{first} {_SIGNS[operation]} {_as_long(program, arguments[1], first)}"
    if operation == "max":
        return f"(select array[max(e)]::vector from {elements})"
    if operation == "mean_top":
        top = f"select e from {elements} order by e desc limit {arguments[1]}"
        return f"(select array[avg(e)]::vector from ({top}) t)"
    if operation == "log_sum_exp":
        top = f"(select max(m) from unnest({first}::real[]) m)"
        total = f"sum({_EACH['exp'].replace('greatest(e', f'greatest(e - {top}')})"
        return f"(select array[{top} + ln({total})]::vector from {elements})"
    if operation == "concat":
        parts = " || ".join(f"{each}::real[]" for each in arguments)
        return f"({parts})::vector"
    low, high = (_constant(program.weights[each]) for each in arguments[1:])  # clip
    bounded = "array_agg(least(greatest(e, l), h) order by i)::vector"
    several = f"unnest({first}::real[], {low}, {high}) with ordinality as u(e, l, h, i)"
    return f"(select {bounded} from {several})"


def _as_long(program: Program, value: str, other: str) -> str:
    """Return a value, one number repeated to the length of another value."""
    weight, dim = program.weights.get(value), program.dims[other]
    text = value if weight is None else f"{_constant(weight)}::vector"
    size = program.dims[value] if weight is None else len(weight)
    if size == dim:
        return text
    return f"array_fill((({text})::real[])[1], array[{dim}])::vector"


def _constant(weight: Vectors) -> str:
    return f"'{{{_listed(weight)}}}'::real[]"


# --- sentence-transformers ------------------------------------------------------------------------
_TORCH = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def _write_folder(adapter: Traceable, path: Path, input_dim: int, base: object) -> None:
    """Write a model that takes queries and documents through different modules."""
    library = require_extra("sentence_transformers", extra="composed")
    model = getattr(base, "_model", base)
    if not isinstance(model, library.SentenceTransformer):
        raise OptionError(
            'base: "sentence-transformers" needs the base model, a HuggingFaceEmbedding or a '
            f"SentenceTransformer, got {type(base).__name__}."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FolderError(f"{path}: expected a new or empty folder.")
    kinds = library.sentence_transformer.modules
    shared = list(model)
    if getattr(base, "normalize", False) and not isinstance(shared[-1], kinds.Normalize):
        shared.append(kinds.Normalize())
    routes = []
    for role in ("query", "document"):
        program = Program.of(adapter, input_dim, role)
        routes.append([*shared, *_modules(program, path, kinds)])
    prompts = {
        "query": model.prompts.get("query", ""),
        "document": model.prompts.get("text") or model.prompts.get("document", ""),
    }
    router = kinds.Router.for_query_document(*routes)
    whole = library.SentenceTransformer(
        modules=[router], prompts=prompts, device=str(model.device), similarity_fn_name="cosine"
    )
    with files.atomic_folder(path) as temporary:
        whole.save_pretrained(str(temporary), create_model_card=False)


def _modules(program: Program, path: Path, kinds: Any) -> list[Any]:
    import torch

    found: list[Any] = []
    before = "v0"
    for name, operation, *arguments in program.steps:
        if arguments[0] != before or operation not in ("linear", "normalize", *_TORCH):
            _refuse(path, "sentence-transformers", "layers in a row")
        if operation == "linear":
            weight, bias = (torch.tensor(program.weights[each]) for each in arguments[1:])
            out, into = weight.shape
            found.append(kinds.Dense(into, out, True, None, weight, bias))
        elif operation == "normalize":
            found.append(kinds.Normalize())
        else:
            found[-1].activation_function = getattr(torch.nn, _TORCH[operation])()
        before = name
    return found


_FILES: dict[str, Callable[[Program, Path], bytes]] = {
    "onnx": _onnx,
    "json": _json,
    "numpy": _numpy,
    "sql": _sql,
}
FORMATS = (*_FILES, "sentence-transformers")
