"""An adapter as a program of a few operations, and the formats it is written in.

Readers need these operations only: ``docs/export.md`` has them in JavaScript. Formats that know
fewer refuse an adapter that needs more, and say which formats can.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
from numpy.typing import ArrayLike

from ..core import files
from ..core.arrays import Role, Vectors
from ..errors import FolderError, OptionError, check_choice, require_extra

#: Of the ONNX graphs; onnxruntime reads it since 1.14.
OPSET = 18
_FORMAT = 1  # of JSON
_MOST_DIMENSIONS = 16_000  # of a vector in PostgreSQL
_SMALLEST_EXPONENT = -80  # exp of less is an error there, and nothing beside 1 anywhere

#: Result, operation, and arguments: names of values and weights, or a number.
Step = list[Any]


@dataclass
class Program:
    """What an adapter does to one vector ``v0``, step by step.

    Operations: ``linear`` (``W x + b``), ``normalize`` (to length 1; zero stays), ``add``, ``sub``
    and ``mul`` (of vectors, or a vector and one number), ``relu``, ``leaky_relu`` (slope .01),
    ``tanh``, ``sigmoid``, ``exp``, ``clip`` (``x``, lowest, highest), ``concat``; and to one
    number: ``max``, ``log_sum_exp``, ``mean_top`` (of the ``k`` largest).
    """

    input_dim: int
    weights: dict[str, Vectors] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    output: str = "v0"

    def __post_init__(self) -> None:
        self.dims = {"v0": self.input_dim}

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
        rows = len(np.asarray(weight))
        names = self.weight(weight), self.weight(np.zeros(rows) if bias is None else bias)
        return self.apply("linear", vector, *names, dim=rows)


def format_of(path: Path) -> str:
    """Return the format that a file's ending names, of other endings ``"onnx"``."""
    ending = path.suffix.lower().lstrip(".")
    return "numpy" if ending == "npz" else ending if ending in _FILES else "onnx"


def export(
    write_down: Callable[[Role], Program],
    path: Path,
    format: str | None,
    *,
    role: Role,
    base: object,
) -> Path:
    """Write an adapter in one of :data:`FORMATS`, None: by ending; see :meth:`Adapter.export`."""
    format = format_of(path) if format is None else format
    check_choice("format", format, FORMATS)
    check_choice("role", role, get_args(Role))
    if format == "sentence-transformers":
        _write_folder(write_down, path, base)
        return path
    if path.suffix == "":
        raise OptionError(f"{path}: expected the name of a file, such as {path}.{format}.")
    files.check_target(path, error=OptionError)
    data = _FILES[format](write_down(role), path)
    with files.atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return path


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


def _numbers(array: Any) -> Any:
    """Return nested lists, with as many digits as float32 has."""
    return [_numbers(row) for row in array] if np.ndim(array) else float(f"{array:.9g}")


def _numpy(program: Program, path: Path) -> bytes:
    """Fold what is ``normalise(W q + b)``, refuse the rest."""
    weight, bias, normalized = np.eye(program.input_dim), np.zeros(program.input_dim), 0
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


#: Operation → node, its attributes, and constants that follow its arguments.
_NODES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "linear": ("Gemm", {"transB": 1}, ()),
    "normalize": ("LpNormalization", {"axis": 1, "p": 2}, ()),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}, ()),
    "max": ("ReduceMax", {"keepdims": 1}, ("axis",)),
    "log_sum_exp": ("ReduceLogSumExp", {"keepdims": 1}, ("axis",)),
    "concat": ("Concat", {"axis": 1}, ()),
    **{n.lower(): (n, {}, ()) for n in ("Add", "Sub", "Mul", "Relu", "Tanh", "Sigmoid", "Exp")},
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
    dims = {"vectors": program.input_dim, "adapted": program.dims[program.output]}
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    ends = [[value(name, kind, ["batch", dim])] for name, dim in dims.items()]
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "adapter", *ends, arrays)
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


