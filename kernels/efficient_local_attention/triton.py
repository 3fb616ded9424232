"""Efficient local attention on GPUs: sums along both axes, gates from strips, and products.

Strips are (B, H + W, C) in float32: rows of the H strip before those of the W strip.
"""

import torch
import triton
import triton.language as tl

from .._triton import launch

ELEMENTS = 1024
"""Elements of a tile of the map."""
SECTOR = 8
"""Channels to have at least in a tile where they are contiguous: 32 bytes of float32."""
CHANNELS = 32
"""Most channels of such a tile."""
COLUMNS = 128
"""Most columns of a tile of the map."""
POSITIONS = 32
"""Most positions of a tile of strips."""
SPLITS = 8
"""Sums of the convolution's gradient to keep apart, for equal results whatever the GPU."""

MOST_REGISTERS = 255
"""All that a thread can have: with a choice, ``ptxas`` spills a few."""


def forward(x, conv, weight, bias, norm_groups, eps, save):
    """Output, and the strip means (B, H + W, C), empty unless they are to be saved."""
    out = torch.empty_like(x)
    strips = _sum(x, None, None)
    gates = torch.empty_like(strips)
    parameters = [p.float().contiguous() for p in (conv, weight, bias)]
    _gates(x, strips, *parameters, norm_groups, eps, gates, gates, None)
    _multiply(x, gates, None, out)
    return out, strips if save else strips.new_empty(0)


def backward(grad, x, conv, weight, bias, strips, norm_groups, eps):
    """Gradients of x, the convolution's weight, and the normalisation's weight and bias."""
    batch, channels, height, width = x.shape
    sets, _, group, taps = conv.shape
    dx = torch.empty_like(x)
    parameters = [p.float().contiguous() for p in (conv, weight, bias)]
    convolved, gates, dstrips = (torch.empty_like(strips) for _ in range(3))
    statistics = strips.new_empty(batch, 2, norm_groups, 2)
    _gates(x, strips, *parameters, norm_groups, eps, convolved, gates, statistics)
    dgates = _sum(x, grad, gates)
    # Of each item and strip, to be summed.
    dnorm = strips.new_zeros(2, batch, 2, channels)
    length = max(height, width)
    norm_width = channels // norm_groups
    launch(
        efficient_local_attention_bwd_kernel_norm,
        (norm_groups, 2, batch),
        p_u=convolved,
        p_y=gates,
        p_dy=dgates,
        p_statistics=statistics,
        p_weight=parameters[1],
        p_dweight=dnorm[0],
        p_dbias=dnorm[1],
        channels=channels,
        height=height,
        width=width,
        norm_width=norm_width,
        SETS=sets,
        maxnreg=MOST_REGISTERS,
        **_strip_tile(norm_width, length),
    )
    tile = _strip_tile(channels, length)
    splits = min(batch, SPLITS)
    dconv = conv.new_zeros(splits, *conv.shape, dtype=torch.float32)
    launch(
        efficient_local_attention_bwd_kernel_conv,
        (triton.cdiv(channels, tile["BC"]), group, splits * sets),
        p_z=strips,
        p_du=dgates,
        p_dconv=dconv,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        splits=splits,
        SETS=sets,
        GROUP=group,
        TAPS=taps,
        BT=triton.next_power_of_2(taps),
        maxnreg=MOST_REGISTERS,
        **tile,
    )
    launch(
        efficient_local_attention_bwd_kernel_strips,
        (triton.cdiv(channels, tile["BC"]), 2, batch),
        p_du=dgates,
        p_conv=parameters[0],
        p_dz=dstrips,
        channels=channels,
        height=height,
        width=width,
        SETS=sets,
        GROUP=group,
        TAPS=taps,
        maxnreg=MOST_REGISTERS,
        **tile,
    )
    _multiply(grad, gates, dstrips, dx)
    dnorm = dnorm.sum(1)  # (2, strips, C)
    dweight, dbias = dnorm if sets == 2 else dnorm.sum(1, keepdim=True)
    grads = zip((dconv.sum(0), dweight, dbias), (conv, weight, bias), strict=True)
    return dx, *(d.to(p.dtype) for d, p in grads)


