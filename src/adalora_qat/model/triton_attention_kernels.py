"""The Triton kernels of ``triton_attention``: relative terms, forward pass, both backward passes.

Legend: B images, E grid side, G window side, H heads, D head width, K slots of a relative table
(G rounded up to 16); M queries and N keys of a block; z counts windows of all images. Scores are
held in base 2: LOG2E is folded into every factor, and exp2 is one instruction. ROWS says which of
the two ways to the bias a kernel is compiled for.

What the kernels are given: qkv and grad_qkv (B, E, E, 3·H·D); padding (3·H·D); tables (2, E, K, D);
rel and grad_rel (B, H, E·E, 2K); grad and out (B, E, E, H·D); lse (base 2) and delta (B, H, E·E)
FP32; E, heads and windows (along one side) as numbers. Everything is contiguous.
"""
# Kernels are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def terms_kernel(qkv, tables, rel, E, heads, LINE: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    """Write rel: one program is the queries along one row or column, times its table."""
    axis, line = tl.program_id(0) // E, tl.program_id(0) % E
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    along = tl.arange(0, LINE)
    inside = along < E
    place = tl.where(axis == 0, line * E + along, along * E + line)
    d, k = tl.arange(0, D), tl.arange(0, K)
    rows = (image * E * E + place) * (3 * heads * D) + head * D
    query = tl.load(qkv + rows[:, None] + d[None, :], mask=inside[:, None], other=0)
    table = tl.load(tables + ((axis * E + line) * K + k[:, None]) * D + d[None, :])
    terms = tl.dot(query, tl.trans(table), input_precision="ieee")
    to = ((image * heads + head) * E * E + place) * (2 * K) + axis * K
    tl.store(rel + to[:, None] + k[None, :], terms.to(rel.dtype.element_ty), mask=inside[:, None])


@triton.jit
def terms_backward_kernel(
    grad_rel,
    tables,
    grad_qkv,
    E,
    heads,
    AXIS: tl.constexpr,
    LINE: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
):
    """Add the terms' share to the gradient of q; the axes are two launches, one after another."""
    line, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    along = tl.arange(0, LINE)
    inside = (along < E)[:, None]
    place = line * E + along if AXIS == 0 else along * E + line
    d, k = tl.arange(0, D), tl.arange(0, K)
    start = ((image * heads + head) * E * E + place) * (2 * K) + AXIS * K
    terms = tl.load(grad_rel + start[:, None] + k[None, :], mask=inside, other=0)
    table = tl.load(tables + ((AXIS * E + line) * K + k[:, None]) * D + d[None, :])
    rows = (image * E * E + place) * (3 * heads * D) + head * D
    to = grad_qkv + rows[:, None] + d[None, :]
    total = tl.load(to, mask=inside, other=0).to(tl.float32)
    total = tl.dot(terms, table, total, input_precision="ieee")
    tl.store(to, total.to(grad_qkv.dtype.element_ty), mask=inside)


@triton.jit
def delta_kernel(grad, out, delta, tokens, heads, D: tl.constexpr, M: tl.constexpr):
    """Write Δ_i = Σ_d dO[i, d]·O[i, d], which is Σ_j P[i, j]·dP[i, j]."""
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * M + tl.arange(0, M)
    inside = i < tokens
    d = tl.arange(0, D)
    at = ((image * tokens + i) * heads + head)[:, None] * D + d[None, :]
    left = tl.load(grad + at, mask=inside[:, None], other=0).to(tl.float32)
    right = tl.load(out + at, mask=inside[:, None], other=0).to(tl.float32)
    tl.store(delta + (image * heads + head) * tokens + i, tl.sum(left * right, 1), mask=inside)