#: Operation → expression of each element ``e``.
_EACH = {
    "relu": "greatest(e, 0)",
    "leaky_relu": "greatest(e, 0.01 * e)",
    "tanh": "tanh(e)",
    "sigmoid": "0.5 + 0.5 * tanh(0.5 * e)",
    "exp": f"exp(greatest(e, {_SMALLEST_EXPONENT}))",
}
_ELEMENTS = "unnest({0}::real[]) with ordinality as u(e, i)"
_LARGEST = "(select max(m) from unnest({0}::real[]) m)"
#: Operation → expression of its arguments: a vector ``{0}``, and values, tables or a number.
_EXPRESSIONS = {
    "linear": "(select array_agg(b - (w <#> {0}) order by i)::vector from {1})",
    "normalize": "l2_normalize({0})",
    "max": f"(select array[max(e)]::vector from {_ELEMENTS})",
    "mean_top": "(select array[avg(e)]::vector from "
    f"(select e from {_ELEMENTS} order by e desc limit {{1}}) t)",
    "log_sum_exp": f"(select array[{_LARGEST} + "
    f"ln(sum({_EACH['exp'].replace('greatest(e', f'greatest(e - {_LARGEST}')}))]::vector "
    f"from {_ELEMENTS})",
    "clip": "(select array_agg(least(greatest(e, l), h) order by i)::vector from "
    "unnest({0}::real[], {1}, {2}) with ordinality as u(e, l, h, i))",
    **{name: f"{{0}} {sign} {{1}}" for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"))},
    **{
        name: f"(select array_agg({each} order by i)::vector from {_ELEMENTS})"
        for name, each in _EACH.items()
    },
}


def _sql(program: Program, path: Path) -> bytes:
    name = re.sub(r"\W", "_", path.stem.lower(), flags=re.ASCII)
    name = name if name[:1].isalpha() else f"adapter_{name}"
    if max(program.dims.values()) > _MOST_DIMENSIONS:
        raise OptionError(
            f"{path}: PostgreSQL's vectors have at most {_MOST_DIMENSIONS:,} dimensions, and this "
            f'adapter needs {max(program.dims.values()):,}; "onnx" and "json" have no limit.'
        )
    tables = [line for step in program.steps for line in _table(name, program, *step)]
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


def _table(name: str, program: Program, _: str, operation: str, *arguments: Any) -> Iterator[str]:
    """Yield statements that make a table with a row of the matrix and an offset per row."""
    if operation == "linear":
        table = f"{name}_{arguments[1]}"
        matrix, bias = (program.weights[each] for each in arguments[1:])
        yield f"drop table if exists {table};"
        yield f"create table {table} (i integer primary key, w vector({matrix.shape[1]}), b real);"
        for row, (values, offset) in enumerate(zip(matrix, bias, strict=True)):
            yield f"insert into {table} values ({row}, '[{_listed(values)}]', {offset:.9g});"


def _listed(values: Vectors) -> str:
    return ",".join(f"{value:.9g}" for value in values)


def _expression(name: str, program: Program, step: Step) -> str:
    _, operation, first, *others = step
    if operation == "concat":
        return f"({' || '.join(f'{each}::real[]' for each in (first, *others))})::vector"
    if operation == "linear":
        others = [f"{name}_{others[0]}"]
    elif operation == "clip":
        others = [_constant(program.weights[each]) for each in others]
    elif operation in ("add", "sub", "mul"):
        others = [_as_long(program, others[0], first)]
    return _EXPRESSIONS[operation].format(first, *others)


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


_TORCH = {"relu": "ReLU", "leaky_relu": "LeakyReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def _write_folder(write_down: Callable[[Role], Program], path: Path, base: object) -> None:
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
    programs = write_down("query"), write_down("document")
    routes = [[*shared, *_modules(program, path, kinds)] for program in programs]
    prompts = {
        "query": model.prompts.get("query", ""),
        "document": model.prompts.get("text") or model.prompts.get("document", ""),
    }
    router = kinds.Router.for_query_document(*routes)
    settings = {"prompts": prompts, "device": str(model.device), "similarity_fn_name": "cosine"}
    whole = library.SentenceTransformer(modules=[router], **settings)
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


Writer = Callable[[Program, Path], bytes]
_FILES: dict[str, Writer] = {"onnx": _onnx, "json": _json, "numpy": _numpy, "sql": _sql}
FORMATS = (*_FILES, "sentence-transformers")