def _map_tile(x):
    """Channels, rows and columns of a tile of the map."""
    _, channels, height, width = x.shape
    most, rows, columns = map(triton.next_power_of_2, (channels, height, width))
    columns = min(columns, COLUMNS)
    if x.stride(1) == 1 and x.stride(3) != 1:
        block = min(max(ELEMENTS // columns, SECTOR), CHANNELS, most)
        rows = min(max(ELEMENTS // (block * columns), 1), rows)
    else:
        rows = min(max(ELEMENTS // columns, 1), rows)
        block = min(max(ELEMENTS // (rows * columns), 1), most)
    return {"BC": block, "BH": rows, "BW": columns}


def _strip_tile(channels, length):
    return {
        "BC": min(16, triton.next_power_of_2(channels)),
        "BL": min(POSITIONS, triton.next_power_of_2(length)),
    }


def _map(name, x):
    strides = zip("bchw", x.stride(), strict=True)
    return {f"p_{name}": x, **{f"s_{name}_{axis}": stride for axis, stride in strides}}


def _sum(x, grad, gates):
    """Means of x along either axis; sums of x times gradients and the other axis's gates."""
    batch, channels, height, width = x.shape
    out = x.new_empty((batch, height + width, channels), dtype=torch.float32)
    tile = _map_tile(x)
    tiles = triton.cdiv(width, tile["BW"])
    # Rows are summed of each tile of columns, then of all.
    rows = out[:, None, :height]
    if tiles > 1:
        rows = out.new_empty(batch, tiles, height, channels)
    launch(
        efficient_local_attention_fwd_kernel_sums,
        (triton.cdiv(channels, tile["BC"]), tiles, batch),
        **_map("x", x),
        **_map("g", x if grad is None else grad),
        p_y=out if gates is None else gates,
        p_rows=rows,
        s_rows_b=rows.stride(0),
        p_columns=out,
        channels=channels,
        height=height,
        width=width,
        GRADIENT=grad is not None,
        maxnreg=MOST_REGISTERS,
        **tile,
    )
    if tiles > 1:
        out[:, :height] = rows.sum(1)
    return out


def _gates(x, strips, conv, weight, bias, norm_groups, eps, convolved, gates, statistics):
    batch, channels, height, width = x.shape
    sets, _, group, taps = conv.shape
    norm_width = channels // norm_groups
    launch(
        efficient_local_attention_fwd_kernel_gates,
        (norm_groups, 2, batch),
        p_z=strips,
        p_conv=conv,
        p_weight=weight,
        p_bias=bias,
        p_u=convolved,
        p_y=gates,
        p_statistics=gates if statistics is None else statistics,
        channels=channels,
        height=height,
        width=width,
        norm_width=norm_width,
        eps=eps,
        SAVE=statistics is not None,
        SETS=sets,
        GROUP=group,
        TAPS=taps,
        maxnreg=MOST_REGISTERS,
        **_strip_tile(norm_width, max(height, width)),
    )


def _multiply(x, gates, dstrips, out):
    """x times its gates; and gradients of the strips added, where given."""
    batch, channels, height, width = x.shape
    tile = _map_tile(out)
    launch(
        efficient_local_attention_fwd_kernel_multiply,
        (
            triton.cdiv(channels, tile["BC"]),
            triton.cdiv(height, tile["BH"]) * triton.cdiv(width, tile["BW"]),
            batch,
        ),
        **_map("x", x),
        p_y=gates,
        p_dz=gates if dstrips is None else dstrips,
        **_map("out", out),
        channels=channels,
        height=height,
        width=width,
        GRADIENT=dstrips is not None,
        maxnreg=MOST_REGISTERS,
        **tile,
    )


@triton.jit
def efficient_local_attention_fwd_kernel_sums(
    p_x, s_x_b, s_x_c, s_x_h, s_x_w, p_g, s_g_b, s_g_c, s_g_h, s_g_w, p_y,
    p_rows, s_rows_b, p_columns, channels, height, width,
    GRADIENT: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    i_t, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i_c = tl.program_id(0) * BC + tl.arange(0, BC)
    i_w = i_t * BW + tl.arange(0, BW)
    m_c, m_w = i_c < channels, i_w < width
    p_y += i_b * (height + width) * channels
    p_columns += i_b * (height + width) * channels
    p_rows += i_b * s_rows_b + i_t.to(tl.int64) * height * channels
    o_columns = (height + i_w[None, :]) * channels + i_c[:, None]
    m_columns = m_c[:, None] & m_w[None, :]
    b_columns = tl.zeros([BC, BW], tl.float32)
    b_gw = tl.zeros([BC, BW], tl.float32)
    if GRADIENT:
        b_gw = tl.load(p_y + o_columns, mask=m_columns, other=0.0)  # [BC, BW]
    o_c = i_c[:, None, None].to(tl.int64)
    o_w = i_w[None, None, :].to(tl.int64)
    o_x = i_b * s_x_b + o_c * s_x_c + o_w * s_x_w
    o_g = i_b * s_g_b + o_c * s_g_c + o_w * s_g_w
    for h in range(0, height, BH):
        i_h = h + tl.arange(0, BH)
        m_h = i_h < height
        mask = m_columns[:, None, :] & m_h[None, :, None]
        o_h = i_h[None, :, None].to(tl.int64)
        b_x = tl.load(p_x + o_x + o_h * s_x_h, mask=mask, other=0.0).to(tl.float32)  # [BC, BH, BW]
        m_rows = m_c[:, None] & m_h[None, :]
        o_rows = i_h[None, :] * channels + i_c[:, None]
        if GRADIENT:
            b_g = tl.load(p_g + o_g + o_h * s_g_h, mask=mask, other=0.0).to(tl.float32)
            b_x *= b_g
            b_gh = tl.load(p_y + o_rows, mask=m_rows, other=0.0)  # [BC, BH]
            b_columns += tl.sum(b_x * b_gh[:, :, None], 1)
            b_rows = tl.sum(b_x * b_gw[:, None, :], 2)
        else:
            b_columns += tl.sum(b_x, 1)
            b_rows = tl.sum(b_x, 2) / width
        tl.store(p_rows + o_rows, b_rows, mask=m_rows)
    if not GRADIENT:
        b_columns /= height
    tl.store(p_columns + o_columns, b_columns, mask=m_columns)


@triton.jit
def efficient_local_attention_fwd_kernel_gates(
    p_z, p_conv, p_weight, p_bias, p_u, p_y, p_statistics,
    channels, height, width, norm_width, eps,
    SAVE: tl.constexpr, SETS: tl.constexpr, GROUP: tl.constexpr, TAPS: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    i_g, i_s, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.where(i_s == 0, height, width)
    start = (i_b * (height + width) + i_s * height) * channels
    p_z, p_u, p_y = p_z + start, p_u + start, p_y + start
    i_set = i_s % SETS
    b_total = tl.zeros([BC, BL], tl.float32)
    for c in range(0, norm_width, BC):
        i_n = c + tl.arange(0, BC)
        i_c = i_g * norm_width + i_n
        m_c = i_n < norm_width
        first = i_c // GROUP * GROUP
        for begin in range(0, length, BL):
            i_l = begin + tl.arange(0, BL)
            mask = m_c[:, None] & (i_l < length)[None, :]
            b_u = tl.zeros([BC, BL], tl.float32)
            for i in range(GROUP):
                for t in tl.static_range(TAPS):
                    i_t = i_l + t - TAPS // 2
                    o_conv = ((i_set * channels + i_c) * GROUP + i) * TAPS + t
                    b_conv = tl.load(p_conv + o_conv, mask=m_c, other=0.0)  # [BC]
                    o_z = i_t[None, :] * channels + (first + i)[:, None]
                    m_z = m_c[:, None] & ((i_t >= 0) & (i_t < length))[None, :]
                    b_z = tl.load(p_z + o_z, mask=m_z, other=0.0)  # [BC, BL]
                    b_u += b_conv[:, None] * b_z
            b_total += tl.where(mask, b_u, 0.0)
            tl.store(p_u + i_l[None, :] * channels + i_c[:, None], b_u, mask=mask)
    number = norm_width * length
    mean = tl.sum(tl.sum(b_total, 1), 0) / number
    # What other threads of this program wrote is read from here on.
    tl.debug_barrier()
    b_total = tl.zeros([BC, BL], tl.float32)
    for c in range(0, norm_width, BC):
        i_n = c + tl.arange(0, BC)
        i_c = i_g * norm_width + i_n
        for begin in range(0, length, BL):
            i_l = begin + tl.arange(0, BL)
            mask = (i_n < norm_width)[:, None] & (i_l < length)[None, :]
            b_u = tl.load(p_u + i_l[None, :] * channels + i_c[:, None], mask=mask, other=mean)
            b_total += (b_u - mean) * (b_u - mean)
    deviation = 1 / tl.sqrt(tl.sum(tl.sum(b_total, 1), 0) / number + eps)
    if SAVE:
        o_statistics = ((i_b * 2 + i_s) * tl.num_programs(0) + i_g) * 2
        tl.store(p_statistics + o_statistics, mean)
        tl.store(p_statistics + o_statistics + 1, deviation)
    for c in range(0, norm_width, BC):
        i_n = c + tl.arange(0, BC)
        i_c = i_g * norm_width + i_n
        m_c = i_n < norm_width
        b_weight = tl.load(p_weight + i_set * channels + i_c, mask=m_c, other=0.0)
        b_bias = tl.load(p_bias + i_set * channels + i_c, mask=m_c, other=0.0)
        for begin in range(0, length, BL):
            i_l = begin + tl.arange(0, BL)
            mask = m_c[:, None] & (i_l < length)[None, :]
            o_u = i_l[None, :] * channels + i_c[:, None]
            b_u = (tl.load(p_u + o_u, mask=mask, other=0.0) - mean) * deviation
            b_y = tl.sigmoid(b_u * b_weight[:, None] + b_bias[:, None])
            tl.store(p_y + o_u, b_y, mask=mask)


@triton.jit
def efficient_local_attention_fwd_kernel_multiply(
    p_x, s_x_b, s_x_c, s_x_h, s_x_w, p_y, p_dz, p_out, s_out_b, s_out_c, s_out_h, s_out_w,
    channels, height, width,
    GRADIENT: tl.constexpr, BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(2).to(tl.int64)
    i_c = tl.program_id(0) * BC + tl.arange(0, BC)
    tiles = tl.cdiv(width, BW)
    i_h = tl.program_id(1) // tiles * BH + tl.arange(0, BH)
    i_w = tl.program_id(1) % tiles * BW + tl.arange(0, BW)
    m_c, m_h, m_w = i_c < channels, i_h < height, i_w < width
    p_y += i_b * (height + width) * channels
    p_dz += i_b * (height + width) * channels
    o_rows = i_h[None, :] * channels + i_c[:, None]
    o_columns = (height + i_w[None, :]) * channels + i_c[:, None]
    m_rows, m_columns = m_c[:, None] & m_h[None, :], m_c[:, None] & m_w[None, :]
    b_gh = tl.load(p_y + o_rows, mask=m_rows, other=0.0)  # [BC, BH]
    b_gw = tl.load(p_y + o_columns, mask=m_columns, other=0.0)  # [BC, BW]
    o_c = i_c[:, None, None].to(tl.int64)
    o_h = i_h[None, :, None].to(tl.int64)
    o_w = i_w[None, None, :].to(tl.int64)
    mask = m_columns[:, None, :] & m_h[None, :, None]
    o_x = i_b * s_x_b + o_c * s_x_c + o_h * s_x_h + o_w * s_x_w
    b_x = tl.load(p_x + o_x, mask=mask, other=0.0).to(tl.float32)  # [BC, BH, BW]
    b_x *= b_gh[:, :, None] * b_gw[:, None, :]
    if GRADIENT:
        b_dh = tl.load(p_dz + o_rows, mask=m_rows, other=0.0)
        b_dw = tl.load(p_dz + o_columns, mask=m_columns, other=0.0)
        b_x += b_dh[:, :, None] + b_dw[:, None, :]
    o_out = i_b * s_out_b + o_c * s_out_c + o_h * s_out_h + o_w * s_out_w
    tl.store(p_out + o_out, b_x.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def efficient_local_attention_bwd_kernel_norm(
    p_u, p_y, p_dy, p_statistics, p_weight, p_dweight, p_dbias,
    channels, height, width, norm_width,
    SETS: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    i_g, i_s, i_b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.where(i_s == 0, height, width)
    start = (i_b * (height + width) + i_s * height) * channels
    p_u, p_y, p_dy = p_u + start, p_y + start, p_dy + start
    o_statistics = ((i_b * 2 + i_s) * tl.num_programs(0) + i_g) * 2
    mean = tl.load(p_statistics + o_statistics)
    deviation = tl.load(p_statistics + o_statistics + 1)
    b_first = tl.zeros([BC], tl.float32)
    b_second = tl.zeros([BC], tl.float32)
    for c in range(0, norm_width, BC):
        i_n = c + tl.arange(0, BC)
        i_c = i_g * norm_width + i_n
        m_c = i_n < norm_width
        b_dbias = tl.zeros([BC], tl.float32)
        b_dweight = tl.zeros([BC], tl.float32)
        for begin in range(0, length, BL):
            i_l = begin + tl.arange(0, BL)
            mask = m_c[:, None] & (i_l < length)[None, :]
            o_u = i_l[None, :] * channels + i_c[:, None]
            b_y = tl.load(p_y + o_u, mask=mask, other=0.0)
            b_ds = tl.load(p_dy + o_u, mask=mask, other=0.0) * b_y * (1 - b_y)  # [BC, BL]
            b_u = (tl.load(p_u + o_u, mask=mask, other=0.0) - mean) * deviation
            b_dbias += tl.sum(b_ds, 1)
            b_dweight += tl.sum(b_ds * b_u, 1)
        o_out = (i_b * 2 + i_s) * channels + i_c
        tl.store(p_dweight + o_out, b_dweight, mask=m_c)
        tl.store(p_dbias + o_out, b_dbias, mask=m_c)
        b_weight = tl.load(p_weight + i_s % SETS * channels + i_c, mask=m_c, other=0.0)
        b_first += b_weight * b_dbias
        b_second += b_weight * b_dweight
    number = norm_width * length
    first, second = tl.sum(b_first, 0) / number, tl.sum(b_second, 0) / number
    for c in range(0, norm_width, BC):
        i_n = c + tl.arange(0, BC)
        i_c = i_g * norm_width + i_n
        m_c = i_n < norm_width
        b_weight = tl.load(p_weight + i_s % SETS * channels + i_c, mask=m_c, other=0.0)
        for begin in range(0, length, BL):
            i_l = begin + tl.arange(0, BL)
            mask = m_c[:, None] & (i_l < length)[None, :]
            o_u = i_l[None, :] * channels + i_c[:, None]
            b_y = tl.load(p_y + o_u, mask=mask, other=0.0)
            b_ds = tl.load(p_dy + o_u, mask=mask, other=0.0) * b_y * (1 - b_y)
            b_u = (tl.load(p_u + o_u, mask=mask, other=0.0) - mean) * deviation
            b_du = deviation * (b_weight[:, None] * b_ds - first - b_u * second)
            tl.store(p_dy + o_u, b_du, mask=mask)


@triton.jit
def efficient_local_attention_bwd_kernel_conv(
    p_z, p_du, p_dconv, batch, channels, height, width, splits,
    SETS: tl.constexpr, GROUP: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    i_i = tl.program_id(1)
    i_split, i_set = tl.program_id(2) // SETS, tl.program_id(2) % SETS
    i_c = tl.program_id(0) * BC + tl.arange(0, BC)
    m_c = i_c < channels
    i_z = i_c // GROUP * GROUP + i_i
    i_k = tl.arange(0, BT)
    b_dconv = tl.zeros([BC, BT], tl.float32)
    size = tl.full([], 1, tl.int64) * (height + width) * channels
    for b in range(batch * i_split // splits, batch * (i_split + 1) // splits):
        for s in range(i_set, 2, SETS):
            length = tl.where(s == 0, height, width)
            start = size * b + s * height * channels
            p_strip, p_dstrip = p_z + start, p_du + start
            for begin in range(0, length, BL):
                i_l = begin + tl.arange(0, BL)
                mask = m_c[:, None] & (i_l < length)[None, :]
                o_du = i_l[None, :] * channels + i_c[:, None]
                b_du = tl.load(p_dstrip + o_du, mask=mask, other=0.0)  # [BC, BL]
                for t in tl.static_range(TAPS):
                    i_t = i_l + t - TAPS // 2
                    o_z = i_t[None, :] * channels + i_z[:, None]
                    m_z = m_c[:, None] & ((i_t >= 0) & (i_t < length))[None, :]
                    b_z = tl.load(p_strip + o_z, mask=m_z, other=0.0)
                    b_dconv += (
                        tl.where(i_k == t, 1.0, 0.0)[None, :] * tl.sum(b_du * b_z, 1)[:, None]
                    )
    i_out = (i_split * SETS + i_set) * channels + i_c
    o_out = (i_out.to(tl.int64)[:, None] * GROUP + i_i) * TAPS + i_k[None, :]
    tl.store(p_dconv + o_out, b_dconv, mask=m_c[:, None] & (i_k < TAPS)[None, :])


@triton.jit
def efficient_local_attention_bwd_kernel_strips(
    p_du, p_conv, p_dz, channels, height, width,
    SETS: tl.constexpr, GROUP: tl.constexpr, TAPS: tl.constexpr,
    BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    i_s, i_b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    length, across = tl.where(i_s == 0, height, width), tl.where(i_s == 0, width, height)
    start = (i_b * (height + width) + i_s * height) * channels
    p_du, p_dz = p_du + start, p_dz + start
    i_c = tl.program_id(0) * BC + tl.arange(0, BC)
    m_c = i_c < channels
    first = i_c // GROUP * GROUP
    for begin in range(0, length, BL):
        i_l = begin + tl.arange(0, BL)
        b_dz = tl.zeros([BC, BL], tl.float32)
        for o in range(GROUP):
            for t in tl.static_range(TAPS):
                i_t = i_l - t + TAPS // 2
                i_o = first + o
                o_conv = ((i_s % SETS * channels + i_o) * GROUP + i_c % GROUP) * TAPS + t
                b_conv = tl.load(p_conv + o_conv, mask=m_c, other=0.0)  # [BC]
                o_du = i_t[None, :] * channels + i_o[:, None]
                m_du = m_c[:, None] & ((i_t >= 0) & (i_t < length))[None, :]
                b_dz += b_conv[:, None] * tl.load(p_du + o_du, mask=m_du, other=0.0)
        mask = m_c[:, None] & (i_l < length)[None, :]
        o_dz = i_l[None, :] * channels + i_c[:, None]
        tl.store(p_dz + o_dz, b_dz / across, mask=mask)