@triton.jit
def _corner(E, windows, G: tl.constexpr):
    # The image and the upper left token of this program's window.
    z = tl.program_id(2)
    window = z % (windows * windows)
    image = (z // (windows * windows)).to(tl.int64)
    return image, window // windows * G, window % windows * G


@triton.jit
def _place(t, top, left, E, G: tl.constexpr):
    # Where token t of a window stands on the grid, and whether it does.
    y, x = top + t // G, left + t % G
    return y * E + x, (t < G * G) & (y < E) & (x < E)


@triton.jit
def _load(base, place, inside, pad, stride, D: tl.constexpr, GUARD: tl.constexpr):
    # A (tokens, D) tile of q, k or v; off the grid it is the padding's. Addresses are chosen,
    # not values: a load without a mask is pipelined straight into shared memory.
    d = tl.arange(0, D)
    row = place * stride
    if GUARD:
        size: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
        apart = (pad.to(tl.int64) - base.to(tl.int64)) // size
        row = tl.multiple_of(tl.where(inside, row.to(tl.int64), apart), 8)
    return tl.load(base + row[:, None] + d[None, :])


@triton.jit
def _one_hot(t, G: tl.constexpr, K: tl.constexpr, like):
    # (2K, tokens): slot y_j, and slot K + x_j, of each token.
    slot = tl.arange(0, 2 * K)[:, None]
    hot = (slot == (t // G)[None, :]) | (slot == K + (t % G)[None, :])
    return hot.to(like)


@triton.jit
def forward_kernel(
    qkv,
    padding,
    rel,
    out,
    lse,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    """Attend: one program is M queries of one head and window, against all the window's keys."""
    # A block of keys is N/P whole rows of the window, each filled up to P: rel_w is then one tile
    # for all blocks, and rel_h a column for each row.
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    R: tl.constexpr = N // P

    first = tl.program_id(0) * M
    if top + first // G >= E:
        return  # all of these queries are off the grid
    i = first + tl.arange(0, M)
    place, inside = _place(i, top, left, E, G)
    query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
    terms = rel + ((image * heads + head) * E * E + place) * (2 * K)
    slot = tl.arange(0, N)
    down, x = slot // P, slot % P
    if ROWS:
        columns = tl.load(terms[:, None] + K + x[None, :]).to(tl.float32) * LOG2E
    else:
        seen = inside[:, None] & (x < G)[None, :]
        columns = tl.load(terms[:, None] + K + x[None, :], mask=seen, other=0)
        columns = tl.where((x < G)[None, :], columns.to(tl.float32) * LOG2E, float("-inf"))

    top_score = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, D], tl.float32)
    if R == 1:
        row = tl.load(terms, mask=inside, other=0).to(tl.float32) * LOG2E
    for y in range(0, G, R):
        spot = (top + y + down) * E + left + x
        # Off the window a slot is masked, off the grid it is padding: both load padding.
        real = (y + down < G) & (x < G) & (top + y + down < E) & (left + x < E)
        key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * (SCALE * LOG2E)
        score += columns
        if R == 1:
            # rel_h is one number for the whole block: it moves the maximum, not the scores.
            peak = tl.maximum(top_score, tl.max(score, 1) + row)
            weight = tl.math.exp2(score - (peak - row)[:, None])
            # The next block's, asked for early: nothing else hides its latency.
            following = tl.minimum(y + 1, G - 1)
            row = tl.load(terms + following, mask=inside, other=0).to(tl.float32) * LOG2E
        else:
            rows = tl.zeros([M, N], tl.float32)
            for r in tl.static_range(R):
                one = tl.load(terms + tl.minimum(y + r, G - 1), mask=inside, other=0)
                one = one.to(tl.float32) * LOG2E
                rows = tl.where((down == r)[None, :], one[:, None], rows)
            score += rows
            if G % R != 0:
                score = tl.where((y + down < G)[None, :], score, float("-inf"))
            peak = tl.maximum(top_score, tl.max(score, 1))
            weight = tl.math.exp2(score - peak[:, None])
        shrink = tl.math.exp2(top_score - peak)
        top_score = peak
        total = total * shrink + tl.sum(weight, 1)
        value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
        result = tl.dot(weight.to(kind), value, result * shrink[:, None], input_precision="ieee")

    d = tl.arange(0, D)
    at = out + (image * E * E + place)[:, None] * C + head * D + d[None, :]
    result = result / total[:, None]
    tl.store(at, result.to(kind), mask=inside[:, None])
    to = lse + (image * heads + head) * E * E + place
    tl.store(to, top_score + tl.math.log2(total), mask=inside)


@triton.jit
def keys_kernel(
    qkv,
    padding,
    rel,
    grad,
    lse,
    delta,
    grad_qkv,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the gradients of keys and values: one program has N of them and sees all queries."""
    # Everything is held transposed, (N, M), so that P and dS stay in registers as the left factor
    # of a product.
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    plane = (image * heads + head) * E * E

    j = tl.program_id(0) * N + tl.arange(0, N)
    spot, real = _place(j, top, left, E, G)
    key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
    value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
    if not ROWS:
        hot = tl.trans(_one_hot(j, G, K, kind))
    grad_key = tl.zeros([N, D], tl.float32)
    grad_value = tl.zeros([N, D], tl.float32)
    d = tl.arange(0, D)
    for start in range(0, G * G, M):
        i = start + tl.arange(0, M)
        place, inside = _place(i, top, left, E, G)
        query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
        at = grad + (image * E * E + place)[:, None] * C + head * D + d[None, :]
        terms = rel + (plane + place) * (2 * K)
        score = tl.dot(key, tl.trans(query), input_precision="ieee") * (SCALE * LOG2E)
        if ROWS:
            grad_out = tl.load(at)
            columns = tl.load(terms[None, :] + K + tl.arange(0, N)[:, None])
            score += columns.to(tl.float32) * LOG2E
            row = tl.load(terms + tl.program_id(0)).to(tl.float32) * LOG2E
            shift = tl.load(lse + plane + place) - row
            drop = tl.load(delta + plane + place)
        else:
            grad_out = tl.load(at, mask=inside[:, None], other=0)
            slots = terms[:, None] + tl.arange(0, 2 * K)[None, :]
            both = tl.load(slots, mask=inside[:, None], other=0)
            score += tl.dot(hot, tl.trans(both), input_precision="ieee") * LOG2E
            # A query off the grid has no output: infinity takes its weights to zero.
            shift = tl.load(lse + plane + place, mask=inside, other=float("inf"))
            drop = tl.load(delta + plane + place, mask=inside, other=0)
        weight = tl.math.exp2(score - shift[None, :])
        grad_value = tl.dot(weight.to(kind), grad_out, grad_value, input_precision="ieee")
        grad_weight = tl.dot(value, tl.trans(grad_out), input_precision="ieee")
        grad_score = weight * (grad_weight - drop[None, :])
        grad_key = tl.dot(grad_score.to(kind), query, grad_key, input_precision="ieee")

    to = grad_qkv + (image * E * E + spot)[:, None] * (3 * C) + head * D + d[None, :]
    tl.store(to + C, (grad_key * SCALE).to(kind), mask=real[:, None])
    tl.store(to + 2 * C, grad_value.to(kind), mask=real[:, None])


@triton.jit
def queries_kernel(
    qkv,
    padding,
    rel,
    grad,
    lse,
    delta,
    grad_qkv,
    grad_rel,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the gradients of M queries and of their relative terms: a program sees all keys."""
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    plane = (image * heads + head) * E * E

    i = tl.program_id(0) * M + tl.arange(0, M)
    place, inside = _place(i, top, left, E, G)
    query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
    d = tl.arange(0, D)
    at = grad + (image * E * E + place)[:, None] * C + head * D + d[None, :]
    grad_out = tl.load(at, mask=inside[:, None], other=0)
    shift = tl.load(lse + plane + place, mask=inside, other=float("inf"))
    drop = tl.load(delta + plane + place, mask=inside, other=0)
    terms, to_terms = rel + (plane + place) * (2 * K), grad_rel + (plane + place) * (2 * K)
    if ROWS:
        slot = tl.arange(0, N)
        columns = tl.load(terms[:, None] + K + slot[None, :]).to(tl.float32) * LOG2E
        grad_columns = tl.zeros([M, N], tl.float32)
    else:
        slot = tl.arange(0, 2 * K)
        both = tl.load(terms[:, None] + slot[None, :], mask=inside[:, None], other=0)
        grad_both = tl.zeros([M, 2 * K], tl.float32)

    grad_query = tl.zeros([M, D], tl.float32)
    for start in range(0, G * G, N):
        j = start + tl.arange(0, N)
        spot, real = _place(j, top, left, E, G)
        key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
        value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * (SCALE * LOG2E)
        if ROWS:
            row = tl.load(terms + start // N).to(tl.float32) * LOG2E
            weight = tl.math.exp2(score + columns - (shift - row)[:, None])
        else:
            hot = _one_hot(j, G, K, kind)
            score += tl.dot(both, hot, input_precision="ieee") * LOG2E
            weight = tl.math.exp2(score - shift[:, None])
            weight = tl.where((j < G * G)[None, :], weight, 0.0)
        grad_weight = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
        grad_score = weight * (grad_weight - drop[:, None])
        if ROWS:
            grad_columns += grad_score
            tl.store(to_terms + start // N, tl.sum(grad_score, 1).to(kind))
        else:
            grad_both = tl.dot(
                grad_score.to(kind), tl.trans(hot), grad_both, input_precision="ieee"
            )
        grad_query = tl.dot(grad_score.to(kind), key, grad_query, input_precision="ieee")

    if ROWS:
        tl.store(to_terms[:, None] + K + slot[None, :], grad_columns.to(kind))
    else:
        tl.store(to_terms[:, None] + slot[None, :], grad_both.to(kind), mask=inside[:, None])
    to = grad_qkv + (image * E * E + place)[:, None] * (3 * C) + head * D + d[None, :]
    tl.store(to, (grad_query * SCALE).to(kind), mask=inside[:, None])
