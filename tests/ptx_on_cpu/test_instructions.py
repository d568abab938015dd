# SPDX-License-Identifier: MIT
"""Each group of instructions, in a kernel written by hand, against NumPy.  The matrix instructions, asynchronous copies
and barriers are tested by the kernels of tests/cuda_on_cpu: test_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cuda_on_cpu.memory import decode, encode

# Thread t computes d of a, b and c, its row of `in`.
KERNEL = """
.version 9.0
.target sm_90a
.address_size 64
.visible .entry instruction(.param .u64 in, .param .u64 out)
{{
  .reg .b32 %r<4>;
  .reg .b64 %rd<6>;
  .reg .pred p, q;
  .reg .{operand} a, b, c;
  .reg .{result} d, e;
  ld.param.u64 %rd1, [in];
  ld.param.u64 %rd2, [out];
  griddepcontrol.wait;
  mov.u32 %r1, %tid.x;
  mad.wide.u32 %rd3, %r1, 24, %rd1;
  mad.wide.u32 %rd4, %r1, 8, %rd2;
  ld.global.{operand} a, [%rd3];
  ld.global.{operand} b, [%rd3+8];
  ld.global.{operand} c, [%rd3+16];
  {body}
  st.global.{result} [%rd4], d;
  ret;
}}
"""

DTYPES = {
    "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "b32": np.uint32, "u64": np.uint64,
    "s64": np.int64, "f32": np.float32, "f64": np.float64, "b16": np.uint16, "b64": np.uint64,
}  # fmt: skip


def compute(kernels, tmp_path, operand: str, result: str, body: str, a, b=0, c=0) -> np.ndarray:
    """d of each row of operands."""
    path = tmp_path / "instruction.ptx"
    path.write_text(KERNEL.format(operand=operand, result=result, body=body))
    kernels.unload_ptx()
    kernels.load_ptx(str(path))
    columns = np.broadcast_arrays(*(np.asarray(v, DTYPES[operand]) for v in (a, b, c)))
    rows = np.zeros((columns[0].size, 3), np.uint64)
    for i, column in enumerate(columns):
        rows[:, i] = column.ravel().view(f"u{column.itemsize}")
    out = np.zeros(len(rows), np.uint64)
    for first in range(0, len(rows), 1024):
        part = np.zeros_like(out[first : first + 1024])
        kernels.run_ptx("instruction", len(part), 0, np.ascontiguousarray(rows[first : first + 1024]), part)
        out[first : first + 1024] = part
    dtype = np.dtype(DTYPES[result])
    return out.astype(f"u{dtype.itemsize}").view(dtype)


EDGES = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
]


def integers(kind: str) -> list[int]:
    """Edges and others, as Python integers."""
    bits = int(kind[1:])
    values = {v % 2**bits for v in [*EDGES, *map(int, np.random.default_rng(0).integers(0, 2**63, 8))]}
    return [v - 2**bits if kind[0] == "s" and v >> (bits - 1) else v for v in sorted(values)]


def wrap(value: int, kind: str) -> int:
    bits = int(kind[1:])
    value %= 2**bits
    return value - 2**bits if kind[0] == "s" and value >> (bits - 1) else value


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER: dict[str, Callable[[int, int, int, int], int]] = {  # of a, b, c and the width
    "add": lambda a, b, c, n: a + b,
    "sub": lambda a, b, c, n: a - b,
    "mul.lo": lambda a, b, c, n: a * b,
    "mul.hi": lambda a, b, c, n: a * b >> n,
    "mad.lo": lambda a, b, c, n: a * b + c,
    "mad.hi": lambda a, b, c, n: (a * b >> n) + c,
    "div": lambda a, b, c, n: truncated(a, b),
    "rem": lambda a, b, c, n: a - truncated(a, b) * b,
    "min": lambda a, b, c, n: min(a, b),
    "max": lambda a, b, c, n: max(a, b),
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", INTEGER)
def test_integer_arithmetic(kernels, tmp_path, name, kind):
    values = integers(kind)
    rows = [(a, b, values[(i + 3) % len(values)]) for a in values for i, b in enumerate(values)]
    if name in ("div", "rem"):
        rows = [row for row in rows if row[1] != 0]
    operands = "a, b, c" if name.startswith("mad") else "a, b"
    a, b, c = (np.array(column, dtype=DTYPES[kind]) for column in zip(*rows, strict=True))
    actual = compute(kernels, tmp_path, kind, kind, f"{name}.{kind} d, {operands};", a, b, c)
    expected = [wrap(INTEGER[name](*row, int(kind[1:])), kind) for row in rows]
    assert list(map(int, actual)) == expected


@pytest.mark.parametrize(("kind", "wide"), [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")])
def test_wide_products(kernels, tmp_path, kind, wide):
    values = integers(kind)
    rows = [(a, b) for a in values for b in values]
    a, b = (np.array(column, dtype=DTYPES[kind]) for column in zip(*rows, strict=True))
    actual = compute(kernels, tmp_path, kind, wide, f"mul.wide.{kind} d, a, b;", a, b)
    assert list(map(int, actual)) == [x * y for x, y in rows]
    body = f"mov.{wide} e, 5; mad.wide.{kind} d, a, b, e;"
    assert list(map(int, compute(kernels, tmp_path, kind, wide, body, a, b))) == [
        wrap(x * y + 5, wide) for x, y in rows
    ]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_shifts(kernels, tmp_path, kind):
    bits, values = int(kind[1:]), integers(kind)
    rows = [(a, count) for a in values for count in (0, 1, 5, bits - 1, bits, bits + 1, 200)]
    a, count = (np.array(column, DTYPES[kind]) for column in zip(*rows, strict=True))
    body = "cvt.u32.{0} %r2, b; sh{1}.{2} d, a, %r2;"
    left = compute(kernels, tmp_path, kind, kind, body.format(kind, "l", f"b{bits}"), a, count)
    assert list(map(int, left)) == [wrap(x << n, kind) for x, n in rows]
    right = compute(kernels, tmp_path, kind, kind, body.format(kind, "r", kind), a, count)
    assert list(map(int, right)) == [x >> n for x, n in rows]


def test_bits(kernels, tmp_path):
    generator = np.random.default_rng(0)
    a, b, c = (generator.integers(0, 2**32, 500, dtype=np.uint32) for _ in range(3))

    def run(body):
        return list(map(int, compute(kernels, tmp_path, "b32", "b32", body, a, b, c)))

    def each(f):
        return [f(*map(int, row)) % 2**32 for row in zip(a, b, c, strict=True)]

    assert run("and.b32 d, a, b;") == each(lambda a, b, c: a & b)
    assert run("or.b32 d, a, b;") == each(lambda a, b, c: a | b)
    assert run("xor.b32 d, a, b;") == each(lambda a, b, c: a ^ b)
    assert run("not.b32 d, a;") == each(lambda a, b, c: ~a)
    assert run("neg.s32 d, a;") == each(lambda a, b, c: -a)
    assert run("abs.s32 d, a;") == each(lambda a, b, c: min(a, 2**32 - a))
    assert run("popc.b32 d, a;") == each(lambda a, b, c: bin(a).count("1"))
    # The low 22 bits of a at place 10 of b.
    assert run("bfi.b32 d, a, b, 10, 22;") == each(lambda a, b, c: a << 10 | b & 0x3FF)
    assert run("bfi.b32 d, a, b, 4, 8;") == each(lambda a, b, c: (a & 0xFF) << 4 | b & ~0xFF0)
    assert run("bfe.u32 d, a, 5, 9;") == each(lambda a, b, c: a >> 5 & 0x1FF)
    assert run("bfe.s32 d, a, 5, 9;") == each(lambda a, b, c: ((a >> 5 & 0x1FF) ^ 0x100) - 0x100)
    assert run("prmt.b32 d, a, b, 0x5410;") == each(lambda a, b, c: a & 0xFFFF | (b & 0xFFFF) << 16)
    assert run("prmt.b32 d, a, b, 0x7362;") == each(
        lambda a, b, c: a >> 16 & 0xFF | (b >> 16 & 0xFF) << 8 | (a >> 24) << 16 | (b >> 24) << 24
    )
    assert run("shf.l.wrap.b32 d, a, b, c;") == each(lambda a, b, c: (b << 32 | a) << (c & 31) >> 32)
    assert run("shf.r.wrap.b32 d, a, b, c;") == each(lambda a, b, c: (b << 32 | a) >> (c & 31))
    halves = ".reg .b16 %h<2>; mov.b32 {%h0, %h1}, a; mov.b32 d, {%h1, %h0};"
    assert run(halves) == each(lambda a, b, c: a >> 16 | a << 16)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about NaN and infinity
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_comparisons(kernels, tmp_path, kind):
    values = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], DTYPES[kind])
    a, b = (v.ravel() for v in np.meshgrid(values, values))
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    expected = {name: met & ~unordered for name, met in ordered.items()}
    expected |= {name + "u": met | unordered for name, met in ordered.items()}
    expected |= {"num": ~unordered, "nan": unordered}
    for name, met in expected.items():
        actual = compute(kernels, tmp_path, kind, "u32", f"setp.{name}.{kind} p, a, b; selp.u32 d, 1, 0, p;", a, b)
        np.testing.assert_array_equal(actual, met, name)


def test_predicates(kernels, tmp_path):
    a, b = (v.ravel() for v in np.meshgrid([0, 1], [0, 1]))
    for name, combine in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        body = f"setp.ne.u32 p, a, 0; setp.ne.{name}.u32 p|q, b, 0, p; selp.u32 d, 1, 0, p; @q add.u32 d, d, 2;"
        expected = combine(b, a) + 2 * combine(1 - b, a)
        np.testing.assert_array_equal(compute(kernels, tmp_path, "u32", "u32", body, a, b), expected, name)
        body = f"setp.ne.u32 p, a, 0; setp.ne.u32 q, b, 0; {name}.pred p, p, q; not.pred p, p; selp.u32 d, 1, 0, p;"
        np.testing.assert_array_equal(compute(kernels, tmp_path, "u32", "u32", body, a, b), 1 - combine(a, b), name)


FLOATS = np.array(
    [
        0.0,
        -0.0,
        1.0,
        -1.5,
        3.0,
        1e-3,
        1e30,
        -1e30,
        1e-40,
        -3e-42,
        65504.0,
        1 / 3,
        np.inf,
        -np.inf,
        np.nan,
        2.0**-24,
        16777215.0,
    ],
    np.float32,
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_float_arithmetic(kernels, tmp_path, kind):
    generator = np.random.default_rng(0)
    values = np.concatenate([FLOATS, generator.standard_normal(20)]).astype(DTYPES[kind])
    a, b = (v.ravel() for v in np.meshgrid(values, values))

    def check(body, expected):
        actual = compute(kernels, tmp_path, kind, kind, body.replace("T", kind), a, b)
        np.testing.assert_array_equal(actual, expected, body)
        np.testing.assert_array_equal(
            np.signbit(actual)[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)]
        )

    check("add.T d, a, b;", a + b)
    check("sub.rn.T d, a, b;", a - b)
    check("mul.T d, a, b;", a * b)
    check("div.rn.T d, a, b;", a / b)
    check("sqrt.rn.T d, a;", np.sqrt(a))
    check("rcp.rn.T d, a;", 1 / a)
    check("neg.T d, a;", -a)
    check("abs.T d, a;", np.abs(a))
    check("copysign.T d, a, b;", np.copysign(b, a))
    lesser = np.where((a == b) & np.signbit(a), a, np.where(a == b, b, np.fmin(a, b)))
    greater = np.where((a == b) & np.signbit(a), b, np.where(a == b, a, np.fmax(a, b)))
    check("min.T d, a, b;", lesser)
    check("max.T d, a, b;", greater)
    check("min.NaN.T d, a, b;", np.where(np.isnan(a + b) & (np.isnan(a) | np.isnan(b)), np.nan, lesser).astype(a.dtype))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_fma_rounds_once_and_as_it_is_told(kernels, tmp_path):
    generator = np.random.default_rng(0)
    a, b, c = (generator.standard_normal(2000).astype(np.float32) for _ in range(3))
    # The product of two floats is a double, and so is this sum but for its last bits, which decide ties alone.
    exact = a.astype(np.longdouble) * b + c
    nearest = exact.astype(np.float32)
    for name, expected in {
        "rn": nearest,
        "rm": np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest),
        "rp": np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest),
        "rz": np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest),
    }.items():
        actual = compute(kernels, tmp_path, "f32", "f32", f"fma.{name}.f32 d, a, b, c;", a, b, c)
        np.testing.assert_array_equal(actual, expected, name)
    actual = compute(kernels, tmp_path, "f32", "f32", "fma.rn.sat.f32 d, a, b, c;", a, b, c)
    np.testing.assert_array_equal(actual, np.clip(nearest, 0, 1))
    total = a.astype(np.float64) + b
    nearest = total.astype(np.float32)
    actual = compute(kernels, tmp_path, "f32", "f32", "add.rz.f32 d, a, b;", a, b)
    np.testing.assert_array_equal(
        actual, np.where(np.abs(nearest) > np.abs(total), np.nextafter(nearest, np.float32(0)), nearest)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_approximations(kernels, tmp_path):
    a = np.concatenate([FLOATS, np.linspace(-20, 20, 500)]).astype(np.float32)
    for body, function in {
        "ex2.approx.f32": np.exp2, "lg2.approx.f32": np.log2, "rcp.approx.f32": lambda v: 1 / v,
        "sqrt.approx.f32": np.sqrt, "rsqrt.approx.f32": lambda v: 1 / np.sqrt(v), "tanh.approx.f32": np.tanh,
    }.items():  # fmt: skip
        actual = compute(kernels, tmp_path, "f32", "f32", f"{body} d, a;", a)
        np.testing.assert_allclose(
            actual,
            function(a.astype(np.float64)).astype(np.float32),
            rtol=1e-3 if body.startswith("tanh") else 3e-7,
            err_msg=body,
        )
        assert (actual != function(a.astype(np.float64)).astype(np.float32))[
            17:
        ].mean() > 0.1  # it is off by what it may be
    actual = compute(kernels, tmp_path, "f32", "f32", "ex2.approx.ftz.f32 d, a;", [-130.0, 1e-40])
    np.testing.assert_allclose(actual, [0.0, 1.0], rtol=3e-7)
    np.testing.assert_array_equal(
        compute(kernels, tmp_path, "f32", "f32", "cvt.sat.f32.f32 d, a;", a), np.where(np.isnan(a), 0, np.clip(a, 0, 1))
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("dtype", "name"), [("float16", "f16"), ("bfloat16", "bf16")])
def test_half_types(kernels, tmp_path, dtype, name):
    every = np.arange(1 << 16, dtype=np.uint16)
    values = decode(every.view(np.float16) if dtype == "float16" else every, dtype).astype(np.float32)
    np.testing.assert_array_equal(compute(kernels, tmp_path, "b16", "f32", f"cvt.f32.{name} d, a;", every), values)

    finite = np.sort(values[np.isfinite(values)])
    ties = (finite[:-1] + (finite[1:] - finite[:-1]) / 2).astype(np.float32)
    between = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    values = np.concatenate([*between, FLOATS, np.float32([65519.9, 65520.0, 3.4e38])])
    expected = encode(values, dtype).view(np.uint16)
    actual = compute(kernels, tmp_path, "f32", "b16", f"cvt.rn.{name}.f32 d, a;", values)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(actual[number], expected[number])
    assert (actual[~number] == 0x7FFF).all()
    # The first operand goes to the upper half.
    pairs = compute(kernels, tmp_path, "f32", "b32", f"cvt.rn.{name}x2.f32 d, a, b;", values, 1.0)
    np.testing.assert_array_equal((pairs >> 16)[number], expected[number])
    assert (pairs & 0xFFFF == encode(np.float32([1.0]), dtype).view(np.uint16)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions(kernels, tmp_path):
    def convert(name, operand, result, values):
        return compute(kernels, tmp_path, operand, result, f"cvt.{name} d, a;", np.array(values, DTYPES[operand]))

    np.testing.assert_array_equal(convert("s64.s32", "s32", "s64", [-1, 5]), [-1, 5])
    np.testing.assert_array_equal(convert("u64.u32", "u32", "u64", [2**32 - 1]), [2**32 - 1])
    np.testing.assert_array_equal(convert("u32.u64", "u64", "u32", [2**40 + 7]), [7])
    np.testing.assert_array_equal(convert("s32.s8", "b32", "s32", [0x1FF, 0x7F]), [-1, 127])
    np.testing.assert_array_equal(convert("u32.u16", "b16", "u32", [0xFFFF]), [0xFFFF])
    np.testing.assert_array_equal(convert("rn.f32.s32", "s32", "f32", [-3, 2**24 + 1]), [-3, 2**24])
    np.testing.assert_array_equal(convert("rn.f32.u32", "u32", "f32", [2**32 - 1]), [2.0**32])
    np.testing.assert_array_equal(convert("rn.f64.s64", "s64", "f64", [-(2**53)]), [-(2.0**53)])
    np.testing.assert_array_equal(convert("f64.f32", "f32", "f64", FLOATS), FLOATS.astype(np.float64))
    np.testing.assert_array_equal(convert("rn.f32.f64", "f64", "f32", [1 / 3, 1e300]), np.float32([1 / 3, np.inf]))
    halves = [2.5, -2.5, 1e20, -1e20, np.nan]
    extremes = [2**31 - 1, -(2**31), 0]
    for name, expected in {"rni": [2, -2], "rzi": [2, -2], "rmi": [2, -3], "rpi": [3, -2]}.items():
        np.testing.assert_array_equal(convert(f"{name}.s32.f32", "f32", "s32", halves), expected + extremes)
    ulp = 2.0**-10
    tf32 = convert("rna.tf32.f32", "f32", "b32", [1 + 0.5 * ulp, 1 + 0.49 * ulp, -1 - 1.5 * ulp, np.inf])
    np.testing.assert_array_equal((tf32 & 0xFFFFE000).view(np.float32), [1 + ulp, 1, -1 - 2 * ulp, np.inf])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 d, a;", r"frobnicate\.b32: unknown instruction; .*instruction\.ptx:21"),
        ("add.rn.relu.f32 d, a, b;", "type .relu has no meaning here"),
        ("and.b32.sat d, a, b;", "modifier .sat has no meaning here"),
        ("cvt.rz.f16.f32 d, a;", "cvt"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 d, a, b, c;", "modifier .m8n8k4 has no meaning here"),
        ("ld.global.b32 d, [%rd3+2];", "address is not 4-byte aligned"),
        ("ld.global.b32 d, [%rd3+400];", "beyond global memory"),
        ("mov.u32 %r2, 0; ld.shared.b32 d, [%r2];", "beyond shared memory"),
        ("bra $L1; $L1: bra $L1;", "a loop that does not end"),
        ("ld.global.b32 d, [nowhere];", "unknown name nowhere"),
        ("trap;", "trap"),
    ],
)
def test_what_is_wrong_is_named(kernels, tmp_path, body, message):
    with pytest.raises(RuntimeError, match=message):
        compute(kernels, tmp_path, "b32", "b32", body, np.arange(2))
